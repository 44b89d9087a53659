"""Step 2's logits of many candidates, each one product added to a common first pre-activation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import relu
from .embedding_interactions import products

TOGETHER = 16  # candidates whose hidden layers exist at one time


def interaction_population(e: Tensor, base: Tensor, interactions: list[list[int]], projections: Tensor, weight: Tensor,
                           bias: Tensor, head: Tensor, head_bias: Tensor) -> Tensor:
    """``head · ReLU(W ReLU(base + W_p p) + b)`` of every candidate's product p.

    Args:
        e: [B, N, K], the fields' embeddings.
        base: [B, H], the first pre-activation without candidates.
        interactions: n lists of field positions, of any order from 1 on.
        projections: [n, H, K], each candidate's W_p; one that all have in common may be expanded.
        weight, bias: [G, H] and [G], the second layer.
        head, head_bias: [G] and [1].
    Returns:
        [n, B].
    """
    out = e.new_empty(len(interactions), e.shape[0])
    for start in range(0, len(interactions), TOGETHER):
        part = slice(start, start + TOGETHER)
        p = torch.stack(products(e, interactions[part]))                          # [c, B, K]
        h = relu(torch.baddbmm(base, p, projections[part].transpose(1, 2)))
        out[part] = relu(F.linear(h, weight, bias)) @ head + head_bias
    return out
