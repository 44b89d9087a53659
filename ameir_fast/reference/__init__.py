"""The operations in plain PyTorch: the definition of right. Every function works in float64."""

from .activations import activate, batch_statistics, dice, prelu, relu
from .embedding_catch_up import embedding_catch_up
from .embedding_interactions import embedding_interactions, field_embeddings, products
from .embedding_update import embedding_update
from .interaction_population import interaction_population
from .mlp_population import mlp_population
from .sequence_block import sequence_activations, sequence_block
from .sequence_pool import sequence_pool
from .sliced_mlp import sliced_mlp
from .squeeze_excite import recalibrate, squeeze_excite

__all__ = ["activate", "batch_statistics", "dice", "embedding_catch_up", "embedding_interactions",
           "embedding_update", "field_embeddings", "interaction_population", "mlp_population",
           "prelu", "products", "recalibrate", "relu", "sequence_activations", "sequence_block", "sequence_pool", "sliced_mlp", "squeeze_excite"]
