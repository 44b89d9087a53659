"""The layers of a behaviour block on padded sequences (paper section 2.2).

Each takes ``x`` [B, T, D], zero beyond the true lengths, and gives [B, T, D] whose values beyond them are
arbitrary: the caller drops them. ``weights`` are the layer's tensors in PyTorch's own order and shapes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..space.choices import LAYERS
from .activations import prelu
from .jagged import Layout


def run_layer(name: str, x: Tensor, layout: Layout, weights: list[Tensor], target: Tensor | None) -> Tensor:
    """Layer ``name`` of the block; ``target`` [B, D] is read by ``target_attn`` only."""
    if LAYERS[name].kernel:
        return _convolution(x, *weights, LAYERS[name].dilation)
    if name == "avg_pool3":
        return _average_pool(x, layout)
    if name == "max_pool3":
        return _max_pool(x, layout)
    if name == "bi_gru":
        return _bi_gru(x, layout, weights)
    if name.startswith("self_attn"):
        return _self_attention(x, layout, weights, LAYERS[name].divisor)
    if name == "target_attn":
        return attention_weights(x, target, weights)[..., None] * x
    raise ValueError(f"no reference layer {name!r}")


def _convolution(x: Tensor, weight: Tensor, bias: Tensor, dilation: int) -> Tensor:
    """SAME convolution, zeros outside the sequence; the taps side by side make it one matrix product."""
    width, taps = x.shape[2], weight.shape[2]
    reach = dilation * (taps - 1) // 2
    if reach:
        length = x.shape[1]
        padded = F.pad(x, (0, 0, reach, reach))
        x = torch.cat([padded[:, j * dilation:j * dilation + length] for j in range(taps)], dim=2)
    return F.linear(x, weight.permute(0, 2, 1).reshape(width, taps * width), bias)


def _window_sum(x: Tensor) -> Tensor:
    padded = F.pad(x, (0, 0, 1, 1))
    return padded[:, :-2] + x + padded[:, 2:]


def _average_pool(x: Tensor, layout: Layout) -> Tensor:
    """Window of 3, divided by the number of true elements in it."""
    steps = torch.arange(layout.longest, device=x.device)
    ends = layout.lengths[:, None]
    count = (steps > 0).to(x.dtype) + 1 + (steps + 1 < ends).to(x.dtype)
    return _window_sum(x) / count[..., None]


def _max_pool(x: Tensor, layout: Layout) -> Tensor:
    """Window of 3 over the true elements."""
    mask = layout.mask
    if mask is not None:
        outside = torch.zeros(mask.shape, dtype=x.dtype, device=x.device).masked_fill_(~mask, -torch.inf)
        x = x + outside[..., None]
    # As an image [B, D, T, 1] in channels-last memory, which is [B, T, D] as it lies: torch's vectorised kernel.
    image = x[:, :, None].permute(0, 3, 1, 2)
    return F.max_pool2d(image, (3, 1), stride=1, padding=(1, 0)).permute(0, 2, 3, 1)[:, :, 0]


def _bi_gru(x: Tensor, layout: Layout, weights: list[Tensor]) -> Tensor:
    """Both directions, each D/2 wide; the backward one starts at the last true element of each row."""
    rows, longest, _ = x.shape
    hidden = weights[1].shape[1]
    start = x.new_zeros(1, rows, hidden)
    # Position s ↔ length−1−s (mod T) is its own inverse, so one index turns rows around and back.
    steps = torch.arange(longest, device=x.device)
    turned = (layout.lengths[:, None] - 1 - steps).remainder(longest)
    turned = (turned + longest * torch.arange(rows, device=x.device)[:, None]).flatten()

    def turn(y: Tensor) -> Tensor:
        return y.reshape(rows * longest, -1).index_select(0, turned).view(rows, longest, -1)

    forward, _ = torch.gru(x, start, weights[:4], True, 1, 0.0, False, False, True)
    backward, _ = torch.gru(turn(x), start, weights[4:], True, 1, 0.0, False, False, True)
    return torch.cat([forward, turn(backward)], dim=2)


def _self_attention(x: Tensor, layout: Layout, weights: list[Tensor], heads: int) -> Tensor:
    """Scaled dot product over the true elements; projections with bias, no positions, no dropout."""
    in_weight, in_bias, out_weight, out_bias = weights
    rows, length, width = x.shape
    qkv = F.linear(x, in_weight, in_bias).view(rows, length, 3, heads, width // heads)
    q, k, v = qkv.permute(2, 0, 3, 1, 4)
    mask = layout.mask
    if mask is not None:
        # A row without elements attends to padding, which keeps softmax finite; its output is dropped.
        mask = (mask | (layout.lengths == 0)[:, None])[:, None, None, :]
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    return F.linear(mixed.transpose(1, 2).reshape(rows, length, width), out_weight, out_bias)


def attention_weights(x: Tensor, target: Tensor, weights: list[Tensor]) -> Tensor:
    """DIN's local activation unit: ``MLP([x, t, x − t, x ⊙ t])`` for x [B, T, D], t [B, D]; gives [B, T].

    The first layer is split by its four inputs, so that nothing of width 4D is built:
    ``W x' = (W1 + W3) x + (W2 − W3) t + W4 (x ⊙ t)``.
    """
    w0, b0, slope, w1, b1 = weights
    wx, wt, wd, wp = w0.split(x.shape[2], dim=1)
    t = target[:, None]
    hidden = F.linear(x, wx + wd, b0) + F.linear(t, wt - wd) + F.linear(x * t, wp)
    return F.linear(prelu(hidden, slope), w1, b1)[..., 0]
