"""The three subspaces (paper section 2.2): behaviour blocks, interactions, MLP."""

from .architecture import Architecture, Block, MlpLayer
from .choices import ACTIVATIONS, LAYERS, MLP_ACTIVATIONS, NORMS, RATIOS, width
from .search_space import SearchSpace

__all__ = ["ACTIVATIONS", "Architecture", "Block", "LAYERS", "MLP_ACTIVATIONS", "MlpLayer", "NORMS", "RATIOS",
           "SearchSpace", "width"]
