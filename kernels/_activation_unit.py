"""The local activation unit (DIN) of a history: the weight ``a_t = MLP([x_t, t, x_t − t, x_t ⊙ t])`` of each of its elements
for the target t, one hidden layer of H units and PReLU.

The first layer is folded by its four inputs, and over a history the target is constant, so that what is left is one
matrix a history: ``W x' = M x + m`` with ``M = W₁ + W₃ + W₄ diag(t)`` and ``m = b + (W₂ − W₃) t``; 2 T D H operations
instead of the 8 T D H of the concatenation, and nothing of width 4D. The hidden units are computed GROUP at a time, which
keeps products small (registers) and pads 36 units to 48.

Backward recomputes them. With ``dhidden = da w₂ᵀ ⊙ PReLU'`` the gradient of x is ``(W₁ + W₃)ᵀ dhidden + t ⊙ r`` with
``r = W₄ᵀ dhidden``, and that of the target ``Σ_t x_t ⊙ r_t + (W₂ − W₃)ᵀ Σ_t dhidden_t``; these are found by the kernel of the
operation, in which the unit stands. The weights' gradients are a kernel here: with ``Q = Σ_t x_t ⊗ dhidden_t`` and
``s = Σ_t dhidden_t`` of a history ``dW₁ = Q``, ``dW₂ = t ⊗ s``, ``dW₃ = Q − t ⊗ s``, ``dW₄ = diag(t) Q`` and ``db = s``, summed over
histories in registers. It reads da, four bytes an element, which the operation's kernel leaves in scratch.

Matrices here are [channels, hidden units], zero in the padding.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, bucket
from ._precision import dot, precision
from ._sequence import norm_tensors, normalised, padded, shares, specimen, summed

GROUP = tl.constexpr(16)  # hidden units of a product
WIDEST = 64               # channels of which a program has the gradients
PROGRAMS = 512            # of the weights' gradient, about


@triton.jit
def vector(pointer, start, stride, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Numbers ``start``… of a vector of WIDTH, zeros beyond."""
    column = start + tl.arange(0, CHUNK)
    return tl.load(pointer + column * stride, mask=column < WIDTH, other=0.0)


@triton.jit
def row_statistics(x, element, exists, x_row, x_column, WIDTH: tl.constexpr, PADDED: tl.constexpr, NORM: tl.constexpr):
    """Mean and 1 / √(variance + ε) of rows [elements, 1]; 0 and 1 without a norm."""
    if NORM:
        column = tl.arange(0, PADDED)[None, :]
        h = tl.load(x + element[:, None] * x_row + column * x_column, mask=exists[:, None] & (column < WIDTH), other=0.0)
        _, rstd = normalised(h, column < WIDTH, WIDTH)
        mean = tl.sum(h, axis=1, keep_dims=True) / WIDTH
    else:
        mean = tl.zeros((element.shape[0], 1), tl.float32)
        rstd = mean + 1.0
    return mean, rstd


@triton.jit
def chunk_of(x, element, exists, start, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
             norm_bias_stride, WIDTH: tl.constexpr, CHUNK: tl.constexpr, NORM: tl.constexpr):
    """Channels ``start``… of rows after the norm [elements, CHUNK]; zeros of rows that do not exist."""
    column = start + tl.arange(0, CHUNK)
    inside = exists[:, None] & (column < WIDTH)[None, :]
    h = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
    if NORM:
        gain = tl.load(norm_weight + column * norm_weight_stride, mask=column < WIDTH, other=0.0)[None, :]
        shifted = tl.load(norm_bias + column * norm_bias_stride, mask=column < WIDTH, other=0.0)[None, :]
        h = tl.where(inside, (h - mean) * rstd * gain + shifted, 0.0)
    return h


@triton.jit
def first_layer(folds, part: tl.constexpr, start, first, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr):
    """Channels ``start``… and units ``first``… of W₁ + W₃ (part 0), W₂ − W₃ (1) or W₄ (2)."""
    channel, unit = start + tl.arange(0, CHUNK)[:, None], first + tl.arange(0, GROUP)[None, :]
    return tl.load(folds + part * PADDED * UNITS + channel * UNITS + unit)


@triton.jit
def add_part(hidden, constant, x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, start, first, x_row,
             x_column, norm_weight_stride, norm_bias_stride, target_column, WIDTH: tl.constexpr, PADDED: tl.constexpr,
             PART: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr):
    """What channels ``start``… add to ``M x`` and to m of the units ``first``…"""
    t = vector(target, start, target_column, WIDTH, PART)[:, None]
    h = chunk_of(x, element, exists, start, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                 norm_bias_stride, WIDTH, PART, NORM)
    matrix = first_layer(folds, 0, start, first, PADDED, PART, UNITS)
    matrix += first_layer(folds, 2, start, first, PADDED, PART, UNITS) * t
    constant += tl.sum(first_layer(folds, 1, start, first, PADDED, PART, UNITS) * t, axis=0)
    return hidden + dot(h, matrix, PRECISION), constant


@triton.jit
def hidden_units(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, bias, first, x_row, x_column,
                 norm_weight_stride, norm_bias_stride, target_column, bias_stride, WIDTH: tl.constexpr,
                 HIDDEN: tl.constexpr, PADDED: tl.constexpr, PART: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr,
                 PRECISION: tl.constexpr):
    """Units ``first``… before PReLU [elements, GROUP], summed up over parts of the channels."""
    unit = first + tl.arange(0, GROUP)
    constant = tl.load(bias + unit * bias_stride, mask=unit < HIDDEN, other=0.0)
    hidden = tl.zeros((element.shape[0], GROUP), tl.float32)
    if PADDED <= 2 * PART:
        for start in tl.static_range(0, PADDED, PART):
            hidden, constant = add_part(hidden, constant, x, element, exists, mean, rstd, norm_weight, norm_bias, target,
                                        folds, start, first, x_row, x_column, norm_weight_stride, norm_bias_stride,
                                        target_column, WIDTH, PADDED, PART, UNITS, NORM, PRECISION)
    else:  # unrolled, this many parts would not stay in registers
        for start in range(0, PADDED, PART):
            hidden, constant = add_part(hidden, constant, x, element, exists, mean, rstd, norm_weight, norm_bias, target,
                                        folds, start, first, x_row, x_column, norm_weight_stride, norm_bias_stride,
                                        target_column, WIDTH, PADDED, PART, UNITS, NORM, PRECISION)
    return hidden + constant[None, :]


@triton.jit
def units_score(hidden, first, alpha, second, second_stride, HIDDEN: tl.constexpr):
    """What the units ``first``… add to the elements' weights."""
    w = vector(second, first, second_stride, HIDDEN, GROUP)[None, :]
    return tl.sum(tl.where(hidden > 0, hidden, alpha * hidden) * w, axis=1)


@triton.jit
def hidden_gradient(da, hidden, first, alpha, second, second_stride, HIDDEN: tl.constexpr):
    """Of the hidden units before PReLU from that of the elements' weights (zero for elements that do not exist)."""
    dactive = da[:, None] * vector(second, first, second_stride, HIDDEN, GROUP)[None, :]
    return tl.where(hidden > 0, dactive, alpha * dactive)


@triton.jit
def add_gradients(dh, r, dt, dhidden, folds, own, first, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr,
                  PRECISION: tl.constexpr):
    """``dh``, ``r`` [elements, CHUNK] and the target's ``dt`` [CHUNK] with what the units ``first``… add, but for t ⊙ r
    and x ⊙ r."""
    dh += dot(dhidden, tl.trans(first_layer(folds, 0, own, first, PADDED, CHUNK, UNITS)), PRECISION)
    r += dot(dhidden, tl.trans(first_layer(folds, 2, own, first, PADDED, CHUNK, UNITS)), PRECISION)
    s = tl.sum(dhidden, axis=0)[None, :]
    return dh, r, dt + tl.sum(first_layer(folds, 1, own, first, PADDED, CHUNK, UNITS) * s, axis=1)


@triton.jit
def unit_fold_kernel(weight, folds, row_stride, column_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                     PADDED: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr):
    """``W₁ + W₃``, ``W₂ − W₃`` and ``W₄`` of the first layer's weight [HIDDEN, 4 WIDTH], turned and with zeros for
    padding: [3, PADDED, UNITS], which each history's program reads with no mask."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    unit = tl.program_id(1) * GROUP + tl.arange(0, GROUP)[None, :]
    known = (channel < WIDTH) & (unit < HIDDEN)
    place = weight + unit * row_stride + channel * column_stride
    difference = tl.load(place + 2 * WIDTH * column_stride, mask=known, other=0.0)
    out = folds + channel * UNITS + unit
    tl.store(out, tl.load(place, mask=known, other=0.0) + difference)
    tl.store(out + PADDED * UNITS, tl.load(place + WIDTH * column_stride, mask=known, other=0.0) - difference)
    tl.store(out + 2 * PADDED * UNITS, tl.load(place + 3 * WIDTH * column_stride, mask=known, other=0.0))


@triton.jit
def unit_weight_kernel(x, offsets, norm_weight, norm_bias, target, folds, bias, prelu, second, da, share, rows, x_row,
                       x_column, norm_weight_stride, norm_bias_stride, target_row, target_column, bias_stride,
                       second_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr, PADDED: tl.constexpr, PART: tl.constexpr,
                       CHUNK: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
                       STEPS: tl.constexpr):
    """A share of the weights' gradients, of every so many-th history. The grid's second axis goes over groups of units,
    the third over chunks of channels."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    first, own = tl.program_id(1) * GROUP, tl.program_id(2) * CHUNK
    alpha = tl.load(prelu)
    w = vector(second, first, second_stride, HIDDEN, GROUP)
    direct = tl.zeros((CHUNK, GROUP), tl.float32)
    alone = tl.zeros((CHUNK, GROUP), tl.float32)
    product = tl.zeros((CHUNK, GROUP), tl.float32)
    dbias = tl.zeros((GROUP,), tl.float32)
    dalpha = tl.zeros((GROUP,), tl.float32)
    dsecond = tl.zeros((GROUP,), tl.float32)
    dsecond_bias = tl.zeros((STEPS,), tl.float32)
    for row in range(program, rows, programs):
        history = tl.cast(row, tl.int64)
        begin, end = tl.load(offsets + history), tl.load(offsets + history + 1)
        t_row = target + history * target_row
        q = tl.zeros((CHUNK, GROUP), tl.float32)
        s = tl.zeros((GROUP,), tl.float32)
        for step in range(0, (end - begin).to(tl.int32), STEPS):
            element = begin + step + tl.arange(0, STEPS)
            exists = element < end
            mean, rstd = row_statistics(x, element, exists, x_row, x_column, WIDTH, PADDED, NORM)
            hidden = hidden_units(x, element, exists, mean, rstd, norm_weight, norm_bias, t_row, folds, bias, first, x_row,
                                  x_column, norm_weight_stride, norm_bias_stride, target_column, bias_stride, WIDTH,
                                  HIDDEN, PADDED, PART, UNITS, NORM, PRECISION)
            d = tl.load(da + element, mask=exists, other=0.0)
            dactive = d[:, None] * w[None, :]
            positive = hidden > 0
            dalpha += tl.sum(tl.where(positive, 0.0, dactive * hidden), axis=0)
            dsecond += tl.sum(d[:, None] * tl.where(positive, hidden, alpha * hidden), axis=0)
            dsecond_bias += d
            dhidden = tl.where(positive, dactive, alpha * dactive)
            h = chunk_of(x, element, exists, own, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, CHUNK, NORM)
            q += dot(tl.trans(h), dhidden, PRECISION)
            s += tl.sum(dhidden, axis=0)
        t = vector(t_row, own, target_column, WIDTH, CHUNK)[:, None]
        direct += q
        alone += t * s[None, :]
        product += t * q
        dbias += s
    groups: tl.constexpr = UNITS // GROUP
    place = share + tl.cast(program, tl.int64) * (HIDDEN * (4 * WIDTH + 2) + groups + 1)
    channel, unit = own + tl.arange(0, CHUNK)[:, None], first + tl.arange(0, GROUP)
    known = (channel < WIDTH) & (unit < HIDDEN)[None, :]
    matrix = place + unit[None, :] * (4 * WIDTH) + channel
    tl.store(matrix, direct, mask=known)
    tl.store(matrix + WIDTH, alone, mask=known)
    tl.store(matrix + 2 * WIDTH, direct - alone, mask=known)
    tl.store(matrix + 3 * WIDTH, product, mask=known)
    if own == 0:
        place += HIDDEN * 4 * WIDTH
        tl.store(place + unit, dbias, mask=unit < HIDDEN)
        tl.store(place + HIDDEN + unit, dsecond, mask=unit < HIDDEN)
        tl.store(place + 2 * HIDDEN + tl.program_id(1), tl.sum(dalpha, axis=0))
        if first == 0:
            tl.store(place + 2 * HIDDEN + groups, tl.sum(dsecond_bias, axis=0))


def unit_constants(width: int, hidden: int, direction: str) -> dict[str, int]:
    """Padded sizes: all channels, of a part of the hidden units' sum, in backward of a program's gradients; all units. How
    wide parts may be is what registers hold beside the rest (measured, ``ameir-fast bench kernels --compile-only``)."""
    channels = padded(width, 16)
    constants = {"WIDTH": width, "HIDDEN": hidden, "PADDED": channels, "UNITS": triton.cdiv(hidden, GROUP.value) * GROUP.value}
    if direction == "backward":
        return {**constants, "PART": 16, "CHUNK": min(channels, WIDEST)}
    return {**constants, "PART": 32 if channels in (32, 64) else 16}


FOLD = Kernel(unit_fold_kernel, "forward",
              {"weight": "*fp32", "folds": "*fp32", "row_stride": "i32", "column_stride": "i32"},
              [Config(num_warps=4, CHANNELS=16)],
              [specimen(unit_fold_kernel, label, {**unit_constants(width, 36, "forward"), "column_stride": 1})
               for label, width in (("alimama", 8), ("beauty", 64))])
WEIGHT = Kernel(unit_weight_kernel, "backward",
                {**dict.fromkeys(("x", "norm_weight", "norm_bias", "target", "folds", "bias", "prelu", "second", "da", "share"),
                                 "*fp32"), "offsets": "*i64",
                 **dict.fromkeys(("rows", "x_row", "x_column", "norm_weight_stride", "norm_bias_stride", "target_row",
                                  "target_column", "bias_stride", "second_stride"), "i32")},
                [Config(STEPS=16, num_warps=8), Config(STEPS=16, num_warps=4), Config(STEPS=16, num_warps=2),
                 Config(STEPS=32, num_warps=8)],
                [specimen(unit_weight_kernel, label, {
                    **unit_constants(width, 36, "backward"), "NORM": True, "PRECISION": "ieee", **dict.fromkeys(
                        ("x_column", "norm_weight_stride", "norm_bias_stride", "target_column", "bias_stride",
                         "second_stride"), 1)}) for label, width in (("alimama", 8), ("beauty", 64), ("256", 256))], occupancy=0.125)


_kept = threading.local()


@contextlib.contextmanager
def keeping_folds(folds: dict) -> Iterator[None]:
    """Within it folds are made once and then taken from ``folds``: for weights that stay as they are and where they are for
    as long as ``folds`` is in use."""
    _kept.folds = folds
    try:
        yield
    finally:
        _kept.folds = None


def folded(weight: Tensor, constants: dict[str, int]) -> Tensor:
    """The first layer's weight as :func:`unit_fold_kernel` leaves it."""
    kept, key = getattr(_kept, "folds", None), (weight.data_ptr(), weight.shape, weight.stride())
    if kept is not None and key in kept:
        return kept[key]
    folds = torch.empty((3, constants["PADDED"], constants["UNITS"]), dtype=weight.dtype, device=weight.device)
    FOLD(lambda blocks: (constants["PADDED"] // blocks["CHANNELS"], constants["UNITS"] // GROUP.value), weight=weight,
         folds=folds, row_stride=weight.stride(0), column_stride=weight.stride(1),
         **{name: constants[name] for name in ("WIDTH", "HIDDEN", "PADDED", "UNITS")})
    if kept is not None:
        kept[key] = folds
    return folds


def unit_arguments(weights: list[Tensor], constants: dict[str, int]) -> dict:
    """The kernels' arguments of the unit's five tensors, the first one folded."""
    first, bias, prelu, second, second_bias = weights
    folds = folded(first, constants)
    return dict(folds=folds, bias=bias, prelu=prelu, second=second, second_bias=second_bias, bias_stride=bias.stride(0),
                second_stride=second.stride(1))


def unit_gradients(x: Tensor, offsets: Tensor, norm: list[Tensor], target: Tensor, weights: list[Tensor], unit: dict,
                   da: Tensor) -> list[Tensor]:
    """Gradients of the five tensors from that of the elements' weights ``da`` [ΣT]; ``unit`` is what
    :func:`unit_arguments` gave."""
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    rows, (hidden, width) = offsets.shape[0] - 1, (weights[0].shape[0], x.shape[1])
    constants = unit_constants(width, hidden, "backward")
    groups, chunks = constants["UNITS"] // GROUP.value, constants["PADDED"] // constants["CHUNK"]
    programs = min(rows, max(1, PROGRAMS // chunks))
    sizes = [hidden * 4 * width, hidden, hidden, groups, 1]
    share = shares(programs, sum(sizes), like=x)
    WEIGHT(lambda _: (programs, groups, chunks), bucket(rows, width), x=x, offsets=offsets, norm_weight=norm_weight,
           norm_bias=norm_bias, target=target, da=da, share=share, rows=rows, x_row=x.stride(0), x_column=x.stride(1),
           norm_weight_stride=norm_weight_stride, norm_bias_stride=norm_bias_stride, target_row=target.stride(0),
           target_column=target.stride(1), NORM=bool(norm), PRECISION=precision(), **constants,
           **{name: value for name, value in unit.items() if name != "second_bias"})
    first, bias, second, alpha, second_bias = summed(share).split(sizes)
    found = [first, bias, alpha.sum(), second, second_bias]
    return [part.view(t.shape) for part, t in zip(found, weights, strict=True)]
