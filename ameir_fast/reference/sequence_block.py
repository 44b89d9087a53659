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
    layout = Layout.of(offsets, x.shape[0], max_length)
    h = F.layer_norm(x, (x.shape[1],), norm[0], norm[1], NORM_EPS) if norm else x
    return activate(activation, layout.unpad(run_layer(layer, layout.pad(h), layout, weights, target))) + x
