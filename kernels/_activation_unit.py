"""The local activation unit (DIN) of one history in registers: the weight ``a_t = MLP([x_t, t, x_t − t, x_t ⊙ t])`` of each of
its elements for the target t, one hidden layer of PReLU.

The first layer is folded by its four inputs, and over a history the target is constant, so that what is left is one
matrix a history: ``W x' = M x + m`` with ``M = W₁ + W₃ + W₄ diag(t)`` and ``m = b + (W₂ − W₃) t``; 2 T D H operations
instead of the 8 T D H of the concatenation, and nothing of width 4D.

Backward keeps the history's ``Q = Σ_t x_t ⊗ dhidden_t`` and ``s = Σ_t dhidden_t`` only. From these follow all gradients of
the first layer, ``dW₁ = Q``, ``dW₂ = t ⊗ s``, ``dW₃ = Q − t ⊗ s``, ``dW₄ = diag(t) Q``, ``db = s``, and the target's,
``W₄ ⊙ Q + (W₂ − W₃) s`` summed over the hidden units.

Matrices here are [CHUNK channels, UNITS hidden units], zero in the padding. Of histories wider than CHUNK the hidden layer
is a sum over chunks of channels, and in backward a program has one chunk of the gradients and all of the hidden layer.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel
from ._precision import dot
from ._sequence import normalised, padded, specimen

WIDEST = 64  # channels that a program has gradients of


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
def vector(pointer, start, stride, WIDTH: tl.constexpr, CHUNK: tl.constexpr):
    """Numbers ``start``… of a vector of WIDTH, zeros beyond."""
    column = start + tl.arange(0, CHUNK)
    return tl.load(pointer + column * stride, mask=column < WIDTH, other=0.0)


@triton.jit
def unit_fold_kernel(weight, folds, row_stride, column_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                     PADDED: tl.constexpr, UNITS: tl.constexpr, CHANNELS: tl.constexpr):
    """``W₁ + W₃``, ``W₂ − W₃`` and ``W₄`` of the first layer's weight [HIDDEN, 4 WIDTH], turned and with zeros for
    padding: [3, PADDED, UNITS], which each history's program reads with no mask."""
    channel = tl.program_id(0) * CHANNELS + tl.arange(0, CHANNELS)[:, None]
    unit = tl.arange(0, UNITS)[None, :]
    known = (channel < WIDTH) & (unit < HIDDEN)
    place = weight + unit * row_stride + channel * column_stride
    difference = tl.load(place + 2 * WIDTH * column_stride, mask=known, other=0.0)
    out = folds + channel * UNITS + unit
    tl.store(out, tl.load(place, mask=known, other=0.0) + difference)
    tl.store(out + PADDED * UNITS, tl.load(place + WIDTH * column_stride, mask=known, other=0.0) - difference)
    tl.store(out + 2 * PADDED * UNITS, tl.load(place + 3 * WIDTH * column_stride, mask=known, other=0.0))


@triton.jit
def first_layer(folds, part: tl.constexpr, start, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr):
    """Channels ``start``… of W₁ + W₃ (part 0), W₂ − W₃ (1) or W₄ (2)."""
    channel, unit = start + tl.arange(0, CHUNK)[:, None], tl.arange(0, UNITS)[None, :]
    return tl.load(folds + part * PADDED * UNITS + channel * UNITS + unit)


@triton.jit
def folded(target, folds, start, target_column, WIDTH: tl.constexpr, PADDED: tl.constexpr, CHUNK: tl.constexpr,
           UNITS: tl.constexpr):
    """M of a history's target."""
    t = vector(target, start, target_column, WIDTH, CHUNK)
    return first_layer(folds, 0, start, PADDED, CHUNK, UNITS) + first_layer(folds, 2, start, PADDED, CHUNK, UNITS) * t[:, None]


@triton.jit
def constant_of(target, folds, bias, target_column, bias_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr):
    """m [UNITS] of a history's target."""
    m = vector(bias, 0, bias_stride, HIDDEN, UNITS)
    for start in range(0, PADDED, CHUNK):
        t = vector(target, start, target_column, WIDTH, CHUNK)
        m += tl.sum(first_layer(folds, 1, start, PADDED, CHUNK, UNITS) * t[:, None], axis=0)
    return m


@triton.jit
def hidden_of(x, element, exists, mean, rstd, norm_weight, norm_bias, target, folds, matrix, constant, x_row, x_column,
              norm_weight_stride, norm_bias_stride, target_column, WIDTH: tl.constexpr, PADDED: tl.constexpr,
              CHUNK: tl.constexpr, UNITS: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr):
    """The hidden layer before PReLU [elements, UNITS]. ``matrix`` is M where one chunk holds all channels, and not read
    where it does not."""
    if CHUNK == PADDED:
        h = chunk_of(x, element, exists, 0, mean, rstd, norm_weight, norm_bias, x_row, x_column, norm_weight_stride,
                     norm_bias_stride, WIDTH, CHUNK, NORM)
        hidden = dot(h, matrix, PRECISION)
    else:
        hidden = tl.zeros((element.shape[0], UNITS), tl.float32)
        for start in range(0, PADDED, CHUNK):
            h = chunk_of(x, element, exists, start, mean, rstd, norm_weight, norm_bias, x_row, x_column,
                         norm_weight_stride, norm_bias_stride, WIDTH, CHUNK, NORM)
            hidden += dot(h, folded(target, folds, start, target_column, WIDTH, PADDED, CHUNK, UNITS), PRECISION)
    return hidden + constant[None, :]


@triton.jit
def scored(hidden, slope, second, second_bias):
    """The weights of the elements."""
    return tl.sum(tl.where(hidden > 0, hidden, slope * hidden) * second[None, :], axis=1) + second_bias


@triton.jit
def hidden_gradient(da, hidden, slope, second):
    """Of the hidden layer before PReLU from that of the elements' weights (zero for elements that do not exist), and
    what these elements add to the gradients of PReLU's slope and the second layer's weight, both [UNITS]."""
    positive = hidden > 0
    dactive = da[:, None] * second[None, :]
    dslope = tl.sum(tl.where(positive, 0.0, dactive * hidden), axis=0)
    dsecond = tl.sum(da[:, None] * tl.where(positive, hidden, slope * hidden), axis=0)
    return tl.where(positive, dactive, slope * dactive), dslope, dsecond


@triton.jit
def target_gradient(q, s, folds, start, PADDED: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr):
    """Of a history's target [CHUNK], from its Q and s."""
    return tl.sum(first_layer(folds, 2, start, PADDED, CHUNK, UNITS) * q
                  + first_layer(folds, 1, start, PADDED, CHUNK, UNITS) * s[None, :], axis=1)


@triton.jit
def store_share(place, start, direct, alone, product, dbias, dslope, dsecond, dsecond_bias, WIDTH: tl.constexpr,
                HIDDEN: tl.constexpr, CHUNK: tl.constexpr, UNITS: tl.constexpr):
    """A program's sums over its histories (of Q, t ⊗ s, diag(t) Q, s; of PReLU's slope by unit, of the second layer's
    weight, of its bias by step) in the order of the unit's five tensors. What is not by channel the first chunk stores."""
    channel, unit = start + tl.arange(0, CHUNK)[:, None], tl.arange(0, UNITS)
    first = place + unit[None, :] * (4 * WIDTH) + channel
    known = (channel < WIDTH) & (unit < HIDDEN)[None, :]
    tl.store(first, direct, mask=known)
    tl.store(first + WIDTH, alone, mask=known)
    tl.store(first + 2 * WIDTH, direct - alone, mask=known)
    tl.store(first + 3 * WIDTH, product, mask=known)
    if start == 0:
        place += HIDDEN * 4 * WIDTH
        tl.store(place + unit, dbias, mask=unit < HIDDEN)
        tl.store(place + HIDDEN, tl.sum(dslope, axis=0))
        tl.store(place + HIDDEN + 1 + unit, dsecond, mask=unit < HIDDEN)
        tl.store(place + 2 * HIDDEN + 1, tl.sum(dsecond_bias, axis=0))


def unit_sizes(width: int, hidden: int) -> list[int]:
    """Numbers of the five tensors, as :func:`store_share` lays them."""
    return [hidden * 4 * width, hidden, 1, hidden, 1]


def unit_constants(width: int, hidden: int) -> dict[str, int]:
    channels = padded(width, 16)
    return {"WIDTH": width, "HIDDEN": hidden, "PADDED": channels, "CHUNK": min(channels, WIDEST), "UNITS": padded(hidden, 16)}


FOLD = Kernel(unit_fold_kernel, "forward",
              {"weight": "*fp32", "folds": "*fp32", "row_stride": "i32", "column_stride": "i32"},
              [Config(num_warps=4, CHANNELS=16)],
              [specimen(unit_fold_kernel, label, {**unit_constants(width, 36), "column_stride": 1})
               for label, width in (("alimama", 8), ("beauty", 64))])


def unit_arguments(weights: list[Tensor], constants: dict[str, int]) -> dict:
    """The kernels' arguments of the unit's five tensors, the first one folded."""
    first, bias, prelu, second, second_bias = weights
    folds = torch.empty((3, constants["PADDED"], constants["UNITS"]), dtype=first.dtype, device=first.device)
    shape = {name: constants[name] for name in ("WIDTH", "HIDDEN", "PADDED", "UNITS")}
    FOLD(lambda blocks: (constants["PADDED"] // blocks["CHANNELS"],), weight=first, folds=folds,
         row_stride=first.stride(0), column_stride=first.stride(1), **shape)
    return dict(folds=folds, bias=bias, prelu=prelu, second=second, second_bias=second_bias, bias_stride=bias.stride(0),
                second_stride=second.stride(1))


def programs_of(rows: int, channels: int) -> int:
    """Programs of a backward pass, each over every so many-th history: enough for the machine, few enough that their
    shares of the weights' gradients weigh little against the histories."""
    return min(rows, max(256, min(1024, 16384 // channels)))
