"""ameir_fast: search, train and serve recommendation models (AMEIR, IJCAI 2021) at the hardware's speed.

Importing this package probes no device, compiles nothing and reads no network.
"""

from . import ops
from .batch import Batch
from .errors import InputError
from .model import Model
from .ops import Backend
from .population import evaluate_population
from .schema import FeatureSchema
from .space import Architecture, Block, MlpLayer, SearchSpace
from .supernet import Supernet

__version__ = "0.1.0"

__all__ = ["Architecture", "Backend", "Batch", "Block", "FeatureSchema", "InputError", "MlpLayer", "Model",
           "SearchSpace", "Supernet", "evaluate_population", "ops"]
