"""Compression of the behaviour network's output: sum, last and target attention (paper section 2.1, Stage 1)."""

from __future__ import annotations

import torch
from torch import Tensor

from .jagged import Layout
from .layers import attention_weights


def sequence_pool(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor],
                  max_length: int) -> Tensor:
    """``h_a = [h_pool, h_last, h_att]``; without a target the attention part is absent.

    Args:
        x: [ΣT, D] output of the last block.
        offsets: int64 [B+1].
        target: [B, D] or None.
        attention: the local activation unit's five tensors (weight, bias, PReLU slope, weight, bias), or [].
        max_length: at least the longest row.
    Returns:
        [B, 3D] or [B, 2D]; zeros for rows without elements.
    """
    rows, width = offsets.shape[0] - 1, x.shape[1]
    if x.shape[0] == 0:
        return x.new_zeros(rows, (2 if target is None else 3) * width)
    layout = Layout.of(offsets, x.shape[0], max_length)
    padded = layout.pad(x)
    filled = (layout.lengths > 0)[:, None]
    last = x.index_select(0, (offsets[1:] - 1).clamp(min=0))
    parts = [padded.sum(1), torch.where(filled, last, torch.zeros_like(last))]
    if target is not None:
        # Padded elements are zero, so whatever weight they get adds nothing.
        parts.append((attention_weights(padded, target, attention)[:, None] @ padded)[:, 0])
    return torch.cat(parts, dim=1)
