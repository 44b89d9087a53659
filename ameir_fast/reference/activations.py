"""Activations of blocks and MLP layers."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

DICE_EPS = 1e-8


def relu(x: Tensor) -> Tensor:
    """max(x, 0). ``threshold`` has the same values and gradients as ``relu``, and in some builds of torch the
    faster CPU kernel by far, because the one of ``relu`` is not vectorised there."""
    return F.threshold(x, 0.0, 0.0)


def prelu(x: Tensor, slope: Tensor) -> Tensor:
    """x for x > 0, else slope·x; from the same fast kernel, exact on both sides."""
    positive = relu(x)
    return positive + slope * (x - positive)


def activate(name: str, x: Tensor) -> Tensor:
    """relu, gelu (exact), swish or identity."""
    if name == "relu":
        return relu(x)
    if name == "gelu":
        return F.gelu(x)
    if name == "swish":
        return F.silu(x)
    if name == "identity":
        return x
    raise ValueError(f"unknown activation {name!r}")


def batch_statistics(s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance over the rows of ``s`` [B, out]; zeros and ones for an empty batch."""
    if s.shape[0] == 0:
        return s.new_zeros(s.shape[1]), s.new_ones(s.shape[1])
    return s.mean(0), s.var(0, unbiased=False)


def dice(s: Tensor, alpha: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Dice (DIN): ``p·s + (1−p)·α·s`` with ``p = σ((s − mean) / √(variance + 1e-8))``. Shapes [B, out], [out]."""
    p = torch.sigmoid((s - mean) * torch.rsqrt(variance + DICE_EPS))
    return s * (alpha + p * (1 - alpha))
