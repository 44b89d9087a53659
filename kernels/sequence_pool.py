"""What becomes of a history's elements: ``[Σ_t x_t, x_last, Σ_t a_t x_t]`` with the weights of the local activation unit
(paper section 2.1, Stage 1), in one pass; without a target the third part is absent. Zeros for a history without elements.

A program takes one history, a tile of steps at a time: each element is read once, 4 D bytes, and 3 D numbers written for
the whole history; 2 D H operations an element for the weights (``_activation_unit``).

Backward takes several histories a program and recomputes the weights. With g = [g_sum, g_last, g_att] of a history,
``dx_t = g_sum + [t = last] g_last + a_t g_att + (what the unit gives for da_t = g_att · x_t)``: again one pass, 8 D bytes
an element. Each program adds up its histories' gradients of the unit's weights in registers and writes them once.
"""

from __future__ import annotations

import torch
import triton.language as tl
import triton
from torch import Tensor

from ._activation_unit import (chunk_of, constant_of, folded, hidden_gradient, hidden_of, programs_of, scored, store_share,
                               target_gradient, unit_arguments, unit_constants, unit_sizes, vector)
from ._launch import Config, Kernel, Specimen, bucket
from ._precision import dot, precision
from ._sequence import padded, shares, specimen, summed


@triton.jit
def sequence_pool_kernel(x, offsets, target, folds, bias, prelu, second, second_bias, out, x_row, x_column, target_row,
                         target_column, bias_stride, second_stride, WIDTH: tl.constexpr,
                         HIDDEN: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr,
                         PRECISION: tl.constexpr, STEPS: tl.constexpr):
    history = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    column = tl.arange(0, PADDED)
    known = column < WIDTH
    total = tl.zeros((PADDED,), tl.float32)
    mixed = tl.zeros((PADDED,), tl.float32)
    if target is not None:
        target += history * target_row
        matrix = 0.0
        if CHUNK == PADDED:
            matrix = folded(target, folds, 0, target_column, WIDTH, PADDED, CHUNK, UNITS)
        constant = constant_of(target, folds, bias, target_column, bias_stride, WIDTH, HIDDEN, PADDED, CHUNK, UNITS)
        slope, w, b = tl.load(prelu), vector(second, 0, second_stride, HIDDEN, UNITS), tl.load(second_bias)
    for start in range(begin, end, STEPS):
        element = start + tl.arange(0, STEPS)
        exists = element < end
        h = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=exists[:, None] & known[None, :],
                    other=0.0)
        total += tl.sum(h, axis=0)
        if target is not None:
            hidden = hidden_of(x, element, exists, 0.0, 1.0, None, None, target, folds, matrix, constant, x_row, x_column,
                               0, 0, target_column, WIDTH, PADDED, CHUNK, UNITS, False, PRECISION)
            mixed += tl.sum(scored(hidden, slope, w, b)[:, None] * h, axis=0)
    last = tl.load(x + (end - 1) * x_row + column * x_column, mask=known & (end > begin), other=0.0)
    place = out + history * ((2 if target is None else 3) * WIDTH) + column
    tl.store(place, total, mask=known)
    tl.store(place + WIDTH, last, mask=known)
    if target is not None:
        tl.store(place + 2 * WIDTH, mixed, mask=known)


@triton.jit
def sequence_pool_backward_kernel(x, offsets, target, folds, bias, prelu, second, second_bias, gradient, dx, dtarget, share,
                                  rows, x_row, x_column, target_row, target_column, bias_stride, second_stride, gradient_row, gradient_column, WIDTH: tl.constexpr,
                                  HIDDEN: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr,
                                  PRECISION: tl.constexpr, STEPS: tl.constexpr):
    """Gradients of x and target; a program's share of those of the unit's weights. The grid's second axis goes over
    chunks of channels."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    own = tl.program_id(1) * CHUNK
    column = own + tl.arange(0, CHUNK)
    known = column < WIDTH
    slope, w, b = tl.load(prelu), vector(second, 0, second_stride, HIDDEN, UNITS), tl.load(second_bias)
    direct = tl.zeros((CHUNK, UNITS), tl.float32)
    alone = tl.zeros((CHUNK, UNITS), tl.float32)
    product = tl.zeros((CHUNK, UNITS), tl.float32)
    dbias = tl.zeros((UNITS,), tl.float32)
    dslope = tl.zeros((UNITS,), tl.float32)
    dsecond = tl.zeros((UNITS,), tl.float32)
    dsecond_bias = tl.zeros((STEPS,), tl.float32)
    for row in range(program, rows, programs):
        history = tl.cast(row, tl.int64)
        begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
        t_row = target + history * target_row
        g_sum = gradient + history * gradient_row
        g_last, g_mixed = g_sum + WIDTH * gradient_column, g_sum + 2 * WIDTH * gradient_column
        matrix = folded(t_row, folds, own, target_column, WIDTH, PADDED, CHUNK, UNITS)
        constant = constant_of(t_row, folds, bias, target_column, bias_stride, WIDTH, HIDDEN, PADDED, CHUNK, UNITS)
        q = tl.zeros((CHUNK, UNITS), tl.float32)
        s = tl.zeros((UNITS,), tl.float32)
        for start in range(begin, end, STEPS):
            element = start + tl.arange(0, STEPS)
            exists = element < end
            hidden = hidden_of(x, element, exists, 0.0, 1.0, None, None, t_row, folds, matrix, constant, x_row, x_column,
                               0, 0, target_column, WIDTH, PADDED, CHUNK, UNITS, False, PRECISION)
            da = tl.zeros((STEPS,), tl.float32)
            for part in range(0, PADDED, CHUNK):
                h = chunk_of(x, element, exists, part, 0.0, 1.0, None, None, x_row, x_column, 0, 0, WIDTH, CHUNK, False)
                da += tl.sum(h * vector(g_mixed, part, gradient_column, WIDTH, CHUNK)[None, :], axis=1)
            dhidden, more_slope, more_second = hidden_gradient(da, hidden, slope, w)
            dslope += more_slope
            dsecond += more_second
            dsecond_bias += da
            s += tl.sum(dhidden, axis=0)
            h = chunk_of(x, element, exists, own, 0.0, 1.0, None, None, x_row, x_column, 0, 0, WIDTH, CHUNK, False)
            q += dot(tl.trans(h), dhidden, PRECISION)
            dh = dot(dhidden, tl.trans(matrix), PRECISION) + vector(g_sum, own, gradient_column, WIDTH, CHUNK)[None, :]
            dh += scored(hidden, slope, w, b)[:, None] * vector(g_mixed, own, gradient_column, WIDTH, CHUNK)[None, :]
            dh += tl.where((element == end - 1)[:, None], vector(g_last, own, gradient_column, WIDTH, CHUNK)[None, :], 0.0)
            tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=exists[:, None] & known[None, :])
        t = vector(t_row, own, target_column, WIDTH, CHUNK)
        direct += q
        alone += t[:, None] * s[None, :]
        product += t[:, None] * q
        dbias += s
        dt = target_gradient(q, s, folds, own, PADDED, CHUNK, UNITS)
        tl.store(dtarget + history * WIDTH + column, dt, mask=known)
    store_share(share + program * (HIDDEN * (4 * WIDTH + 2) + 2), own, direct, alone, product, dbias, dslope, dsecond,
                dsecond_bias, WIDTH, HIDDEN, CHUNK, UNITS)


@triton.jit
def sequence_spread_kernel(offsets, gradient, dx, gradient_row, gradient_column, WIDTH: tl.constexpr,
                           PADDED: tl.constexpr, STEPS: tl.constexpr):
    """Gradient of x without a target: that of the sum for every element, and that of the last one."""
    history = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    column = tl.arange(0, PADDED)
    known = column < WIDTH
    g = gradient + history * gradient_row + column * gradient_column
    g_sum = tl.load(g, mask=known, other=0.0)
    g_last = tl.load(g + WIDTH * gradient_column, mask=known, other=0.0)
    for start in range(begin, end, STEPS):
        element = start + tl.arange(0, STEPS)
        dh = g_sum[None, :] + tl.where((element == end - 1)[:, None], g_last[None, :], 0.0)
        tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=(element < end)[:, None] & known[None, :])


_SIGNATURE = {**dict.fromkeys(("x", "target", "folds", "bias", "prelu", "second", "second_bias", "out", "gradient", "dx",
                               "dtarget", "share"), "*fp32"), "offsets": "*i64",
              **dict.fromkeys(("rows", "x_row", "x_column", "target_row", "target_column", "bias_stride", "second_stride", "gradient_row", "gradient_column"), "i32")}
_CONTIGUOUS = dict.fromkeys(("x_column", "target_column", "bias_stride", "second_stride",
                             "gradient_column"), 1)
_TARGET = ("target", "folds", "bias", "prelu", "second", "second_bias")


def _constants(width: int, hidden: int) -> dict:
    if hidden:
        return unit_constants(width, hidden)
    channels = padded(width)
    return {"WIDTH": width, "HIDDEN": 0, "PADDED": channels, "CHUNK": channels, "UNITS": 16}


def _specimens(function, labels: dict[str, int], **absent) -> list[Specimen]:
    return [specimen(function, label, {**_constants(width, 0 if absent else 36), **_CONTIGUOUS, **absent, "PRECISION": "ieee"})
            for label, width in labels.items()]


_WIDTHS = {"alimama": 8, "beauty": 64, "256": 256}
POOL = Kernel(sequence_pool_kernel, "forward", _SIGNATURE,
              [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2), Config(STEPS=32, num_warps=4),
               Config(STEPS=16, num_warps=8), Config(STEPS=32, num_warps=8)],
              [*_specimens(sequence_pool_kernel, _WIDTHS),
               *_specimens(sequence_pool_kernel, {"beauty without target": 64}, **dict.fromkeys(_TARGET))])
# The sums of three matrices [CHUNK, UNITS] stay in registers over all histories of a program.
BACKWARD = Kernel(sequence_pool_backward_kernel, "backward", _SIGNATURE,
                  [Config(STEPS=16, num_warps=8), Config(STEPS=16, num_warps=4), Config(STEPS=32, num_warps=8),
                   Config(STEPS=32, num_warps=4)],
                  _specimens(sequence_pool_backward_kernel, _WIDTHS), occupancy=0.125)
SPREAD = Kernel(sequence_spread_kernel, "backward", _SIGNATURE,
                [Config(STEPS=16, num_warps=1), Config(STEPS=16, num_warps=2), Config(STEPS=16, num_warps=4)],
                _specimens(sequence_spread_kernel, _WIDTHS, target=None))


def _common(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor]) -> dict:
    constants = _constants(x.shape[1], 0 if target is None else attention[0].shape[0])
    unit = {**dict.fromkeys(_TARGET[1:]), "bias_stride": 0, "second_stride": 0} if target is None else \
        unit_arguments(attention, constants)
    return dict(x=x, offsets=offsets, target=target, x_row=x.stride(0), x_column=x.stride(1),
                target_row=0 if target is None else target.stride(0),
                target_column=0 if target is None else target.stride(1), **unit, **constants, PRECISION=precision())


def forward(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor], max_length: int) -> Tensor:
    """Gives [B, 3 D], or [B, 2 D] without a target."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    shape = rows, (2 if target is None else 3) * width
    if x.numel() == 0:
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    POOL(lambda _: (rows,), (target is None, *bucket(rows, width)), out=out, **_common(x, offsets, target, attention))
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor],
             max_length: int) -> list[Tensor]:
    """Gives the gradients of x, the target and the unit's tensors, in this order."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    others = [*([] if target is None else [target]), *attention]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0 or target is None:
        if x.numel():
            SPREAD(lambda _: (rows,), bucket(rows, width), offsets=offsets, gradient=gradient, dx=dx,
                   gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), WIDTH=width, PADDED=padded(width))
        return [dx, *(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in others)]
    common = _common(x, offsets, target, attention)
    sizes = unit_sizes(width, common["HIDDEN"])
    programs = programs_of(rows, common["PADDED"])
    dtarget = torch.empty(target.shape, dtype=x.dtype, device=x.device)
    share = shares(programs, sum(sizes), like=x)
    BACKWARD(lambda _: (programs, common["PADDED"] // common["CHUNK"]), bucket(rows, width), gradient=gradient, dx=dx, dtarget=dtarget, share=share, rows=rows,
             gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **common)
    unit = [part.view(t.shape) for part, t in zip(summed(share).split(sizes), attention, strict=True)]
    return [dx, dtarget, *unit]
