"""The block of target attention on jagged histories: ``Act(a_t h_t) + x_t`` with ``h = Norm(x)`` and a the weights that the
local activation unit gives the elements of a history for its target (``_activation_unit``).

A program takes one history, a tile of steps at a time: 8 D bytes and 2 D H operations an element. So does backward, which
recomputes norm, unit and activation, with 12 D bytes and 8 D H operations an element; the unit's weights have a pass of
their own (``_activation_unit``). Histories wider than a chunk of channels are shared by the programs of a column of the
grid; since none of them then sees a whole row of dh, the norm's backward is a pass of its own there (``_norm``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activation_unit import (GROUP, add_gradients, chunk_of, hidden_gradient, hidden_units, row_statistics, unit_arguments,
                               unit_constants, unit_gradients, units_score, vector)
from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, bucket
from ._norm import norm_backward
from ._precision import precision
from ._sequence import layer_norm_backward, norm_tensors, shares, specimen, summed


@triton.jit
def target_attention_kernel(x, offsets, norm_weight, norm_bias, target, folds, bias, prelu, second, second_bias, out, x_row,
                            x_column, norm_weight_stride, norm_bias_stride, target_row, target_column, bias_stride,
                            second_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
                            PART: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
                            PRECISION: tl.constexpr, STEPS: tl.constexpr):
    history = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    target += history * target_row
    alpha, b = tl.load(prelu), tl.load(second_bias)
    for step in range(0, (end - begin).to(tl.int32), STEPS):
        element = begin + step + tl.arange(0, STEPS)
        exists = element < end
        mean, rstd = row_statistics(x, element, exists, x_row, x_column, WIDTH, PADDED, NORM)
        a = tl.zeros((STEPS,), tl.float32) + b
        for first in range(0, UNITS, GROUP):
            hidden = hidden_units(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, bias, first, x_row,
                                  x_column, norm_weight_stride, norm_bias_stride, target_column, bias_stride, WIDTH,
                                  HIDDEN, PADDED, PART, UNITS, NORM, PRECISION)
            a += units_score(hidden, first, alpha, second, second_stride, HIDDEN)
        for part in range(0, PADDED, PART):
            h = chunk_of(x, element, exists, part, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, PART, NORM)
            column = part + tl.arange(0, PART)[None, :]
            inside = exists[:, None] & (column < WIDTH)
            residual = tl.load(x + element[:, None] * x_row + column * x_column, mask=inside, other=0.0)
            tl.store(out + element[:, None] * WIDTH + column, activate(a[:, None] * h, ACTIVATION) + residual, mask=inside)


@triton.jit
def target_attention_backward_kernel(x, offsets, norm_weight, norm_bias, target, folds, bias, prelu, second, second_bias,
                                     gradient, dx, dtarget, da, dnorm, x_row, x_column, norm_weight_stride,
                                     norm_bias_stride, target_row, target_column, bias_stride, second_stride, gradient_row,
                                     gradient_column, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
                                     PART: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr,
                                     ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr):
    """Gradients of x, the target and the elements' weights. The grid's second axis goes over chunks of channels. A
    history's share of the norm's gradients is dnorm [B, 2, WIDTH] where one chunk holds the row; where it does not, dx is
    the gradient of the norm's output, without the residual's."""
    history = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * CHUNK
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    target += history * target_row
    alpha, b = tl.load(prelu), tl.load(second_bias)
    column = own + tl.arange(0, CHUNK)
    known = column < WIDTH
    t = vector(target, own, target_column, WIDTH, CHUNK)
    dt = tl.zeros((CHUNK,), tl.float32)
    dgain = tl.zeros((CHUNK,), tl.float32)
    dshift = tl.zeros((CHUNK,), tl.float32)
    for step in range(0, (end - begin).to(tl.int32), STEPS):
        element = begin + step + tl.arange(0, STEPS)
        exists = element < end
        mean, rstd = row_statistics(x, element, exists, x_row, x_column, WIDTH, PADDED, NORM)
        a = tl.zeros((STEPS,), tl.float32) + b
        for first in range(0, UNITS, GROUP):
            hidden = hidden_units(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, bias, first, x_row,
                                  x_column, norm_weight_stride, norm_bias_stride, target_column, bias_stride, WIDTH,
                                  HIDDEN, PADDED, PART, UNITS, NORM, PRECISION)
            a += units_score(hidden, first, alpha, second, second_stride, HIDDEN)
        d = tl.zeros((STEPS,), tl.float32)
        for part in range(0, PADDED, PART):
            h = chunk_of(x, element, exists, part, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, PART, NORM)
            g = chunk_of(gradient, element, exists, part, mean, rstd, None, None, gradient_row, gradient_column, 0, 0, WIDTH,
                         PART, False)
            d += tl.sum(g * slope(a[:, None] * h, ACTIVATION) * h, axis=1)
        if own == 0:
            tl.store(da + element, d, mask=exists)
        dh = tl.zeros((STEPS, CHUNK), tl.float32)
        r = tl.zeros((STEPS, CHUNK), tl.float32)
        # The hidden units again: all of them at once would not stay in registers, and a was needed first.
        for first in range(0, UNITS, GROUP):
            hidden = hidden_units(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, bias, first, x_row,
                                  x_column, norm_weight_stride, norm_bias_stride, target_column, bias_stride, WIDTH,
                                  HIDDEN, PADDED, PART, UNITS, NORM, PRECISION)
            dhidden = hidden_gradient(d, hidden, first, alpha, second, second_stride, HIDDEN)
            dh, r, dt = add_gradients(dh, r, dt, dhidden, folds, own, first, PADDED, CHUNK, UNITS, PRECISION)
        h = chunk_of(x, element, exists, own, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                     norm_bias_stride, WIDTH, CHUNK, NORM)
        g = chunk_of(gradient, element, exists, own, mean, rstd, None, None, gradient_row, gradient_column, 0, 0, WIDTH,
                     CHUNK, False)
        dt += tl.sum(h * r, axis=0)
        dh += t[None, :] * r + a[:, None] * g * slope(a[:, None] * h, ACTIVATION)
        if NORM and CHUNK == PADDED:
            raw = chunk_of(x, element, exists, own, mean, rstd, None, None, x_row, x_column, 0, 0, WIDTH, CHUNK, False)
            gain = vector(norm_weight, own, norm_weight_stride, WIDTH, CHUNK)[None, :]
            through, hat = layer_norm_backward(dh, raw, gain, known[None, :], WIDTH)
            dgain += tl.sum(dh * hat, axis=0)
            dshift += tl.sum(dh, axis=0)
            dh = through
        if not NORM or CHUNK == PADDED:
            dh += g
        tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=exists[:, None] & known[None, :])
    tl.store(dtarget + history * WIDTH + column, dt, mask=known)
    if NORM and CHUNK == PADDED:
        tl.store(dnorm + history * 2 * WIDTH + column, dgain, mask=known)
        tl.store(dnorm + history * 2 * WIDTH + WIDTH + column, dshift, mask=known)


_SIGNATURE = {**dict.fromkeys(("x", "norm_weight", "norm_bias", "target", "folds", "bias", "prelu", "second", "second_bias",
                               "out", "gradient", "dx", "dtarget", "da", "dnorm"), "*fp32"), "offsets": "*i64",
              **dict.fromkeys(("x_row", "x_column", "norm_weight_stride", "norm_bias_stride", "target_row",
                               "target_column", "bias_stride", "second_stride", "gradient_row", "gradient_column"), "i32")}
_CONTIGUOUS = dict.fromkeys(("x_column", "norm_weight_stride", "norm_bias_stride", "target_column", "bias_stride",
                             "second_stride", "gradient_column"), 1)


def _specimens(function, direction: str) -> list:
    return [specimen(function, label, {**unit_constants(width, 36, direction), **_CONTIGUOUS, "NORM": True, "ACTIVATION": 1,
                                       "PRECISION": "ieee"})
            for label, width in (("alimama", 8), ("beauty", 64), ("256", 256))]


FORWARD = Kernel(target_attention_kernel, "forward", _SIGNATURE,
                 [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2), Config(STEPS=32, num_warps=4),
                  Config(STEPS=16, num_warps=8), Config(STEPS=32, num_warps=8)], _specimens(target_attention_kernel, "forward"))
BACKWARD = Kernel(target_attention_backward_kernel, "backward", _SIGNATURE,
                  [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2), Config(STEPS=32, num_warps=4),
                   Config(STEPS=16, num_warps=8)], _specimens(target_attention_backward_kernel, "backward"), occupancy=0.125)


def _common(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor,
            activation: str, direction: str) -> tuple[dict, dict]:
    """Arguments of forward and backward, and those of them that are the unit's."""
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    constants = unit_constants(x.shape[1], weights[0].shape[0], direction)
    unit = unit_arguments(weights, constants)
    return dict(x=x, offsets=offsets, norm_weight=norm_weight, norm_bias=norm_bias, target=target, x_row=x.stride(0),
                x_column=x.stride(1), norm_weight_stride=norm_weight_stride, norm_bias_stride=norm_bias_stride,
                target_row=target.stride(0), target_column=target.stride(1), **unit, **constants, NORM=bool(norm),
                ACTIVATION=CODES[activation], PRECISION=precision()), unit


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor, activation: str,
            max_length: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = offsets.shape[0] - 1
    common, _ = _common(x, offsets, norm, weights, target, activation, "forward")
    FORWARD(lambda _: (rows,), bucket(rows, x.shape[1]), out=out, **common)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor,
             activation: str, max_length: int) -> list[Tensor]:
    """Gradients of x, norm, the unit's tensors and the target."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    common, unit = _common(x, offsets, norm, weights, target, activation, "backward")
    chunks = common["PADDED"] // common["CHUNK"]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dtarget = torch.empty(target.shape, dtype=x.dtype, device=x.device)
    da = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
    dnorm = shares(rows, 2, width, like=x) if norm and chunks == 1 else None
    BACKWARD(lambda _: (rows, chunks), bucket(rows, width), gradient=gradient, dx=dx, dtarget=dtarget, da=da, dnorm=dnorm,
             gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **common)
    found = unit_gradients(x, offsets, norm, target, weights, unit, da)
    if not norm:
        return [dx, *found, dtarget]
    return [dx, *(norm_backward(dx, gradient, x, norm) if dnorm is None else summed(dnorm)), *found, dtarget]
