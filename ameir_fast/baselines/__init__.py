"""Hand-made models to compare with, on the search's own embedding and training; and AMEIR-I.

They are plain PyTorch, sized as in their papers with K in the place of the papers' embedding width: what is compared
are architectures, with one loss, one set of negatives and one budget for all.
"""

from .fields import FM, LR, AmeirI, DeepFM, PooledDNN
from .popularity import Popularity
from .sequences import GRU4Rec, NextItNet, SASRec

__all__ = ["FM", "LR", "AmeirI", "DeepFM", "GRU4Rec", "NextItNet", "PooledDNN", "Popularity", "SASRec"]
