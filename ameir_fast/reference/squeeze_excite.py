"""The squeeze-and-excitation shortcut (paper section 2.1, Stage 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import relu
from .embedding_interactions import fields_and_products


def recalibrate(q: Tensor, project: Tensor, squeeze: Tensor, excite: Tensor) -> Tensor:
    """``h_se = Σ a_i q_i`` with ``a = σ(W2 ReLU(W1 (Q v)))`` for Q [B, N+m, K]; gives [B, K].

    ``project`` v is [1, K], ``squeeze`` W1 [S, N+m], ``excite`` W2 [N+m, S]; slices are read in place.
    """
    a = torch.sigmoid(F.linear(relu(F.linear(F.linear(q, project)[..., 0], squeeze)), excite))
    return (a[:, None] @ q)[:, 0]


def squeeze_excite(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                   multi_fields: list[int], interactions: list[list[int]],
                   project: Tensor, squeeze: Tensor, excite: Tensor) -> Tensor:
    """The shortcut from ids: lookup, products and recalibration. Arguments as ``embedding_interactions``."""
    q = fields_and_products(embedding, rows, bag_rows, bag_offsets, multi_fields, interactions)
    return recalibrate(q, project, squeeze, excite)
