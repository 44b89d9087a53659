"""ameir_fast: search, train and serve recommendation models (AMEIR, IJCAI 2021) at the hardware's speed.

Importing this package probes no device, compiles nothing and reads no network. Its names are loaded at first
use (PEP 562), so that the command line answers ``--help`` and mistakes without importing torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

__version__ = "0.1.0"

_WHERE = {
    "Architecture": ".space", "Backend": ".ops", "Batch": ".batch", "Block": ".space", "EmbeddingAdam": ".embedding_optimizer", "FeatureSchema": ".schema",
    "InputError": ".errors", "MlpLayer": ".space", "Model": ".model", "Plan": ".plan", "SearchSpace": ".space", "Supernet": ".supernet",
    "ModelGroup": ".group", "evaluate_population": ".population", "forward_children": ".paths",
}
__all__ = ["Architecture", "Backend", "Batch", "Block", "EmbeddingAdam", "FeatureSchema", "InputError", "MlpLayer", "Model", "ModelGroup",
           "Plan", "SearchSpace", "Supernet", "evaluate_population", "forward_children", "ops"]

if TYPE_CHECKING:
    from . import ops
    from .batch import Batch
    from .embedding_optimizer import EmbeddingAdam
    from .errors import InputError
    from .group import ModelGroup
    from .model import Model
    from .ops import Backend
    from .paths import forward_children
    from .plan import Plan
    from .population import evaluate_population
    from .schema import FeatureSchema
    from .space import Architecture, Block, MlpLayer, SearchSpace
    from .supernet import Supernet


def __getattr__(name: str):
    if name == "ops":
        return importlib.import_module(".ops", __name__)
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_WHERE[name], __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
