"""Convolution layers of a block on jagged histories: ``Act(b + Σ_j W_j Norm(x)[t + d (j − k/2)]) + x`` with k taps, dilation
d and zeros outside the history.

Work is tiled over the flat [ΣT, D] matrix, whatever the lengths are: each element knows how many others its history has
before and after it (``left``, ``right``), found by a search over the offsets. A tile's taps are gathered as
[elements, taps, channels] (the norm over the last axis in registers) and multiplied as one matrix
[elements, taps·channels], several taps at a time where D is narrow, so that a product is never thinner than it need be.

Forward moves 8 D bytes an element (neighbours come from the cache) and does 2 k D² operations. Backward has three passes:

1. ``dz = g · Act'(z)`` with z recomputed, into scratch [ΣT, D], and left and right in two bytes (for the identity only
   those two bytes: there dz is g);
2. ``dh[t] = Σ_j W_jᵀ dz[t − d (j − k/2)]``, the same product mirrored, then the norm's backward and the residual;
3. ``dW_j = Σ_t dz[t] h[t + d (j − k/2)]ᵀ`` and the bias's gradient, in as many shares as fill the machine.

Nothing but the arguments is kept from forward.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket
from ._precision import dot, precision
from ._sequence import (layer_norm, layer_norm_backward, norm_tensors, normalised, owner_of, padded, search_steps, shares,
                        summed)

PRODUCT = 64      # columns of a matrix product: taps of narrow histories side by side
PROGRAMS = 512    # of the weights' gradient, about: enough to fill the machine, few enough to add up
SPAN = 64         # their elements are multiples of this, the largest step of a configuration
PACK_FROM = 64    # width from which weights are laid out for the kernels, tap by tap: k D² numbers against ΣT rows
FAR = tl.constexpr(127)  # left and right are cut to this, which no convolution of the space reaches


@triton.jit
def reach_of(element, elements, offsets, rows, steps):
    """How many elements of its history lie before and after each ``element``; −1, −1 for those that do not exist."""
    exists = element < elements
    owner = owner_of(element, offsets, rows, steps)
    left = tl.minimum(element - tl.load(offsets + owner), FAR).to(tl.int32)
    right = tl.minimum(tl.load(offsets + owner + 1) - 1 - element, FAR).to(tl.int32)
    return tl.where(exists, left, -1), tl.where(exists, right, -1)


@triton.jit
def stored_reach(reach, element, exists):
    """What :func:`reach_of` gave, from the two bytes of an element."""
    both = tl.load(reach + element, mask=exists, other=0).to(tl.int32)
    return tl.where(exists, both & 255, -1), tl.where(exists, both >> 8, -1)


@triton.jit
def neighbours(source, element, left, right, first, source_row, TAPS: tl.constexpr, DILATION: tl.constexpr,
               GROUP: tl.constexpr, MIRROR: tl.constexpr):
    """Pointers to the rows under taps ``first``… of each element, and whether they are of its history:
    [elements, GROUP, 1]."""
    tap = first + tl.arange(0, GROUP)
    shift = (tap - TAPS // 2) * DILATION
    if MIRROR:
        shift = -shift
    there = (tap < TAPS)[None, :] & (shift[None, :] >= -left[:, None]) & (shift[None, :] <= right[:, None])
    row = source + (element[:, None] + shift[None, :]) * source_row
    return row[:, :, None], there[:, :, None]


@triton.jit
def statistics(row, there, source_column, WIDTH: tl.constexpr, CHANNELS: tl.constexpr):
    """Mean and 1 / √(variance + ε) of rows that are too wide for one product; the cache holds them after this."""
    channel = tl.arange(0, CHANNELS)
    known = (channel < WIDTH)[None, None, :]
    h = tl.load(row + channel[None, None, :] * source_column, mask=there & known, other=0.0)
    _, rstd = normalised(h, known, WIDTH)
    return tl.sum(h, axis=2, keep_dims=True) / WIDTH, rstd


@triton.jit
def gathered(row, there, mean, rstd, norm_weight, norm_bias, start, source_column, norm_weight_stride, norm_bias_stride,
             WIDTH: tl.constexpr, CHANNELS: tl.constexpr, CHUNK: tl.constexpr, NORM: tl.constexpr):
    """[elements, GROUP · CHUNK]: channels ``start``… of the :func:`neighbours` after the norm, zeros where there are
    none. ``mean`` and ``rstd`` are read where CHUNK is not the whole row."""
    channel = start + tl.arange(0, CHUNK)
    known = (channel < WIDTH)[None, None, :]
    h = tl.load(row + channel[None, None, :] * source_column, mask=there & known, other=0.0)
    if NORM:
        gain = tl.load(norm_weight + channel * norm_weight_stride, mask=channel < WIDTH, other=0.0)[None, None, :]
        shifted = tl.load(norm_bias + channel * norm_bias_stride, mask=channel < WIDTH, other=0.0)[None, None, :]
        if CHUNK == CHANNELS:
            h = layer_norm(h, gain, shifted, known, WIDTH)
        else:
            h = (h - mean) * rstd * gain + shifted
        h = tl.where(there, h, 0.0)
    return tl.reshape(h, (row.shape[0], row.shape[1] * CHUNK))


@triton.jit
def window_product(source, norm_weight, norm_bias, weight, element, left, right, source_row, source_column,
                   norm_weight_stride, norm_bias_stride, weight_out, weight_in, weight_tap, WIDTH: tl.constexpr,
                   CHANNELS: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr,
                   GROUP: tl.constexpr, CHUNK: tl.constexpr, NORM: tl.constexpr, MIRROR: tl.constexpr,
                   PRECISION: tl.constexpr):
    """[elements, OUT]: the sum over taps of neighbours times weights."""
    z = tl.zeros((element.shape[0], OUT), tl.float32)
    out = tl.arange(0, OUT)[None, None, :]
    for first in range(0, TAPS, GROUP):
        tap = (first + tl.arange(0, GROUP))[:, None, None]
        row, there = neighbours(source, element, left, right, first, source_row, TAPS, DILATION, GROUP, MIRROR)
        mean, rstd = 0.0, 0.0
        if NORM and CHUNK < CHANNELS:
            mean, rstd = statistics(row, there, source_column, WIDTH, CHANNELS)
        for start in tl.static_range(0, CHANNELS, CHUNK):
            h = gathered(row, there, mean, rstd, norm_weight, norm_bias, start, source_column, norm_weight_stride,
                         norm_bias_stride, WIDTH, CHANNELS, CHUNK, NORM)
            channel = (start + tl.arange(0, CHUNK))[None, :, None]
            w = tl.load(weight + tap * weight_tap + channel * weight_in + out * weight_out,
                        mask=(tap < TAPS) & (channel < WIDTH) & (out < WIDTH), other=0.0)
            z += dot(h, tl.reshape(w, (GROUP * CHUNK, OUT)), PRECISION)
    return z


@triton.jit
def convolution_kernel(x, offsets, norm_weight, norm_bias, weight, bias, gradient, out, reach, elements, rows, steps,
                       x_row, x_column, norm_weight_stride, norm_bias_stride, weight_out, weight_in, weight_tap,
                       bias_stride, gradient_row, gradient_column, WIDTH: tl.constexpr, CHANNELS: tl.constexpr,
                       OUT: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr, GROUP: tl.constexpr,
                       CHUNK: tl.constexpr, NORM: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
                       AREA: tl.constexpr):
    """The block; with a ``gradient``, that of what the activation is given instead, and the elements' reach."""
    TILE: tl.constexpr = max(16, AREA // max(OUT, GROUP * CHUNK))
    element = tl.program_id(0).to(tl.int64) * TILE + tl.arange(0, TILE)
    left, right = reach_of(element, elements, offsets, rows, steps)
    if gradient is not None:
        tl.store(reach + element, (left | (right << 8)).to(tl.int16), mask=element < elements)
    if gradient is None or ACTIVATION != 0:
        z = window_product(x, norm_weight, norm_bias, weight, element, left, right, x_row, x_column, norm_weight_stride,
                           norm_bias_stride, weight_out, weight_in, weight_tap, WIDTH, CHANNELS, OUT, TAPS, DILATION,
                           GROUP, CHUNK, NORM, False, PRECISION)
        column = tl.arange(0, OUT)
        z += tl.load(bias + column * bias_stride, mask=column < WIDTH, other=0.0)[None, :]
        inside = (element < elements)[:, None] & (column < WIDTH)[None, :]
        if gradient is None:
            residual = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
            result = activate(z, ACTIVATION) + residual
        else:
            g = tl.load(gradient + element[:, None] * gradient_row + column[None, :] * gradient_column, mask=inside,
                        other=0.0)
            result = g * slope(z, ACTIVATION)
        tl.store(out + element[:, None] * WIDTH + column[None, :], result, mask=inside)


@triton.jit
def convolution_input_kernel(x, norm_weight, norm_bias, weight, gradient, dz, reach, dx, dnorm, elements, x_row, x_column,
                             norm_weight_stride, weight_out, weight_in, weight_tap, gradient_row, gradient_column, dz_row,
                             dz_column, WIDTH: tl.constexpr, CHANNELS: tl.constexpr, OUT: tl.constexpr,
                             TAPS: tl.constexpr, DILATION: tl.constexpr, GROUP: tl.constexpr, CHUNK: tl.constexpr,
                             NORM: tl.constexpr, PRECISION: tl.constexpr, AREA: tl.constexpr):
    """Gradient of x, and a tile's share of the norm's: dnorm [tiles, 2, WIDTH]."""
    TILE: tl.constexpr = max(16, AREA // max(OUT, GROUP * CHUNK))
    tile = tl.program_id(0).to(tl.int64)
    element = tile * TILE + tl.arange(0, TILE)
    left, right = stored_reach(reach, element, element < elements)
    dh = window_product(dz, None, None, weight, element, left, right, dz_row, dz_column, 0, 0, weight_in, weight_out,
                        weight_tap, WIDTH, CHANNELS, OUT, TAPS, DILATION, GROUP, CHUNK, False, True, PRECISION)
    column = tl.arange(0, OUT)
    inside = (element < elements)[:, None] & (column < WIDTH)[None, :]
    if NORM:
        gain = tl.load(norm_weight + column * norm_weight_stride, mask=column < WIDTH, other=0.0)[None, :]
        x_tile = tl.load(x + element[:, None] * x_row + column[None, :] * x_column, mask=inside, other=0.0)
        through, hat = layer_norm_backward(dh, x_tile, gain, (column < WIDTH)[None, :], WIDTH)
        share = dnorm + tile * 2 * WIDTH + column
        tl.store(share, tl.sum(dh * hat, axis=0), mask=column < WIDTH)
        tl.store(share + WIDTH, tl.sum(dh, axis=0), mask=column < WIDTH)
        dh = through
    g = tl.load(gradient + element[:, None] * gradient_row + column[None, :] * gradient_column, mask=inside, other=0.0)
    tl.store(dx + element[:, None] * WIDTH + column[None, :], dh + g, mask=inside)


@triton.jit
def convolution_weight_kernel(x, norm_weight, norm_bias, dz, reach, share, elements, per_program, x_row, x_column,
                              norm_weight_stride, norm_bias_stride, dz_row, dz_column, WIDTH: tl.constexpr,
                              CHANNELS: tl.constexpr, OUT: tl.constexpr, TAPS: tl.constexpr, DILATION: tl.constexpr,
                              GROUP: tl.constexpr, CHUNK: tl.constexpr, NORM: tl.constexpr, PRECISION: tl.constexpr,
                              STEP: tl.constexpr):
    """A share of the gradients of weight and bias, one after the other: [programs, WIDTH² · TAPS + WIDTH]. The second
    axis of the grid goes over groups of taps, the third over blocks of outputs and of channels."""
    first = tl.program_id(1) * GROUP
    chunks: tl.constexpr = CHANNELS // CHUNK
    start = tl.program_id(2) % chunks * CHUNK
    out = tl.program_id(2) // chunks * OUT + tl.arange(0, OUT)
    begin = tl.program_id(0).to(tl.int64) * per_program
    total = tl.zeros((OUT, GROUP * CHUNK), tl.float32)
    bias = tl.zeros((OUT,), tl.float32)
    for step in range(0, per_program, STEP):
        element = begin + step + tl.arange(0, STEP)
        exists = element < elements
        left, right = stored_reach(reach, element, exists)
        d = tl.load(dz + element[:, None] * dz_row + out[None, :] * dz_column,
                    mask=exists[:, None] & (out < WIDTH)[None, :], other=0.0)
        row, there = neighbours(x, element, left, right, first, x_row, TAPS, DILATION, GROUP, False)
        mean, rstd = 0.0, 0.0
        if NORM and CHUNK < CHANNELS:
            mean, rstd = statistics(row, there, x_column, WIDTH, CHANNELS)
        h = gathered(row, there, mean, rstd, norm_weight, norm_bias, start, x_column, norm_weight_stride,
                     norm_bias_stride, WIDTH, CHANNELS, CHUNK, NORM)
        total += dot(tl.trans(d), h, PRECISION)
        bias += tl.sum(d, axis=0)
    place = share + tl.program_id(0).to(tl.int64) * (WIDTH * WIDTH * TAPS + WIDTH)
    packed = tl.arange(0, GROUP * CHUNK)
    tap, channel = first + packed // CHUNK, start + packed % CHUNK
    tl.store(place + out[:, None] * (WIDTH * TAPS) + (channel * TAPS + tap)[None, :], total,
             mask=(out < WIDTH)[:, None] & ((channel < WIDTH) & (tap < TAPS))[None, :])
    if (first == 0) & (start == 0):
        tl.store(place + WIDTH * WIDTH * TAPS + out, bias, mask=out < WIDTH)


def _constants(width: int, taps: int) -> dict[str, int]:
    """How a convolution's axes are padded and cut: channels of a row, output channels, taps and channels of a product."""
    channels = padded(width, 16 if taps == 1 else 4)
    chunk = min(channels, 32 if channels <= 128 else 16)  # what registers hold beside a tile of so many outputs
    group = max(1, min(PRODUCT // chunk, padded(taps))) if chunk == channels else 1
    return {"WIDTH": width, "CHANNELS": channels, "OUT": padded(width, 16), "TAPS": taps, "GROUP": group, "CHUNK": chunk}


def _specimens(prefix: str = "", **more) -> list[Specimen]:
    found = []
    for label, width, taps, dilation in (("alimama conv3", 8, 3, 1), ("alimama dconv7", 8, 7, 2), ("beauty conv1", 64, 1, 1),
                                         ("beauty dconv5", 64, 5, 2), ("256 dconv3", 256, 3, 2)):
        found.append(Specimen(prefix + label, {**_constants(width, taps), "DILATION": dilation, "NORM": True,
                                               "PRECISION": "ieee", **more}))
    return found


_POINTERS = {"x": "*fp32", "offsets": "*i64", "norm_weight": "*fp32", "norm_bias": "*fp32", "weight": "*fp32",
             "bias": "*fp32", "gradient": "*fp32", "dz": "*fp32", "reach": "*i16", "out": "*fp32", "dx": "*fp32",
             "dnorm": "*fp32", "share": "*fp32"}
_SIZES = dict.fromkeys(("elements", "rows", "steps", "per_program", "x_row", "x_column", "norm_weight_stride",
                        "norm_bias_stride", "weight_out", "weight_in", "weight_tap", "bias_stride", "gradient_row",
                        "gradient_column", "dz_row", "dz_column"), "i32")

CONVOLUTION = Kernel(convolution_kernel, "forward", _POINTERS | _SIZES,
                     [Config(AREA=4096, num_warps=8), Config(AREA=2048, num_warps=4), Config(AREA=4096, num_warps=4),
                      Config(AREA=8192, num_warps=8), Config(AREA=2048, num_warps=2)],
                     [*_specimens(gradient=None, reach=None, ACTIVATION=2), *_specimens("dz ", ACTIVATION=2)[1:4]],
                     occupancy=0.125)
# One tile size in all configurations: the norm's shares are by tile.
INPUT = Kernel(convolution_input_kernel, "backward", _POINTERS | _SIZES,
               [Config(AREA=4096, num_warps=8), Config(AREA=4096, num_warps=4), Config(AREA=4096, num_warps=16)],
               _specimens(), occupancy=0.125)


def _weight_constants(width: int, taps: int) -> dict[str, int]:
    constants = _constants(width, taps)
    chunk = min(constants["CHANNELS"], PRODUCT)
    return {**constants, "OUT": min(constants["OUT"], PRODUCT), "CHUNK": chunk,
            "GROUP": max(1, min(PRODUCT // chunk, padded(taps))) if chunk == constants["CHANNELS"] else 1}


WEIGHT = Kernel(convolution_weight_kernel, "backward", _POINTERS | _SIZES,
                [Config(STEP=16, num_warps=8), Config(STEP=16, num_warps=4), Config(STEP=32, num_warps=4),
                 Config(STEP=32, num_warps=8), Config(STEP=64, num_warps=8)],
                [Specimen(s.label, {**s.constants, **_weight_constants(s.constants["WIDTH"], s.constants["TAPS"])})
                 for s in _specimens()], occupancy=0.125)


def _tiles(elements: int, constants: dict[str, int]):
    """Programs of a kernel over tiles of elements."""
    return lambda blocks: (triton.cdiv(elements, max(16, blocks["AREA"] // max(constants["OUT"], constants["GROUP"]
                                                                              * constants["CHUNK"]))),)


def _packed(weight: Tensor, order: tuple[int, int, int]) -> Tensor:
    """The weight's axes out, in, tap, where the memory is in ``order``: of wide ones a copy, in which the numbers of a
    tap lie together (they are read once for each tile)."""
    if weight.shape[0] < PACK_FROM or weight.shape[2] == 1:
        return weight
    packed = weight.permute(order).contiguous()
    return packed.permute([order.index(axis) for axis in range(3)])


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
            max_length: int, dilation: int) -> Tensor:
    weight, bias = weights
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _convolve(x, offsets, norm, _packed(weight, (2, 1, 0)), bias, activation, dilation, None, out, None)
    return out


def _convolve(x, offsets, norm, weight, bias, activation, dilation, gradient, out, reach) -> None:
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    constants = _constants(x.shape[1], weight.shape[2])
    elements = x.shape[0]
    CONVOLUTION(_tiles(elements, constants), (bool(gradient is None), weight.shape[2], *bucket(elements, x.shape[1])), x=x,
                offsets=offsets, norm_weight=norm_weight, norm_bias=norm_bias, weight=weight, bias=bias,
                gradient=gradient, out=out, reach=reach, elements=elements, rows=offsets.shape[0] - 1,
                steps=search_steps(offsets), x_row=x.stride(0), x_column=x.stride(1),
                norm_weight_stride=norm_weight_stride, norm_bias_stride=norm_bias_stride, weight_out=weight.stride(0),
                weight_in=weight.stride(1), weight_tap=weight.stride(2), bias_stride=bias.stride(0),
                gradient_row=0 if gradient is None else gradient.stride(0),
                gradient_column=0 if gradient is None else gradient.stride(1), DILATION=dilation, NORM=bool(norm),
                ACTIVATION=CODES[activation], PRECISION=precision(), **constants)


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int, dilation: int) -> list[Tensor]:
    """Gradients of x, norm, weight and bias."""
    weight, bias = weights
    norm_weight, norm_bias, norm_weight_stride, norm_bias_stride = norm_tensors(norm)
    elements, width, taps = x.shape[0], x.shape[1], weight.shape[2]
    reach = torch.empty(elements, dtype=torch.int16, device=x.device)
    dz = gradient if activation == "identity" else torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _convolve(x, offsets, norm, _packed(weight, (2, 1, 0)), bias, activation, dilation, gradient, dz, reach)

    constants = _constants(width, taps)
    tiles = _tiles(elements, constants)
    common = dict(x=x, norm_weight=norm_weight, norm_bias=norm_bias, dz=dz, reach=reach, elements=elements,
                  x_row=x.stride(0), x_column=x.stride(1), norm_weight_stride=norm_weight_stride, dz_row=dz.stride(0),
                  dz_column=dz.stride(1), DILATION=dilation, NORM=bool(norm), PRECISION=precision())
    dx = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    dnorm = shares(*tiles(INPUT.configs[0].blocks), 2, width, like=x) if norm else None
    mirrored = _packed(weight, (2, 0, 1))
    INPUT(tiles, (taps, *bucket(elements, width)), weight=mirrored, gradient=gradient, dx=dx, dnorm=dnorm,
          weight_out=mirrored.stride(0), weight_in=mirrored.stride(1), weight_tap=mirrored.stride(2),
          gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **common, **constants)

    constants = _weight_constants(width, taps)
    groups = triton.cdiv(taps, constants["GROUP"])
    blocks = triton.cdiv(width, constants["OUT"]) * (constants["CHANNELS"] // constants["CHUNK"])
    per_program = triton.cdiv(triton.cdiv(elements, max(1, PROGRAMS // (groups * blocks))), SPAN) * SPAN
    programs = triton.cdiv(elements, per_program)
    share = shares(programs, width * width * taps + width, like=x)
    WEIGHT(lambda _: (programs, groups, blocks), (taps, *bucket(elements, width)), share=share, per_program=per_program,
           norm_bias_stride=norm_bias_stride, **common, **constants)
    dweight, dbias = summed(share).split([width * width * taps, width])
    return [dx, *(summed(dnorm) if norm else ()), dweight.view(weight.shape), dbias]
