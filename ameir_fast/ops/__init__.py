"""Public operations. Each has one schema (see ``_table``) and one implementation per backend."""

from ._table import OPS, Backend, backends, missing, resolve
from .functions import (
    embedding_catch_up,
    embedding_interactions,
    embedding_update,
    interaction_population,
    mlp_population,
    sequence_activations,
    sequence_block,
    sequence_pool,
    sliced_mlp,
    squeeze_excite,
)

__all__ = ["Backend", "OPS", "backends", "embedding_catch_up", "embedding_interactions", "embedding_update",
           "interaction_population", "missing", "mlp_population", "resolve", "sequence_activations",
           "sequence_block", "sequence_pool", "sliced_mlp", "squeeze_excite"]
