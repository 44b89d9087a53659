"""Two linear layers between activations in one kernel: nothing of the layer between is in memory.

    out = act_2(act_1(act_0(x) W_1ᵀ + b_1) W_2ᵀ + b_2)

A program has a tile of rows and all outputs. It makes the layer between ``BLOCK_M`` units at a time, reading x again for
each (from L1 or L2: the tile is the same), activates them, and adds their products to the outputs' sums. Dice needs its
statistics beforehand: those of x may be the batch's, the others are given.

Bytes for x [B, C], M units between and O outputs: 4 B (C + O), and the weights once a tile of rows; 2 B M (C + O)
operations, and the activations of x ⌈M / BLOCK_M⌉ times.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._activations import activate
from ._dense import DICE, INPUT_CODES, dice_gate, input_block, weight_block
from ._launch import Config, Kernel, Specimen, bucket
from ._precision import dot, precision

WIDEST_MIDDLE, WIDEST_OUTPUT = 128, 64  # beyond, x would be read often, or sums not stay in registers


@triton.jit
def activate_units(z, unit, width, alpha, mean, variance, ACTIVATION: tl.constexpr):
    """act(z) of some units of a layer."""
    if ACTIVATION == 4:
        own = unit < width
        a = tl.load(alpha + unit, own, other=0.0)[None, :]
        p = dice_gate(z, tl.load(mean + unit, own, other=0.0)[None, :],
                      tl.load(variance + unit, own, other=1.0)[None, :])
        y = z * (a + p * (1.0 - a))
    else:
        y = activate(z, ACTIVATION)
    return y


@triton.jit
def chained_kernel(out, x, first, first_bias, second, second_bias, alpha0, mean0, variance0, alpha1, mean1, variance1,
                   alpha2, mean2, variance2, rows, width, middle, outputs, x_row, x_column, first_row, first_column,
                   second_row, second_column, IN: tl.constexpr, MIDDLE: tl.constexpr, END: tl.constexpr,
                   PRECISION: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_M: tl.constexpr,
                   BLOCK_C: tl.constexpr):
    row = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    output = tl.arange(0, BLOCK_N)
    present, wanted = row < rows, output < outputs
    y = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    for start in range(0, middle, BLOCK_M):
        unit = start + tl.arange(0, BLOCK_M)
        own = unit < middle
        z = tl.zeros([BLOCK_B, BLOCK_M], tl.float32)
        for begin in range(0, width, BLOCK_C):
            block = input_block(x, row, present, begin, width, x_row, x_column, alpha0, mean0, variance0, IN, BLOCK_C)
            w = weight_block(first, unit, own, begin, width, first_row, first_column, BLOCK_C)
            z += dot(block, tl.trans(w), PRECISION)
        z += tl.load(first_bias + unit, own, other=0.0)[None, :]
        h = activate_units(z, unit, middle, alpha1, mean1, variance1, MIDDLE)
        w = weight_block(second, output, wanted, start, middle, second_row, second_column, BLOCK_M)
        y += dot(h, tl.trans(w), PRECISION)
    y += tl.load(second_bias + output, wanted, other=0.0)[None, :]
    y = activate_units(y, output, outputs, alpha2, mean2, variance2, END)
    tl.store(out + row[:, None] * outputs + output[None, :], y, present[:, None] & wanted[None, :])


_UNITS = [tuple(f"{name}{layer}" for name in ("alpha", "mean", "variance")) for layer in range(3)]
_COLUMNS = dict.fromkeys(("x_column", "first_column", "second_column"), 1)


def _specimen(label: str, codes: tuple[int, int, int], block_n: int) -> Specimen:
    """Without Dice's tensors where a layer has none."""
    absent = {name: None for names, code in zip(_UNITS, codes, strict=True) if code != DICE for name in names}
    return Specimen(label, {**_COLUMNS, **absent, **dict(zip(("IN", "MIDDLE", "END"), codes, strict=True)),
                            "PRECISION": "ieee", "BLOCK_N": block_n})


CHAINED = Kernel(
    chained_kernel, "forward",
    {**dict.fromkeys(("out", "x", "first", "first_bias", "second", "second_bias"), "*fp32"),
     **{name: "*fp32" for names in _UNITS for name in names},
     **dict.fromkeys(("rows", "width", "middle", "outputs", "x_row", "x_column", "first_row", "first_column",
                      "second_row", "second_column"), "i32")},
    [Config(BLOCK_B=32, BLOCK_M=32, BLOCK_C=16, num_warps=8), Config(BLOCK_B=32, BLOCK_M=64, BLOCK_C=16, num_warps=8),
     Config(BLOCK_B=64, BLOCK_M=32, BLOCK_C=16, num_warps=8), Config(BLOCK_B=16, BLOCK_M=32, BLOCK_C=16)],
    [_specimen("relu, 32 outputs", (1, 1, 1), 32), _specimen("swish, 64 outputs", (3, 3, 3), 64),
     _specimen("dice, 32 outputs", (DICE, DICE, DICE), 32), _specimen("dice, 64 outputs", (DICE, DICE, DICE), 64)])


def fits(middle: int, outputs: int) -> bool:
    """Whether :func:`chained` takes layers of these widths."""
    return 0 < middle <= WIDEST_MIDDLE and 0 < outputs <= WIDEST_OUTPUT


def chained(x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
            units: list[tuple]) -> Tensor:
    """out of three activations and two weights; ``units``: alpha, mean and variance of each that is Dice."""
    (rows, width), (first, second) = x.shape, weights
    middle, outputs = first.shape[0], second.shape[0]
    out = x.new_empty(rows, outputs)
    tensors = {name: t for names, layer in zip(_UNITS, units, strict=True) for name, t in zip(names, layer, strict=True)}
    codes = dict(zip(("IN", "MIDDLE", "END"), (INPUT_CODES[name] for name in activations), strict=True))
    CHAINED(lambda c: (triton.cdiv(rows, c["BLOCK_B"]),), bucket(rows, width, middle, outputs), out=out, x=x,
            first=first, first_bias=biases[0].contiguous(), second=second, second_bias=biases[1].contiguous(), **tensors,
            rows=rows, width=width, middle=middle, outputs=outputs, x_row=x.stride(0), x_column=x.stride(1),
            first_row=first.stride(0), first_column=first.stride(1), second_row=second.stride(0),
            second_column=second.stride(1), **codes, PRECISION=precision(),
            BLOCK_N=max(16, triton.next_power_of_2(outputs)))
    return out
