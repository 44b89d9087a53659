"""One behaviour block on jagged sequences: ``Act(Layer(Norm(H))) + H`` (paper equation 1)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .activations import activate
from .jagged import Layout
from .layers import run_layer

NORM_EPS = 1e-5


def sequence_block(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor],
                   target: Tensor | None, layer: str, activation: str, max_length: int) -> Tensor:
    """Norm, layer, activation and residual of one block.

    Args:
        x: [ΣT, D] elements of all rows, row after row.
        offsets: int64 [B+1].
        norm: [weight [D], bias [D]] of the LayerNorm, or [] for none.
        weights: the layer's tensors in PyTorch's order ([] for pools and zero).
        target: [B, D], read by ``target_attn`` only.
        layer, activation: names of section 2.2's operation sets.
        max_length: at least the longest row; only a size for scratch memory.
    Returns:
        [ΣT, D]
    """
    if layer == "zero" or x.shape[0] == 0:
        # Act(0) is 0 for every activation of the space.
        return x.clone(memory_format=torch.contiguous_format)
    return activate(activation, _layer(x, offsets, norm, weights, target, layer, max_length)) + x


def sequence_activations(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor | None,
                         layer: str, activations: list[str], max_length: int) -> Tensor:
    """``sequence_block`` with each of n activations, whose layer is computed once: [n, ΣT, D]. Not for layer zero."""
    if x.shape[0] == 0:
        return x.new_empty(len(activations), *x.shape)
    pre = _layer(x, offsets, norm, weights, target, layer, max_length)
    return torch.stack([activate(name, pre) + x for name in activations])


def _layer(x, offsets, norm, weights, target, layer, max_length) -> Tensor:
    """``Layer(Norm(H))``."""
    layout = Layout.of(offsets, x.shape[0], max_length)
    h = F.layer_norm(x, (x.shape[1],), norm[0], norm[1], NORM_EPS) if norm else x
    return layout.unpad(run_layer(layer, layout.pad(h), layout, weights, target))
