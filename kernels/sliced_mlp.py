"""sliced_mlp: activation, then (linear, activation) for each weight, on slices of maximal matrices read in place.

    z_0 = x;   z_l = act_{l-1}(z_{l-1}) W_lᵀ + b_l;   out = act_L(z_L)

x [B, n_0], W_l [n_l, n_{l-1}]. A layer is one kernel (``_dense.linear``), which applies the activation before it as
it reads and that after the last as it stores: for the usual two activations and one weight, the whole operation.
Bytes: 4 B (n_{l-1} + n_l) and the weights once a tile of rows; 2 B n_{l-1} n_l operations.

Dice needs the column statistics of all rows first (``_dice``): 4 B n more, and, as the last activation, 8 B n.

Backward: the z_l of the layers between and the statistics are computed again; dz_L comes from the last layer's kernel
with ``grad ⊙ act'`` as its end, where z_L is not needed for Dice; then, layer by layer downwards, dW_l and db_l
(``_dense.weight_gradient``) and ``dz_{l-1} = dz_l W_l ⊙ act'(z_{l-1})`` in one kernel each.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES, activate, slope
from ._dense import SLOPE, TIMES, linear, weight_gradient
from ._dice import dice, dice_gradients, statistics
from ._launch import Config, Kernel, Specimen, bucket

_NO_DICE = (None, None, None)


@triton.jit
def activation_kernel(out, x, gradient, rows, width, x_row, x_column, gradient_row, gradient_column,
                      ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """act(x), or, with a gradient, gradient ⊙ act'(x): of an operation without weights."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    row, column, mask = i // width, i % width, i // width < rows
    value = tl.load(x + row * x_row + column * x_column, mask, other=0.0)
    if gradient is None:
        y = activate(value, ACTIVATION)
    else:
        y = tl.load(gradient + row * gradient_row + column * gradient_column, mask, other=0.0) \
            * slope(value, ACTIVATION)
    tl.store(out + i, y, mask)


ACTIVATION = Kernel(
    activation_kernel, "forward",
    {"out": "*fp32", "x": "*fp32", "gradient": "*fp32",
     **dict.fromkeys(("rows", "width", "x_row", "x_column", "gradient_row", "gradient_column"), "i32")},
    [Config(BLOCK=512), Config(BLOCK=1024), Config(BLOCK=256)],
    [Specimen("swish", {"gradient": None, "x_column": 1, "ACTIVATION": 3}),
     Specimen("slope of swish", {"x_column": 1, "gradient_column": 1, "ACTIVATION": 3})])


def _activation(x: Tensor, name: str, gradient: Tensor | None = None) -> Tensor:
    out = x.new_empty(x.shape)
    strides = (0, 0) if gradient is None else gradient.stride()
    ACTIVATION(lambda c: (triton.cdiv(x.numel(), c["BLOCK"]),), bucket(x.numel()), out=out, x=x, gradient=gradient,
               rows=x.shape[0], width=x.shape[1], x_row=x.stride(0), x_column=x.stride(1), gradient_row=strides[0],
               gradient_column=strides[1], ACTIVATION=CODES[name])
    return out


def _units(z: Tensor, given: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Alpha, mean and variance of a Dice layer."""
    if given.dim() == 1:
        return given.contiguous(), *statistics(z)
    return tuple(row.contiguous() for row in given.unbind(0))


def _layers(x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
            given: list[Tensor]) -> tuple[list[Tensor], list[tuple]]:
    """z_l of each layer, and each layer's Dice units or Nones. The last z only if Dice follows it."""
    zs, units, parameters = [x], [], iter(given)
    for index, name in enumerate(activations):
        if index and (index < len(weights) or name == "dice"):
            zs.append(linear(zs[-1], weights[index - 1], biases[index - 1], before=activations[index - 1],
                             dice=units[-1]))
        units.append(_units(zs[-1], next(parameters)) if name == "dice" else _NO_DICE)
    return zs, units


def forward(x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
            dice_parameters: list[Tensor]) -> tuple[Tensor, Tensor]:
    zs, units = _layers(x, weights, biases, activations, dice_parameters)
    if activations[-1] == "dice":
        out = dice(zs[-1], units[-1])
    elif weights:
        out = linear(zs[-1], weights[-1], biases[-1], before=activations[-2], dice=units[-2],
                     activation=activations[-1])
    else:
        out = _activation(x, activations[0])
    used = [t for layer in units for t in layer[1:] if t is not None]
    return out, torch.cat(used) if used else x.new_empty(0)


def backward(gradient: Tensor, x: Tensor, weights: list[Tensor], biases: list[Tensor], activations: list[str],
             dice_parameters: list[Tensor]) -> list[Tensor]:
    zs, units = _layers(x, weights, biases, activations, dice_parameters)
    d_weights, d_biases, d_dice = [], [], []
    given = list(dice_parameters)

    def through_dice(d: Tensor, index: int) -> Tensor:
        ds, d_given = dice_gradients(d, zs[index], units[index], fixed=given.pop().dim() == 2)
        d_dice.append(d_given)
        return ds

    last = len(weights)
    if activations[-1] == "dice":
        dz = through_dice(gradient, last)
    elif not weights:
        dz = _activation(x, activations[0], gradient)
    elif activations[-1] == "identity":
        dz = gradient
    else:
        dz = linear(zs[-1], weights[-1], biases[-1], before=activations[-2], dice=units[-2],
                    activation=activations[-1], epilogue=SLOPE, other=gradient)
    for index in range(last - 1, -1, -1):
        before = activations[index]
        d_weight, d_bias = weight_gradient(dz, zs[index], before, units[index])
        d_weights.append(d_weight)
        d_biases.append(d_bias)
        if before == "dice":
            dz = through_dice(linear(dz, weights[index].t(), None), index)
        else:
            dz = linear(dz, weights[index].t(), None, activation=before, epilogue=TIMES, other=zs[index])
    return [dz, *d_weights[::-1], *d_biases[::-1], *d_dice[::-1]]
