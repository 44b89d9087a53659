"""The block of target attention on jagged histories: ``Act(a_t h_t) + x_t`` with ``h = Norm(x)`` and a the weights that the
local activation unit gives the elements of a history for its target (``_activation_unit``).

A program takes one history, a tile of steps at a time: 8 D bytes and 2 D H operations an element. Backward takes several
histories a program and recomputes norm, unit and activation: 12 D bytes and 6 D H operations an element. Each program adds
up its histories' gradients of the weights in registers and writes them once. Histories wider than a chunk of channels
are shared by the programs of a column of the grid; since none of them then sees a whole row of dh, the norm's backward
is a pass of its own there (``_norm``).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activation_unit import (chunk_of, constant_of, folded, hidden_gradient, hidden_of, programs_of, row_statistics, scored,
                               store_share, target_gradient, unit_arguments, unit_constants, unit_sizes, vector)
from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, bucket
from ._norm import norm_backward
from ._precision import dot, precision
from ._sequence import layer_norm_backward, norm_tensors, shares, specimen, summed


@triton.jit
def target_attention_kernel(x, offsets, norm_weight, norm_bias, target, folds, bias, prelu, second, second_bias, out, x_row,
                            x_column, norm_weight_stride, norm_bias_stride, target_row, target_column, bias_stride,
                            second_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
                            CHUNK: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr,
                            PRECISION: tl.constexpr, STEPS: tl.constexpr):
    history = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    target += history * target_row
    matrix = 0.0
    if CHUNK == PADDED:
        matrix = folded(target, folds, 0, target_column, WIDTH, PADDED, CHUNK, UNITS)
    constant = constant_of(target, folds, bias, target_column, bias_stride, WIDTH, HIDDEN, PADDED, CHUNK, UNITS)
    alpha, w, b = tl.load(prelu), vector(second, 0, second_stride, HIDDEN, UNITS), tl.load(second_bias)
    for start in range(begin, end, STEPS):
        element = start + tl.arange(0, STEPS)
        exists = element < end
        mean, rstd = row_statistics(x, element, exists, x_row, x_column, WIDTH, PADDED, NORM)
        hidden = hidden_of(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, matrix, constant, x_row,
                           x_column, norm_weight_stride, norm_bias_stride, target_column, WIDTH, PADDED, CHUNK, UNITS, NORM,
                           PRECISION)
        a = scored(hidden, alpha, w, b)[:, None]
        for part in range(0, PADDED, CHUNK):
            h = chunk_of(x, element, exists, part, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, CHUNK, NORM)
            column = part + tl.arange(0, CHUNK)[None, :]
            inside = exists[:, None] & (column < WIDTH)
            residual = tl.load(x + element[:, None] * x_row + column * x_column, mask=inside, other=0.0)
            tl.store(out + element[:, None] * WIDTH + column, activate(a * h, ACTIVATION) + residual, mask=inside)


@triton.jit
def target_attention_backward_kernel(x, offsets, norm_weight, norm_bias, target, folds, bias, prelu, second, second_bias,
                                     gradient, dx, dtarget, share, rows, x_row, x_column, norm_weight_stride,
                                     norm_bias_stride, target_row, target_column, bias_stride, second_stride, gradient_row,
                                     gradient_column, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
                                     CHUNK: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr,
                                     ACTIVATION: tl.constexpr, PRECISION: tl.constexpr, STEPS: tl.constexpr):
    """Gradients of x (with a norm and several chunks: of the norm's output, without the residual) and target; a program's
    share of those of the norm (where one chunk holds the row) and of the unit's weights."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    own = tl.program_id(1) * CHUNK
    column = own + tl.arange(0, CHUNK)
    known = column < WIDTH
    alpha, w, b = tl.load(prelu), vector(second, 0, second_stride, HIDDEN, UNITS), tl.load(second_bias)
    direct = tl.zeros((CHUNK, UNITS), tl.float32)
    alone = tl.zeros((CHUNK, UNITS), tl.float32)
    product = tl.zeros((CHUNK, UNITS), tl.float32)
    dbias = tl.zeros((UNITS,), tl.float32)
    dprelu = tl.zeros((UNITS,), tl.float32)
    dsecond = tl.zeros((UNITS,), tl.float32)
    dsecond_bias = tl.zeros((STEPS,), tl.float32)
    dgain = tl.zeros((CHUNK,), tl.float32)
    dshift = tl.zeros((CHUNK,), tl.float32)
    for row in range(program, rows, programs):
        history = tl.cast(row, tl.int64)
        begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
        t_row = target + history * target_row
        matrix = folded(t_row, folds, own, target_column, WIDTH, PADDED, CHUNK, UNITS)
        constant = constant_of(t_row, folds, bias, target_column, bias_stride, WIDTH, HIDDEN, PADDED, CHUNK, UNITS)
        q = tl.zeros((CHUNK, UNITS), tl.float32)
        s = tl.zeros((UNITS,), tl.float32)
        for start in range(begin, end, STEPS):
            element = start + tl.arange(0, STEPS)
            exists = element < end
            mean, rstd = row_statistics(x, element, exists, x_row, x_column, WIDTH, PADDED, NORM)
            hidden = hidden_of(x, element, exists, mean, rstd, norm_weight, norm_bias, t_row, folds, matrix, constant,
                               x_row, x_column, norm_weight_stride, norm_bias_stride, target_column, WIDTH, PADDED, CHUNK,
                               UNITS, NORM, PRECISION)
            a = scored(hidden, alpha, w, b)[:, None]
            da = tl.zeros((STEPS,), tl.float32)
            for part in range(0, PADDED, CHUNK):
                h = chunk_of(x, element, exists, part, mean, rstd, norm_weight, norm_bias, x_row, x_column,
                             norm_weight_stride, norm_bias_stride, WIDTH, CHUNK, NORM)
                g = chunk_of(gradient, element, exists, part, mean, rstd, None, None, gradient_row, gradient_column, 0, 0,
                             WIDTH, CHUNK, False)
                da += tl.sum(g * slope(a * h, ACTIVATION) * h, axis=1)
            dhidden, more_prelu, more_second = hidden_gradient(da, hidden, alpha, w)
            dprelu += more_prelu
            dsecond += more_second
            dsecond_bias += da
            s += tl.sum(dhidden, axis=0)
            h = chunk_of(x, element, exists, own, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, CHUNK, NORM)
            g = chunk_of(gradient, element, exists, own, mean, rstd, None, None, gradient_row, gradient_column, 0, 0, WIDTH,
                         CHUNK, False)
            q += dot(tl.trans(h), dhidden, PRECISION)
            dh = dot(dhidden, tl.trans(matrix), PRECISION) + a * g * slope(a * h, ACTIVATION)
            if NORM and CHUNK == PADDED:
                raw = chunk_of(x, element, exists, own, mean, rstd, None, None, x_row, x_column, 0, 0, WIDTH, CHUNK, False)
                gain = vector(norm_weight, own, norm_weight_stride, WIDTH, CHUNK)[None, :]
                through, hat = layer_norm_backward(dh, raw, gain, known[None, :], WIDTH)
                dgain += tl.sum(tl.where(exists[:, None], dh * hat, 0.0), axis=0)
                dshift += tl.sum(tl.where(exists[:, None], dh, 0.0), axis=0)
                dh = through
            if not NORM or CHUNK == PADDED:
                dh += g
            tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=exists[:, None] & known[None, :])
        t = vector(t_row, own, target_column, WIDTH, CHUNK)
        direct += q
        alone += t[:, None] * s[None, :]
        product += t[:, None] * q
        dbias += s
        dt = target_gradient(q, s, folds, own, PADDED, CHUNK, UNITS)
        tl.store(dtarget + history * WIDTH + column, dt, mask=known)
    share += tl.cast(program, tl.int64) * (2 * WIDTH + HIDDEN * (4 * WIDTH + 2) + 2)
    tl.store(share + column, dgain, mask=known)
    tl.store(share + WIDTH + column, dshift, mask=known)
    store_share(share + 2 * WIDTH, own, direct, alone, product, dbias, dprelu, dsecond, dsecond_bias, WIDTH, HIDDEN, CHUNK,
                UNITS)


_SIGNATURE = {**dict.fromkeys(("x", "norm_weight", "norm_bias", "target", "folds", "bias", "prelu", "second", "second_bias",
                               "out", "gradient", "dx", "dtarget", "share"), "*fp32"), "offsets": "*i64",
              **dict.fromkeys(("rows", "x_row", "x_column", "norm_weight_stride", "norm_bias_stride", "target_row",
                               "target_column", "bias_stride", "second_stride", "gradient_row", "gradient_column"), "i32")}
_CONTIGUOUS = dict.fromkeys(("x_column", "norm_weight_stride", "norm_bias_stride", "target_column", "bias_stride",
                             "second_stride", "gradient_column"), 1)


def _specimens(function) -> list:
    return [specimen(function, label, {**unit_constants(width, 36), **_CONTIGUOUS, "NORM": True, "ACTIVATION": 1,
                                       "PRECISION": "ieee"})
            for label, width in (("alimama", 8), ("beauty", 64), ("256", 256))]


FORWARD = Kernel(target_attention_kernel, "forward", _SIGNATURE,
                 [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2), Config(STEPS=32, num_warps=4),
                  Config(STEPS=16, num_warps=8), Config(STEPS=32, num_warps=8)], _specimens(target_attention_kernel))
# The sums of three matrices [CHUNK, UNITS] stay in registers over all histories of a program.
BACKWARD = Kernel(target_attention_backward_kernel, "backward", _SIGNATURE,
                  [Config(STEPS=16, num_warps=8), Config(STEPS=16, num_warps=4), Config(STEPS=32, num_warps=8),
                   Config(STEPS=32, num_warps=4)], _specimens(target_attention_backward_kernel), occupancy=0.125)


def _common(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor, activation: str) -> dict:
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    constants = unit_constants(x.shape[1], weights[0].shape[0])
    return dict(x=x, offsets=offsets, norm_weight=norm_weight, norm_bias=norm_bias, target=target, x_row=x.stride(0),
                x_column=x.stride(1), norm_weight_stride=norm_weight_stride, norm_bias_stride=norm_bias_stride,
                target_row=target.stride(0), target_column=target.stride(1), **unit_arguments(weights, constants),
                **constants, NORM=bool(norm), ACTIVATION=CODES[activation], PRECISION=precision())


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor, activation: str,
            max_length: int) -> Tensor:
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = offsets.shape[0] - 1
    FORWARD(lambda _: (rows,), bucket(rows, x.shape[1]), out=out, **_common(x, offsets, norm, weights, target, activation))
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], target: Tensor,
             activation: str, max_length: int) -> list[Tensor]:
    """Gradients of x, norm, the unit's tensors and the target."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    common = _common(x, offsets, norm, weights, target, activation)
    sizes = [width, width, *unit_sizes(width, common["HIDDEN"])]
    programs, chunks = programs_of(rows, common["PADDED"]), common["PADDED"] // common["CHUNK"]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dtarget = torch.empty(target.shape, dtype=x.dtype, device=x.device)
    share = shares(programs, sum(sizes), like=x)
    BACKWARD(lambda _: (programs, chunks), bucket(rows, width), gradient=gradient, dx=dx, dtarget=dtarget, share=share,
             rows=rows, gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **common)
    gain, shifted, *unit = summed(share).split(sizes)
    unit = [part.view(t.shape) for part, t in zip(unit, weights, strict=True)]
    if norm and chunks > 1:
        gain, shifted = norm_backward(dx, gradient, x, norm)
    return [dx, *([gain, shifted] if norm else ()), *unit, dtarget]
