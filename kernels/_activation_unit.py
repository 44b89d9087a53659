"""The local activation unit (DIN) of one history in registers: the weight ``a_t = MLP([x_t, t, x_t − t, x_t ⊙ t])`` of each of
its elements for the target t, one hidden layer of PReLU.

The first layer is folded by its four inputs, and over a history the target is constant, so that what is left is one
matrix a history: ``W x' = M x + m`` with ``M = W₁ + W₃ + W₄ diag(t)`` and ``m = b + (W₂ − W₃) t``; 2 T D H operations
instead of the 8 T D H of the concatenation, and nothing of width 4D.

Backward keeps the history's ``Q = Σ_t x_t ⊗ dhidden_t`` and ``s = Σ_t dhidden_t`` only. From these follow all gradients of
the first layer, ``dW₁ = Q``, ``dW₂ = t ⊗ s``, ``dW₃ = Q − t ⊗ s``, ``dW₄ = diag(t) Q``, ``db = s``, and the target's,
``W₄ ⊙ Q + (W₂ − W₃) s`` summed over the hidden units.

Matrices here are [channels, hidden], both padded to at least 16, zero in the padding.
"""

from __future__ import annotations

import triton
import triton.language as tl

from ._precision import dot


@triton.jit
def first_layer(weight, part: tl.constexpr, row_stride, column_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                PADDED: tl.constexpr, UNITS: tl.constexpr):
    """One of the four parts of the first layer's weight [HIDDEN, 4 WIDTH], turned: [PADDED, UNITS]."""
    channel, unit = tl.arange(0, PADDED)[:, None], tl.arange(0, UNITS)[None, :]
    return tl.load(weight + unit * row_stride + (part * WIDTH + channel) * column_stride,
                   mask=(channel < WIDTH) & (unit < HIDDEN), other=0.0)


@triton.jit
def folded(target, weight, bias, weight_row, weight_column, bias_stride, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
           PADDED: tl.constexpr, UNITS: tl.constexpr):
    """M [PADDED, UNITS] and m [UNITS] of the target [PADDED]."""
    with_difference = first_layer(weight, 2, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS)
    alone = first_layer(weight, 1, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS) - with_difference
    unit = tl.arange(0, UNITS)
    constant = tl.load(bias + unit * bias_stride, mask=unit < HIDDEN, other=0.0) + tl.sum(alone * target[:, None], axis=0)
    matrix = (first_layer(weight, 0, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS) + with_difference
              + first_layer(weight, 3, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS) * target[:, None])
    return matrix, constant


@triton.jit
def scored(h, matrix, constant, prelu, second, second_bias, PRECISION: tl.constexpr):
    """The hidden layer before PReLU [steps, UNITS], and the weights of the elements [steps]."""
    hidden = dot(h, matrix, PRECISION) + constant[None, :]
    active = tl.where(hidden > 0, hidden, prelu * hidden)
    return hidden, tl.sum(active * second[None, :], axis=1) + second_bias


@triton.jit
def hidden_gradient(da, hidden, prelu, second):
    """Of the hidden layer before PReLU from that of the elements' weights (zero for elements that do not exist), and
    what these elements add to the gradients of PReLU's slope and the second layer's weight, both [UNITS]."""
    positive = hidden > 0
    dactive = da[:, None] * second[None, :]
    dprelu = tl.sum(tl.where(positive, 0.0, dactive * hidden), axis=0)
    dsecond = tl.sum(da[:, None] * tl.where(positive, hidden, prelu * hidden), axis=0)
    return tl.where(positive, dactive, prelu * dactive), dprelu, dsecond


@triton.jit
def target_gradient(q, s, weight, weight_row, weight_column, WIDTH: tl.constexpr, HIDDEN: tl.constexpr,
                    PADDED: tl.constexpr, UNITS: tl.constexpr):
    """Of a history's target [PADDED], from its Q and s."""
    alone = (first_layer(weight, 1, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS)
             - first_layer(weight, 2, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS))
    product = first_layer(weight, 3, weight_row, weight_column, WIDTH, HIDDEN, PADDED, UNITS)
    return tl.sum(product * q + alone * s[None, :], axis=1)


@triton.jit
def store_share(place, direct, alone, product, dbias, dprelu, dsecond, dsecond_bias, WIDTH: tl.constexpr,
                HIDDEN: tl.constexpr, PADDED: tl.constexpr, UNITS: tl.constexpr):
    """A program's sums over its histories (of Q, t ⊗ s, diag(t) Q, s; of PReLU's slope by unit, of the second layer's
    weight, of its bias by step) in the order of the unit's five tensors."""
    channel, unit = tl.arange(0, PADDED)[:, None], tl.arange(0, UNITS)
    first = place + unit[None, :] * (4 * WIDTH) + channel
    known = (channel < WIDTH) & (unit < HIDDEN)[None, :]
    tl.store(first, direct, mask=known)
    tl.store(first + WIDTH, alone, mask=known)
    tl.store(first + 2 * WIDTH, direct - alone, mask=known)
    tl.store(first + 3 * WIDTH, product, mask=known)
    place += HIDDEN * 4 * WIDTH
    tl.store(place + unit, dbias, mask=unit < HIDDEN)
    tl.store(place + HIDDEN, tl.sum(dprelu, axis=0))
    tl.store(place + HIDDEN + 1 + unit, dsecond, mask=unit < HIDDEN)
    tl.store(place + 2 * HIDDEN + 1, tl.sum(dsecond_bias, axis=0))


def unit_sizes(width: int, hidden: int) -> list[int]:
    """Numbers of the five tensors, as :func:`store_share` lays them."""
    return [hidden * 4 * width, hidden, 1, hidden, 1]


def unit_arguments(weights: list) -> dict:
    """The kernels' arguments of the unit's five tensors."""
    first, bias, prelu, second, second_bias = weights
    return dict(weight=first, bias=bias, prelu=prelu, second=second, second_bias=second_bias, weight_row=first.stride(0),
                weight_column=first.stride(1), bias_stride=bias.stride(0), second_stride=second.stride(1))


def programs_of(rows: int, padded_width: int) -> int:
    """Programs of a backward pass, each over every so many-th history: enough for the machine, few enough that their
    shares of the weights' gradients weigh little against the histories."""
    return min(rows, max(256, min(1024, 16384 // padded_width)))
