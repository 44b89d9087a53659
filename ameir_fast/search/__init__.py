"""The three-step search (paper section 2.3)."""

from .config import QUICK, RETRIEVAL, SearchConfig
from .driver import search
from .samplers import FairSampler, UniformSampler
from .single import evaluate, train
from .strategy import BeamStrategy, EvolutionStrategy, RandomStrategy, Strategy

__all__ = ["BeamStrategy", "EvolutionStrategy", "FairSampler", "QUICK", "RETRIEVAL", "RandomStrategy", "SearchConfig",
           "Strategy", "UniformSampler", "evaluate", "search", "train"]
