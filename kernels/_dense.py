"""Linear layers between activations, and their gradients.

``linear``: ``z = act_in(x) Wᵀ + b`` of one tile of rows and one of outputs a program, tiles of the same rows side by
side in time, so that x comes from device memory once and from the L2 cache afterwards. What follows is chosen by
``EPILOGUE``:

    ACTIVATE   y = act(z)
    SLOPE      y = other ⊙ act'(z): a gradient before the activation, from one behind it, with z never stored
    TIMES      y = z ⊙ act'(other): the same for the layer below, where ``other`` is its pre-activation

The input's activation is applied as x is read. Bytes of ``linear`` [B, C] to [B, O]: 4 (B C + ⌈B / BLOCK_B⌉ O C + B
O), the weights' again from L2; 2 B C O operations.

``weight_gradient``: ``dW = dzᵀ act_in(x)``, ``db = Σ_rows dz``. A program sums a share of the rows of one tile of dW;
where there is more than one share, a second kernel adds them, in the same order always. The shares depend on the
shapes alone.
"""

from __future__ import annotations

import functools

import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket, strides
from ._precision import dot, precision

ACTIVATE, SLOPE, TIMES = 0, 1, 2
DICE = 4  # as a code of the input's activation
INPUT_CODES = {**CODES, "dice": DICE}


@triton.jit
def dice_gate(x, mean, variance):
    """σ((x − mean) / √(variance + 1e-8))."""
    return tl.sigmoid((x - mean) * (1.0 / tl.sqrt(variance + 1e-8)))


@triton.jit
def input_block(x, row, present, begin, width, x_row, x_column, alpha, mean, variance, ACTIVATION: tl.constexpr,
                BLOCK_C: tl.constexpr):
    """act(x)[row, begin : begin + BLOCK_C]; 0 beyond the matrix."""
    column = begin + tl.arange(0, BLOCK_C)
    mask = present[:, None] & (column < width)[None, :]
    value = tl.load(x + row[:, None] * x_row + column[None, :] * x_column, mask, other=0.0)
    if ACTIVATION == 4:
        a = tl.load(alpha + column, column < width, other=0.0)[None, :]
        p = dice_gate(value, tl.load(mean + column, column < width, other=0.0)[None, :],
                      tl.load(variance + column, column < width, other=1.0)[None, :])
        value = value * (a + p * (1.0 - a))
    else:
        value = activate(value, ACTIVATION)
    return value


@triton.jit
def weight_block(weight, output, wanted, begin, width, weight_row, weight_column, BLOCK_C: tl.constexpr):
    """W[output, begin : begin + BLOCK_C]; 0 beyond the matrix."""
    column = begin + tl.arange(0, BLOCK_C)
    return tl.load(weight + output[:, None].to(tl.int64) * weight_row + column[None, :].to(tl.int64) * weight_column,
                   wanted[:, None] & (column < width)[None, :], other=0.0)


@triton.jit
def finish(z, other, row, column, mask, other_row, other_column, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr):
    """What is stored for a tile ``z`` of ``act_in(x) Wᵀ + b``."""
    if EPILOGUE == 0:
        y = activate(z, ACTIVATION)
    else:
        more = tl.load(other + row[:, None] * other_row + column[None, :] * other_column, mask, other=0.0)
        if EPILOGUE == 1:
            y = more * slope(z, ACTIVATION)
        else:
            y = z * slope(more, ACTIVATION)
    return y


@triton.jit
def linear_kernel(out, x, weight, bias, other, alpha, mean, variance, rows, width, outputs, out_row, x_row, x_column,
                  weight_row, weight_column, other_row, other_column, IN: tl.constexpr, ACTIVATION: tl.constexpr,
                  EPILOGUE: tl.constexpr, PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
                  BLOCK_C: tl.constexpr):
    tiles = tl.cdiv(outputs, BLOCK_N)
    row = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    column = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    present, wanted = row < rows, column < outputs
    z = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    for begin in range(0, width, BLOCK_C):
        block = input_block(x, row, present, begin, width, x_row, x_column, alpha, mean, variance, IN, BLOCK_C)
        w = weight_block(weight, column, wanted, begin, width, weight_row, weight_column, BLOCK_C)
        z += dot(block, tl.trans(w), PRECISION)
    if bias is not None:
        z += tl.load(bias + column, wanted, other=0.0)[None, :]
    mask = present[:, None] & wanted[None, :]
    y = finish(z, other, row, column, mask, other_row, other_column, ACTIVATION, EPILOGUE)
    tl.store(out + row[:, None] * out_row + column[None, :], y, mask)


@triton.jit
def weight_gradient_kernel(partial, bias_partial, dz, x, alpha, mean, variance, rows, share, outputs, width,
                           partial_row, dz_row, dz_column, x_row, x_column, IN: tl.constexpr, PRECISION: tl.constexpr,
                           BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    output_tiles, column_tiles = tl.cdiv(outputs, BLOCK_N), tl.cdiv(width, BLOCK_C)
    pid = tl.program_id(0)
    n = (pid % output_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = (pid // output_tiles % column_tiles) * BLOCK_C
    part = (pid // (output_tiles * column_tiles)).to(tl.int64)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    bias_total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, share, BLOCK_B):
        row = part * share + start + tl.arange(0, BLOCK_B)
        present = (row < rows) & (start + tl.arange(0, BLOCK_B) < share)
        d = tl.load(dz + row[:, None] * dz_row + n[None, :] * dz_column, present[:, None] & (n < outputs)[None, :],
                    other=0.0)
        block = input_block(x, row, present, begin, width, x_row, x_column, alpha, mean, variance, IN, BLOCK_C)
        total += dot(tl.trans(d), block, PRECISION)
        bias_total += tl.sum(d, 0)
    store_weight_gradient(partial, bias_partial, total, bias_total, part, n, begin, outputs, width, partial_row,
                          BLOCK_C)


@triton.jit
def store_weight_gradient(partial, bias_partial, total, bias_total, part, n, begin, outputs, width, partial_row,
                          BLOCK_C: tl.constexpr):
    """Share number ``part`` of a tile of dW; that of the bias, if asked for, by the programs of the first columns."""
    column = begin + tl.arange(0, BLOCK_C)
    tl.store(partial + (part * outputs + n)[:, None] * partial_row + column[None, :], total,
             (n < outputs)[:, None] & (column < width)[None, :])
    if bias_partial is not None:  # noqa: SIM102 (this is known when compiling, the next is not)
        if begin == 0:
            tl.store(bias_partial + part * outputs + n, bias_total, n < outputs)


@triton.jit
def sum_parts_kernel(out, parts, count, size, BLOCK: tl.constexpr, BLOCK_P: tl.constexpr):
    """out[i] = Σ_p parts[p, i]."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros([BLOCK], tl.float32)
    for begin in range(0, count, BLOCK_P):
        p = begin + tl.arange(0, BLOCK_P)
        total += tl.sum(tl.load(parts + p[:, None].to(tl.int64) * size + i[None, :],
                                (p < count)[:, None] & (i < size)[None, :], other=0.0), 0)
    tl.store(out + i, total, i < size)


_CONTIGUOUS = {"x_column": 1, "other_column": 1}
_NO_DICE = {"alpha": None, "mean": None, "variance": None}
_WIDE = {"PRECISION": "ieee", "BLOCK_N": 64}

LINEAR = Kernel(
    linear_kernel, "forward",
    {**dict.fromkeys(("out", "x", "weight", "bias", "other", "alpha", "mean", "variance"), "*fp32"),
     **dict.fromkeys(("rows", "width", "outputs", "out_row", "x_row", "x_column", "weight_row", "weight_column",
                      "other_row", "other_column"), "i32")},
    [Config(BLOCK_B=64, BLOCK_C=16, num_warps=8, maxnreg=128), Config(BLOCK_B=32, BLOCK_C=16), Config(BLOCK_B=64, BLOCK_C=16),
     Config(BLOCK_B=128, BLOCK_C=16, num_warps=8), Config(BLOCK_B=64, BLOCK_C=32, num_warps=8, num_stages=3),
     Config(BLOCK_B=16, BLOCK_C=32)],
    [Specimen("relu to relu", {**_CONTIGUOUS, **_NO_DICE, **_WIDE, "other": None, "weight_column": 1, "IN": 1,
                               "ACTIVATION": 1, "EPILOGUE": ACTIVATE}),
     Specimen("dice to swish", {**_CONTIGUOUS, **_WIDE, "other": None, "weight_column": 1, "IN": DICE,
                                "ACTIVATION": 3, "EPILOGUE": ACTIVATE}),
     Specimen("slope of swish", {**_CONTIGUOUS, **_NO_DICE, **_WIDE, "weight_column": 1, "IN": 3, "ACTIVATION": 3,
                                 "EPILOGUE": SLOPE}),
     Specimen("inputs' gradient", {**_CONTIGUOUS, **_NO_DICE, **_WIDE, "bias": None, "weight_row": 1, "IN": 0,
                                   "ACTIVATION": 3, "EPILOGUE": TIMES})])

WEIGHT_GRADIENT = Kernel(
    weight_gradient_kernel, "backward",
    {**dict.fromkeys(("partial", "bias_partial", "dz", "x", "alpha", "mean", "variance"), "*fp32"),
     **dict.fromkeys(("rows", "share", "outputs", "width", "partial_row", "dz_row", "dz_column", "x_row",
                      "x_column"), "i32")},
    [Config(BLOCK_B=16, BLOCK_C=64, num_warps=8), Config(BLOCK_B=32, BLOCK_C=64), Config(BLOCK_B=32, BLOCK_C=32),
     Config(BLOCK_B=16, BLOCK_C=128, num_warps=8)],
    [Specimen(label, {"dz_column": 1, "x_column": 1, **more, **_WIDE})
     for label, more in (("relu", {**_NO_DICE, "IN": 1}), ("dice", {"IN": DICE}))])

SUM_PARTS = Kernel(
    sum_parts_kernel, "backward", {"out": "*fp32", "parts": "*fp32", "count": "i32", "size": "i32"},
    [Config(BLOCK=32, BLOCK_P=32), Config(BLOCK=256, BLOCK_P=4), Config(BLOCK=32, BLOCK_P=128)], [Specimen("any", {})])


def output_block(outputs: int) -> int:
    """BLOCK_N: what holds all outputs, if 64 do."""
    return min(64, max(16, triton.next_power_of_2(outputs)))


def linear(x: Tensor, weight: Tensor, bias: Tensor | None, *, activation: str = "identity", before: str = "identity",
           dice: tuple = (None, None, None), epilogue: int = ACTIVATE, other: Tensor | None = None,
           out: Tensor | None = None) -> Tensor:
    """See the module; ``before`` is the activation of x. ``weight`` [O, C] in any strides: ``w.t()`` for the way
    back. ``out`` may have rows farther apart."""
    (rows, width), outputs = x.shape, weight.shape[0]
    out = x.new_empty(rows, outputs) if out is None else out
    block_n = output_block(outputs)
    LINEAR(lambda c: (triton.cdiv(rows, c["BLOCK_B"]) * triton.cdiv(outputs, block_n),),
           bucket(rows, width, outputs), out=out, x=x, weight=weight,
           bias=None if bias is None else bias.contiguous(), other=other, alpha=dice[0], mean=dice[1],
           variance=dice[2], rows=rows, width=width, outputs=outputs, out_row=out.stride(0), x_row=x.stride(0),
           x_column=x.stride(1), weight_row=weight.stride(0), weight_column=weight.stride(1),
           other_row=strides(other)[0], other_column=strides(other)[1], IN=INPUT_CODES[before],
           ACTIVATION=CODES[activation], EPILOGUE=epilogue, PRECISION=precision(), BLOCK_N=block_n)
    return out


#: Programs that keep a large device busy; a constant, so that sums do not depend on the device.
PROGRAMS = 256
LEAST_ROWS = 128  # of a share


def sum_shares(rows: int, outputs: int, width: int, like: Tensor, launch) -> tuple[Tensor, Tensor]:
    """dW [outputs, width] and db from ``launch(partial, bias_partial, share, shares)``, which fills the sums of each
    share of rows, [shares, outputs, width] and [shares, outputs]."""
    if rows == 0 or outputs == 0:
        return like.new_zeros(outputs, width), like.new_zeros(outputs)
    tiles = triton.cdiv(outputs, 64) * triton.cdiv(max(width, 1), 64)
    shares = max(1, min(PROGRAMS // tiles, rows // LEAST_ROWS))
    share = triton.cdiv(rows, shares)
    partial, bias_partial = like.new_empty(shares, outputs, width), like.new_empty(shares, outputs)
    launch(partial, bias_partial, share, shares)
    return sum_parts(partial), sum_parts(bias_partial)


def sum_parts(parts: Tensor) -> Tensor:
    """Σ over the first dimension of a contiguous tensor, in order."""
    if parts.shape[0] == 1:
        return parts[0]
    out = parts.new_empty(parts.shape[1:])
    size = out.numel()
    SUM_PARTS(lambda c: (triton.cdiv(size, c["BLOCK"]),), bucket(*parts.shape), out=out, parts=parts,
              count=parts.shape[0], size=size)
    return out


def weight_gradient(dz: Tensor, x: Tensor, before: str = "identity", dice: tuple = (None, None, None)) -> tuple:
    """Gradients of the weight [O, C] and bias [O] of ``act(x) Wᵀ + b``, from dz [B, O] and x [B, C]."""
    return sum_shares(*dz.shape, x.shape[1], dz, functools.partial(weight_shares, dz=dz, x=x, before=before, dice=dice))


def weight_shares(partial: Tensor, bias_partial: Tensor | None, share: int, shares: int, dz: Tensor, x: Tensor,
                  before: str = "identity", dice: tuple = (None, None, None)) -> None:
    """Fills the first columns of ``partial`` [shares, O, ≥ C], and ``bias_partial`` [shares, O] if there is one."""
    (rows, outputs), width = dz.shape, x.shape[1]
    block_n = output_block(outputs)
    WEIGHT_GRADIENT(lambda c: (triton.cdiv(outputs, block_n) * triton.cdiv(width, c["BLOCK_C"]) * shares,),
                    bucket(rows, outputs, width), partial=partial, bias_partial=bias_partial, dz=dz, x=x,
                    alpha=dice[0], mean=dice[1], variance=dice[2], rows=rows, share=share, outputs=outputs,
                    width=width, partial_row=partial.stride(1), dz_row=dz.stride(0), dz_column=dz.stride(1),
                    x_row=x.stride(0), x_column=x.stride(1), IN=INPUT_CODES[before], PRECISION=precision(),
                    BLOCK_N=block_n)
