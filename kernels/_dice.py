"""Dice over the rows of a matrix: statistics of the batch, the activation, and its gradients.

    y = s (α + p (1 − α)),   p = σ((s − μ) r),   r = 1 / √(σ² + 1e-8)

``statistics``: mean and biased variance of each column, in one reading: a program has a share of the rows of some
columns and keeps their count, mean and sum of squared deviations, block by block joined by Chan's formula; a second
kernel joins the shares, in order. Bytes: 4 B n.

Gradients, from g = dL/dy, with ``u = g s (1 − α) p (1 − p)``:

    dα = Σ g s (1 − p)      dμ = −r Σ u      dσ² = −½ r³ Σ u (s − μ)
    ds = g (α + p (1 − α)) + u r  [ + dμ / B + 2 dσ² (s − μ) / B, where μ and σ² are the batch's ]

in two readings of g and s: the three sums, shares of them added in order, then ds. Bytes: 20 B n.

Source: [Zhou et al., 2018], Deep Interest Network; [Chan, Golub, LeVeque, 1979] for joining variances.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._dense import LEAST_ROWS, PROGRAMS, dice_gate, sum_parts
from ._launch import Config, Kernel, Specimen, bucket

BLOCK_N = 32


@triton.jit
def join(count, mean, squares, more_count, more_mean, more_squares):
    """Count, mean and sum of squared deviations of two sets together."""
    total = count + more_count
    share = more_count / tl.maximum(total, 1.0)
    difference = more_mean - mean
    return total, mean + difference * share, squares + more_squares + difference * difference * count * share


@triton.jit
def column_statistics_kernel(parts, s, rows, share, width, s_row, s_column, BLOCK_N: tl.constexpr,
                             BLOCK_B: tl.constexpr):
    """parts[share, 0 and 1, column]: mean and sum of squared deviations of a share of the rows."""
    tiles = tl.cdiv(width, BLOCK_N)
    part = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    count = 0.0
    mean, squares = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, tl.minimum(share, rows - part * share), BLOCK_B):
        row = part * share + start + tl.arange(0, BLOCK_B)
        present = (row < rows) & (start + tl.arange(0, BLOCK_B) < share)
        mask = present[:, None] & (column < width)[None, :]
        value = tl.load(s + row[:, None] * s_row + column[None, :] * s_column, mask, other=0.0)
        here = tl.sum(present.to(tl.float32))
        middle = tl.sum(value, 0) / here
        deviation = tl.where(present[:, None], value - middle[None, :], 0.0)
        count, mean, squares = join(count, mean, squares, here, middle, tl.sum(deviation * deviation, 0))
    at = parts + part * 2 * width + column
    tl.store(at, mean, column < width)
    tl.store(at + width, squares, column < width)


@triton.jit
def join_statistics_kernel(statistics, parts, shares, rows, share, width, BLOCK: tl.constexpr):
    """statistics[0 and 1, column]: mean and biased variance of all rows."""
    column = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    count = 0.0
    mean, squares = tl.zeros([BLOCK], tl.float32), tl.zeros([BLOCK], tl.float32)
    for part in range(shares):
        here = tl.minimum(share, rows - part * share).to(tl.float32)
        at = parts + part * 2 * width + column
        count, mean, squares = join(count, mean, squares, here, tl.load(at, column < width, other=0.0),
                                    tl.load(at + width, column < width, other=0.0))
    tl.store(statistics + column, mean, column < width)
    tl.store(statistics + width + column, squares / count, column < width)


@triton.jit
def dice_kernel(out, s, gradient, sums, alpha, mean, variance, rows, width, s_row, s_column, gradient_row,
                gradient_column, BATCH: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """y, or, with a gradient of it, ds."""
    tiles = tl.cdiv(width, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    mask = (row < rows)[:, None] & (column < width)[None, :]
    x = tl.load(s + row[:, None] * s_row + column[None, :] * s_column, mask, other=0.0)
    a = tl.load(alpha + column, column < width, other=0.0)[None, :]
    mu = tl.load(mean + column, column < width, other=0.0)[None, :]
    var = tl.load(variance + column, column < width, other=1.0)[None, :]
    p = dice_gate(x, mu, var)
    if gradient is None:
        y = x * (a + p * (1.0 - a))
    else:
        g = tl.load(gradient + row[:, None] * gradient_row + column[None, :] * gradient_column, mask, other=0.0)
        r = 1.0 / tl.sqrt(var + 1e-8)
        y = g * (a + p * (1.0 - a)) + g * x * (1.0 - a) * p * (1.0 - p) * r
        if BATCH:
            u = tl.load(sums + width + column, column < width, other=0.0)[None, :]
            w = tl.load(sums + 2 * width + column, column < width, other=0.0)[None, :]
            y -= (r * u + r * r * r * w * (x - mu)) / rows
    tl.store(out + row[:, None] * width + column[None, :], y, mask)


@triton.jit
def dice_sums_kernel(parts, s, gradient, alpha, mean, variance, rows, share, width, s_row, s_column, gradient_row,
                     gradient_column, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr):
    """parts[share, 0 to 2, column]: Σ g s (1 − p), Σ u, Σ u (s − μ) of a share of the rows."""
    tiles = tl.cdiv(width, BLOCK_N)
    part = (tl.program_id(0) // tiles).to(tl.int64)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    a = tl.load(alpha + column, column < width, other=0.0)[None, :]
    mu = tl.load(mean + column, column < width, other=0.0)[None, :]
    var = tl.load(variance + column, column < width, other=1.0)[None, :]
    first, second = tl.zeros([BLOCK_N], tl.float32), tl.zeros([BLOCK_N], tl.float32)
    third = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, share, BLOCK_B):
        row = part * share + start + tl.arange(0, BLOCK_B)
        present = (row < rows) & (start + tl.arange(0, BLOCK_B) < share)
        mask = present[:, None] & (column < width)[None, :]
        x = tl.load(s + row[:, None] * s_row + column[None, :] * s_column, mask, other=0.0)
        g = tl.load(gradient + row[:, None] * gradient_row + column[None, :] * gradient_column, mask, other=0.0)
        p = dice_gate(x, mu, var)
        u = g * x * (1.0 - a) * p * (1.0 - p)
        first += tl.sum(g * x * (1.0 - p), 0)
        second += tl.sum(u, 0)
        third += tl.sum(u * (x - mu), 0)
    at = parts + part * 3 * width + column
    tl.store(at, first, column < width)
    tl.store(at + width, second, column < width)
    tl.store(at + 2 * width, third, column < width)


_UNITS = dict.fromkeys(("alpha", "mean", "variance"), "*fp32")
_MATRICES = dict.fromkeys(("s_row", "s_column", "gradient_row", "gradient_column"), "i32")
_PLAIN = {"s_column": 1, "BLOCK_N": BLOCK_N}
_BLOCKS = [Config(BLOCK_B=64), Config(BLOCK_B=32), Config(BLOCK_B=128)]

COLUMN_STATISTICS = Kernel(
    column_statistics_kernel, "forward",
    {"parts": "*fp32", "s": "*fp32", **dict.fromkeys(("rows", "share", "width", "s_row", "s_column"), "i32")},
    _BLOCKS, [Specimen("any", _PLAIN)])
JOIN_STATISTICS = Kernel(
    join_statistics_kernel, "forward",
    {"statistics": "*fp32", "parts": "*fp32", **dict.fromkeys(("shares", "rows", "share", "width"), "i32")},
    [Config(BLOCK=128), Config(BLOCK=32, num_warps=1)], [Specimen("any", {})])
DICE = Kernel(
    dice_kernel, "forward",
    {"out": "*fp32", "s": "*fp32", "gradient": "*fp32", "sums": "*fp32", **_UNITS, "rows": "i32", "width": "i32",
     **_MATRICES},
    _BLOCKS, [Specimen("forward", {**_PLAIN, "gradient": None, "sums": None, "BATCH": False}),
              Specimen("backward", {**_PLAIN, "gradient_column": 1, "BATCH": True})])
DICE_SUMS = Kernel(
    dice_sums_kernel, "backward",
    {"parts": "*fp32", "s": "*fp32", "gradient": "*fp32", **_UNITS,
     **dict.fromkeys(("rows", "share", "width"), "i32"), **_MATRICES},
    _BLOCKS, [Specimen("any", {**_PLAIN, "gradient_column": 1})])


def _shares(rows: int, width: int) -> tuple[int, int, int]:
    """Tiles of columns, shares of the rows, and rows of each."""
    tiles = triton.cdiv(width, BLOCK_N)
    shares = max(1, min(PROGRAMS // max(1, tiles), rows // LEAST_ROWS))
    share = triton.cdiv(rows, shares)
    return tiles, triton.cdiv(rows, share), share


def statistics(s: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of the columns of ``s`` [B, n]; zeros and ones for an empty batch."""
    rows, width = s.shape
    if rows == 0:
        return s.new_zeros(width), s.new_ones(width)
    tiles, shares, share = _shares(rows, width)
    parts, result = s.new_empty(shares, 2, width), s.new_empty(2, width)
    COLUMN_STATISTICS(lambda _: (tiles * shares,), bucket(rows, width), parts=parts, s=s, rows=rows, share=share,
                      width=width, s_row=s.stride(0), s_column=s.stride(1), BLOCK_N=BLOCK_N)
    JOIN_STATISTICS(lambda c: (triton.cdiv(width, c["BLOCK"]),), bucket(width), statistics=result, parts=parts,
                    shares=shares, rows=rows, share=share, width=width)
    return result[0], result[1]


def dice(s: Tensor, units: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """y of ``s`` [B, n]; ``units``: alpha, mean and variance, contiguous [n]."""
    return _launch(s, None, None, units, False)


def _launch(s: Tensor, gradient: Tensor | None, sums: Tensor | None, units: tuple, batch: bool) -> Tensor:
    rows, width = s.shape
    out = s.new_empty(rows, width)
    strides = gradient.stride() if gradient is not None else (0, 0)
    DICE(lambda c: (triton.cdiv(rows, c["BLOCK_B"]) * triton.cdiv(width, BLOCK_N),), bucket(rows, width), out=out, s=s,
         gradient=gradient, sums=sums, alpha=units[0], mean=units[1], variance=units[2], rows=rows, width=width,
         s_row=s.stride(0), s_column=s.stride(1), gradient_row=strides[0], gradient_column=strides[1], BATCH=batch,
         BLOCK_N=BLOCK_N)
    return out


def dice_gradients(gradient: Tensor, s: Tensor, units: tuple[Tensor, Tensor, Tensor],
                   fixed: bool) -> tuple[Tensor, Tensor]:
    """ds, and the gradient of what the layer was given: [3, n] of fixed alpha, mean and variance, else alpha's [n]."""
    rows, width = s.shape
    if rows == 0:
        return s.new_empty(0, width), s.new_zeros((3, width) if fixed else width)
    tiles, shares, share = _shares(rows, width)
    parts = s.new_empty(shares, 3, width)
    DICE_SUMS(lambda _: (tiles * shares,), bucket(rows, width), parts=parts, s=s, gradient=gradient, alpha=units[0],
              mean=units[1], variance=units[2], rows=rows, share=share, width=width, s_row=s.stride(0),
              s_column=s.stride(1), gradient_row=gradient.stride(0), gradient_column=gradient.stride(1),
              BLOCK_N=BLOCK_N)
    sums = sum_parts(parts)
    ds = _launch(s, gradient, sums, units, not fixed)
    if not fixed:
        return ds, sums[0].clone()
    r = torch.rsqrt(units[2] + 1e-8)
    return ds, torch.stack([sums[0], -r * sums[1], -0.5 * r ** 3 * sums[2]])
