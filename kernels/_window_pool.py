"""Pooling layers of a block on jagged histories: mean or maximum of an element and its two neighbours after the norm, then
activation and residual.

Tiles of the flat [ΣT, D] matrix; whether an element has neighbours is found by a search over the offsets. The mean is
over true elements; the maximum takes the first of equal ones, and what is no number wins, as in PyTorch.

Forward moves 8 D bytes an element: the neighbours' rows come from the cache, their norms are recomputed. Backward is one
pass of 12 D bytes an element: the windows of an element and of its neighbours reach two elements to both sides, whose
norms are recomputed, so that each element sums up what the three windows give it and no scratch is needed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket
from ._sequence import (layer_norm, layer_norm_backward, norm_tensors, owner_of, padded, search_steps, shares, summed)


@triton.jit
def row_at(x, gain, shifted, element, there, column, row_stride, column_stride, WIDTH: tl.constexpr, NORM: tl.constexpr):
    """Rows of x after the norm [elements, columns]; zeros of those that are not there."""
    known = (column < WIDTH)[None, :]
    h = tl.load(x + element[:, None] * row_stride + column[None, :] * column_stride, mask=there[:, None] & known, other=0.0)
    if NORM:
        h = layer_norm(h, gain, shifted, known, WIDTH)
        h = tl.where(there[:, None], h, 0.0)
    return h


@triton.jit
def pooled(before, here, after, has_before, has_after, MAXIMUM: tl.constexpr):
    """The window's value, and which of the three it is the maximum of: −1, 0, 1 (0 for the mean)."""
    if MAXIMUM:
        z = tl.where(has_before, before, here)
        which = tl.where(has_before, -1, 0)
        wins = (here > z) | (here != here)
        z, which = tl.where(wins, here, z), tl.where(wins, 0, which)
        wins = has_after & ((after > z) | (after != after))
        z, which = tl.where(wins, after, z), tl.where(wins, 1, which)
    else:
        z = (before + here + after) / (1.0 + has_before.to(tl.float32) + has_after.to(tl.float32))
        which = tl.zeros(here.shape, tl.int32)
    return z, which


@triton.jit
def given(before, here, after, gradient, element, there, has_before, has_after, column, gradient_row, gradient_column,
          TO: tl.constexpr, WIDTH: tl.constexpr, MAXIMUM: tl.constexpr, ACTIVATION: tl.constexpr):
    """What the window around ``element`` gives to its neighbour at TO (−1, 0 or 1)."""
    g = tl.load(gradient + element[:, None] * gradient_row + column[None, :] * gradient_column,
                mask=there[:, None] & (column < WIDTH)[None, :], other=0.0)
    has_before, has_after = has_before[:, None], has_after[:, None]
    z, which = pooled(before, here, after, has_before, has_after, MAXIMUM)
    dz = g * slope(z, ACTIVATION)
    if MAXIMUM:
        return tl.where(which == TO, dz, 0.0)
    return dz / (1.0 + has_before.to(tl.float32) + has_after.to(tl.float32))


@triton.jit
def window_pool_kernel(x, offsets, norm_weight, norm_bias, out, elements, rows, steps, x_row, x_column,
                       norm_weight_stride, norm_bias_stride, WIDTH: tl.constexpr, PADDED: tl.constexpr,
                       NORM: tl.constexpr, MAXIMUM: tl.constexpr, ACTIVATION: tl.constexpr, AREA: tl.constexpr):
    TILE: tl.constexpr = max(4, AREA // PADDED)
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    exists = element < elements
    owner = owner_of(element, offsets, rows, steps)
    has_before = exists & (element > tl.load(offsets + owner))
    has_after = exists & (element + 1 < tl.load(offsets + owner + 1))
    column = tl.arange(0, PADDED)
    gain, shifted = 0.0, 0.0
    if NORM:
        gain = tl.load(norm_weight + column * norm_weight_stride, mask=column < WIDTH, other=0.0)[None, :]
        shifted = tl.load(norm_bias + column * norm_bias_stride, mask=column < WIDTH, other=0.0)[None, :]
    before = row_at(x, gain, shifted, element - 1, has_before, column, x_row, x_column, WIDTH, NORM)
    here = row_at(x, gain, shifted, element, exists, column, x_row, x_column, WIDTH, NORM)
    after = row_at(x, gain, shifted, element + 1, has_after, column, x_row, x_column, WIDTH, NORM)
    z, _ = pooled(before, here, after, has_before[:, None], has_after[:, None], MAXIMUM)
    inside = exists[:, None] & (column < WIDTH)[None, :]
    residual = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
    tl.store(out + element[:, None] * WIDTH + column[None, :], activate(z, ACTIVATION) + residual, mask=inside)


@triton.jit
def window_pool_backward_kernel(x, offsets, norm_weight, norm_bias, gradient, dx, dnorm, elements, rows, steps, x_row,
                                x_column, norm_weight_stride, norm_bias_stride, gradient_row, gradient_column,
                                WIDTH: tl.constexpr, PADDED: tl.constexpr, NORM: tl.constexpr, MAXIMUM: tl.constexpr,
                                ACTIVATION: tl.constexpr, AREA: tl.constexpr):
    """Gradient of x, and a tile's share of the norm's: dnorm [tiles, 2, WIDTH]."""
    TILE: tl.constexpr = max(4, AREA // PADDED)
    tile = tl.program_id(0).to(tl.int64)
    element = tile * TILE + tl.arange(0, TILE)
    exists = element < elements
    owner = owner_of(element, offsets, rows, steps)
    begin, end = tl.load(offsets + owner), tl.load(offsets + owner + 1)
    has_before, has_after = exists & (element > begin), exists & (element + 1 < end)
    has_second_before, has_second_after = exists & (element - 1 > begin), exists & (element + 2 < end)
    column = tl.arange(0, PADDED)
    gain, shifted = 0.0, 0.0
    if NORM:
        gain = tl.load(norm_weight + column * norm_weight_stride, mask=column < WIDTH, other=0.0)[None, :]
        shifted = tl.load(norm_bias + column * norm_bias_stride, mask=column < WIDTH, other=0.0)[None, :]
    first = row_at(x, gain, shifted, element - 2, has_second_before, column, x_row, x_column, WIDTH, NORM)
    before = row_at(x, gain, shifted, element - 1, has_before, column, x_row, x_column, WIDTH, NORM)
    here = row_at(x, gain, shifted, element, exists, column, x_row, x_column, WIDTH, NORM)
    dh = given(first, before, here, gradient, element - 1, has_before, has_second_before, has_before, column, gradient_row,
               gradient_column, 1, WIDTH, MAXIMUM, ACTIVATION)
    after = row_at(x, gain, shifted, element + 1, has_after, column, x_row, x_column, WIDTH, NORM)
    dh += given(before, here, after, gradient, element, exists, has_before, has_after, column, gradient_row,
                gradient_column, 0, WIDTH, MAXIMUM, ACTIVATION)
    last = row_at(x, gain, shifted, element + 2, has_second_after, column, x_row, x_column, WIDTH, NORM)
    dh += given(here, after, last, gradient, element + 1, has_after, has_after, has_second_after, column, gradient_row,
                gradient_column, -1, WIDTH, MAXIMUM, ACTIVATION)
    inside = exists[:, None] & (column < WIDTH)[None, :]
    if NORM:
        x_tile = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
        through, hat = layer_norm_backward(dh, x_tile, gain, (column < WIDTH)[None, :], WIDTH)
        share = dnorm + tile * 2 * WIDTH + column
        tl.store(share, tl.sum(dh * hat, axis=0), mask=column < WIDTH)
        tl.store(share + WIDTH, tl.sum(dh, axis=0), mask=column < WIDTH)
        dh = through
    g = tl.load(gradient + element[:, None] * gradient_row + column[None, :] * gradient_column, mask=inside, other=0.0)
    tl.store(dx + element[:, None] * WIDTH + column[None, :], dh + g, mask=inside)


_SIGNATURE = {**dict.fromkeys(("x", "norm_weight", "norm_bias", "gradient", "out", "dx", "dnorm"), "*fp32"),
              "offsets": "*i64",
              **dict.fromkeys(("elements", "rows", "steps", "x_row", "x_column", "norm_weight_stride", "norm_bias_stride",
                               "gradient_row", "gradient_column"), "i32")}
_SPECIMENS = [Specimen(f"{label} {'max' if maximum else 'avg'}", {
    "WIDTH": width, "PADDED": padded(width), "NORM": True, "MAXIMUM": maximum, "ACTIVATION": 2})
    for label, width in (("alimama", 8), ("beauty", 64), ("256", 256)) for maximum in (False, True)]
POOL = Kernel(window_pool_kernel, "forward", _SIGNATURE,
              [Config(AREA=1024, num_warps=4), Config(AREA=512, num_warps=2), Config(AREA=2048, num_warps=4),
               Config(AREA=2048, num_warps=8)], _SPECIMENS)
# One tile size in all configurations: the norm's shares are by tile.
BACKWARD = Kernel(window_pool_backward_kernel, "backward", _SIGNATURE,
                  [Config(AREA=1024, num_warps=8), Config(AREA=1024, num_warps=4)],
                  _SPECIMENS)


def _grid(elements: int, channels: int):
    return lambda blocks: (triton.cdiv(elements, max(4, blocks["AREA"] // channels)),)


def _common(x: Tensor, offsets: Tensor, norm: list[Tensor], activation: str, maximum: bool) -> dict:
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    return dict(x=x, offsets=offsets, norm_weight=norm_weight, norm_bias=norm_bias, elements=x.shape[0],
                rows=offsets.shape[0] - 1, steps=search_steps(offsets), x_row=x.stride(0), x_column=x.stride(1),
                norm_weight_stride=norm_weight_stride, norm_bias_stride=norm_bias_stride, WIDTH=x.shape[1],
                PADDED=padded(x.shape[1]), NORM=bool(norm), MAXIMUM=maximum, ACTIVATION=CODES[activation])


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str, max_length: int,
            maximum: bool) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    common = _common(x, offsets, norm, activation, maximum)
    POOL(_grid(x.shape[0], common["PADDED"]), bucket(*x.shape), out=out, **common)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int, maximum: bool) -> list[Tensor]:
    """Gradients of x and norm."""
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    common = _common(x, offsets, norm, activation, maximum)
    grid = _grid(x.shape[0], common["PADDED"])
    dnorm = shares(*grid(BACKWARD.configs[0].blocks), 2, x.shape[1], like=x) if norm else None
    BACKWARD(grid, bucket(*x.shape), gradient=gradient, dx=dx, dnorm=dnorm, gradient_row=gradient.stride(0),
             gradient_column=gradient.stride(1), **common)
    return [dx, *(summed(dnorm) if norm else ())]
