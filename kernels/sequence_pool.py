"""What becomes of a history's elements: ``[Σ_t x_t, x_last, Σ_t a_t x_t]`` with the weights of the local activation unit
(paper section 2.1, Stage 1), in one pass; without a target the third part is absent. Zeros for a history without elements.

A program takes one history, a tile of steps at a time: each element is read once, 4 D bytes, and 3 D numbers written for
the whole history; 2 D H operations an element for the weights (``_activation_unit``).

Backward recomputes the weights. With g = [g_sum, g_last, g_att] of a history,
``dx_t = g_sum + [t = last] g_last + a_t g_att + (what the unit gives for da_t = g_att · x_t)``: again one pass of a program
for each history, 8 D bytes an element, and one of the unit's own for its weights.
"""

from __future__ import annotations

import torch
import triton.language as tl
import triton
from torch import Tensor

from ._activation_unit import (GROUP, add_gradients, chunk_of, hidden_gradient, hidden_units, unit_arguments, unit_constants,
                               unit_gradients, units_score, vector)
from ._launch import Config, Kernel, Specimen, bucket
from ._precision import precision
from ._sequence import padded, specimen


@triton.jit
def sequence_pool_kernel(x, offsets, target, folds, bias, prelu, second, second_bias, out, x_row, x_column, target_row,
                         target_column, bias_stride, second_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                         PADDED: tl.constexpr, PART: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
                         STEPS: tl.constexpr):
    history = tl.program_id(0).to(tl.int64)
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    column = tl.arange(0, PADDED)
    known = column < WIDTH
    total = tl.zeros((PADDED,), tl.float32)
    mixed = tl.zeros((PADDED,), tl.float32)
    if target is not None:
        target += history * target_row
        alpha, b = tl.load(prelu), tl.load(second_bias)
    for step in range(0, (end - begin).to(tl.int32), STEPS):
        element = begin + step + tl.arange(0, STEPS)
        exists = element < end
        h = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=exists[:, None] & known[None, :],
                    other=0.0)
        total += tl.sum(h, axis=0)
        if target is not None:
            a = tl.zeros((STEPS,), tl.float32) + b
            for first in range(0, UNITS, GROUP):
                hidden = hidden_units(x, element, exists, 0.0, 1.0, None, None, target, folds, bias, first, x_row, x_column,
                                      0, 0, target_column, bias_stride, WIDTH, HIDDEN, PADDED, PART, UNITS, False, PRECISION)
                a += units_score(hidden, first, alpha, second, second_stride, HIDDEN)
            mixed += tl.sum(a[:, None] * h, axis=0)
    last = tl.load(x + (end - 1) * x_row + column * x_column, mask=known & (end > begin), other=0.0)
    place = out + history * ((2 if target is None else 3) * WIDTH) + column
    tl.store(place, total, mask=known)
    tl.store(place + WIDTH, last, mask=known)
    if target is not None:
        tl.store(place + 2 * WIDTH, mixed, mask=known)


@triton.jit
def sequence_pool_backward_kernel(x, offsets, target, folds, bias, prelu, second, second_bias, gradient, dx, dtarget, da,
                                  x_row, x_column, target_row, target_column, bias_stride, second_stride, gradient_row,
                                  gradient_column, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr,
                                  PART: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr, PRECISION: tl.constexpr,
                                  STEPS: tl.constexpr):
    """Gradients of x, the target and the elements' weights. The grid's second axis goes over chunks of channels."""
    history = tl.program_id(0).to(tl.int64)
    own = tl.program_id(1) * CHUNK
    begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
    target += history * target_row
    g_sum = gradient + history * gradient_row
    g_last, g_mixed = g_sum + WIDTH * gradient_column, g_sum + 2 * WIDTH * gradient_column
    alpha, b = tl.load(prelu), tl.load(second_bias)
    t = vector(target, own, target_column, WIDTH, CHUNK)
    dt = tl.zeros((CHUNK,), tl.float32)
    column = own + tl.arange(0, CHUNK)
    for step in range(0, (end - begin).to(tl.int32), STEPS):
        element = begin + step + tl.arange(0, STEPS)
        exists = element < end
        d = tl.zeros((STEPS,), tl.float32)
        for part in range(0, PADDED, PART):
            h = chunk_of(x, element, exists, part, 0.0, 1.0, None, None, x_row, x_column, 0, 0, WIDTH, PART, False)
            d += tl.sum(h * vector(g_mixed, part, gradient_column, WIDTH, PART)[None, :], axis=1)
        if own == 0:
            tl.store(da + element, d, mask=exists)
        a = tl.zeros((STEPS,), tl.float32) + b
        dh = tl.zeros((STEPS, CHUNK), tl.float32)
        r = tl.zeros((STEPS, CHUNK), tl.float32)
        for first in range(0, UNITS, GROUP):
            hidden = hidden_units(x, element, exists, 0.0, 1.0, None, None, target, folds, bias, first, x_row, x_column, 0, 0,
                                  target_column, bias_stride, WIDTH, HIDDEN, PADDED, PART, UNITS, False, PRECISION)
            a += units_score(hidden, first, alpha, second, second_stride, HIDDEN)
            dhidden = hidden_gradient(d, hidden, first, alpha, second, second_stride, HIDDEN)
            dh, r, dt = add_gradients(dh, r, dt, dhidden, folds, own, first, PADDED, CHUNK, UNITS, PRECISION)
        h = chunk_of(x, element, exists, own, 0.0, 1.0, None, None, x_row, x_column, 0, 0, WIDTH, CHUNK, False)
        dt += tl.sum(h * r, axis=0)
        dh += t[None, :] * r + vector(g_sum, own, gradient_column, WIDTH, CHUNK)[None, :]
        dh += a[:, None] * vector(g_mixed, own, gradient_column, WIDTH, CHUNK)[None, :]
        dh += tl.where((element == end - 1)[:, None], vector(g_last, own, gradient_column, WIDTH, CHUNK)[None, :], 0.0)
        tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=exists[:, None] & (column < WIDTH)[None, :])
    tl.store(dtarget + history * WIDTH + column, dt, mask=column < WIDTH)


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
    for step in range(0, (end - begin).to(tl.int32), STEPS):
        element = begin + step + tl.arange(0, STEPS)
        dh = g_sum[None, :] + tl.where((element == end - 1)[:, None], g_last[None, :], 0.0)
        tl.store(dx + element[:, None] * WIDTH + column[None, :], dh, mask=(element < end)[:, None] & known[None, :])


_SIGNATURE = {**dict.fromkeys(("x", "target", "folds", "bias", "prelu", "second", "second_bias", "out", "gradient", "dx",
                               "dtarget", "da"), "*fp32"), "offsets": "*i64",
              **dict.fromkeys(("x_row", "x_column", "target_row", "target_column", "bias_stride", "second_stride",
                               "gradient_row", "gradient_column"), "i32")}
_CONTIGUOUS = dict.fromkeys(("x_column", "target_column", "bias_stride", "second_stride",
                             "gradient_column"), 1)
_TARGET = ("target", "folds", "bias", "prelu", "second", "second_bias")


def _constants(width: int, hidden: int, direction: str) -> dict:
    if hidden:
        return unit_constants(width, hidden, direction)
    channels = padded(width)
    return {"WIDTH": width, "HIDDEN": 0, "PADDED": channels, "PART": channels, "UNITS": 16}


def _specimens(function, labels: dict[str, int], direction: str, **absent) -> list[Specimen]:
    return [specimen(function, label, {**_constants(width, 0 if absent else 36, direction), **_CONTIGUOUS, **absent,
                                       "PRECISION": "ieee"}) for label, width in labels.items()]


_WIDTHS = {"alimama": 8, "beauty": 64, "128": 128, "256": 256}
POOL = Kernel(sequence_pool_kernel, "forward", _SIGNATURE,
              [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=4, maxnreg=152), Config(STEPS=16, num_warps=2),
               Config(STEPS=32, num_warps=4), Config(STEPS=16, num_warps=8), Config(STEPS=32, num_warps=8)],
              [*_specimens(sequence_pool_kernel, _WIDTHS, "forward"),
               *_specimens(sequence_pool_kernel, {"beauty without target": 64}, "forward",
                            **dict.fromkeys(_TARGET))],
              # Of the widths between, the assembler spills a few for one more block.
              occupancy=0.1875, default=lambda arguments: 1 if 8 < arguments["WIDTH"] <= 128 else 0)
BACKWARD = Kernel(sequence_pool_backward_kernel, "backward", _SIGNATURE,
                  [Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2), Config(STEPS=32, num_warps=4),
                   Config(STEPS=16, num_warps=8)],
                  _specimens(sequence_pool_backward_kernel, _WIDTHS, "backward"), occupancy=0.125)
SPREAD = Kernel(sequence_spread_kernel, "backward", _SIGNATURE,
                [Config(STEPS=16, num_warps=1), Config(STEPS=16, num_warps=2), Config(STEPS=16, num_warps=4)],
                _specimens(sequence_spread_kernel, _WIDTHS, "backward", target=None), occupancy=0.1875)


def _common(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor],
            direction: str) -> tuple[dict, dict]:
    """Arguments of forward and backward, and those of them that are the unit's."""
    constants = _constants(x.shape[1], 0 if target is None else attention[0].shape[0], direction)
    unit = {**dict.fromkeys(_TARGET[1:]), "bias_stride": 0, "second_stride": 0} if target is None else \
        unit_arguments(attention, constants)
    return dict(x=x, offsets=offsets.contiguous(), target=target, x_row=x.stride(0),
                x_column=x.stride(1),
                target_row=0 if target is None else target.stride(0),
                target_column=0 if target is None else target.stride(1), **unit, **constants, PRECISION=precision()), unit


def forward(x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor], max_length: int) -> Tensor:
    """Gives [B, 3 D], or [B, 2 D] without a target."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    shape = rows, (2 if target is None else 3) * width
    if x.numel() == 0:
        return torch.zeros(shape, dtype=x.dtype, device=x.device)
    out = torch.empty(shape, dtype=x.dtype, device=x.device)
    common, _ = _common(x, offsets, target, attention, "forward")
    POOL(lambda _: (rows,), (target is None, *bucket(rows, width)), out=out, **common)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, target: Tensor | None, attention: list[Tensor],
             max_length: int) -> list[Tensor]:
    """Gives the gradients of x, the target and the unit's tensors, in this order."""
    rows, width = offsets.shape[0] - 1, x.shape[1]
    others = [*([] if target is None else [target]), *attention]
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    if x.numel() == 0 or target is None:
        if x.numel():
            SPREAD(lambda _: (rows,), bucket(rows, width), offsets=offsets.contiguous(), gradient=gradient, dx=dx,
                   gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), WIDTH=width, PADDED=padded(width))
        return [dx, *(torch.zeros(t.shape, dtype=t.dtype, device=t.device) for t in others)]
    common, unit = _common(x, offsets, target, attention, "backward")
    dtarget = torch.empty(target.shape, dtype=x.dtype, device=x.device)
    da = torch.empty(x.shape[0], dtype=x.dtype, device=x.device)
    BACKWARD(lambda _: (rows, common["PADDED"] // common["CHUNK"]), bucket(rows, width), gradient=gradient, dx=dx,
             dtarget=dtarget, da=da, gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **common)
    return [dx, dtarget, *unit_gradients(x, common["offsets"], [], target, attention, unit, da)]
