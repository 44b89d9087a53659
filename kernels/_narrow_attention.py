"""The whole self-attention block of narrow histories in one kernel: D ≤ 16 (backward: 8), rows of at most 64
elements.

Forward, nothing but x, offsets and out touches memory: 8 D bytes an element instead of the 44 D of products, attention
and product one after the other. The [T, T] scores of one head at a time are in registers.

A head has D / heads = 1 to 8 columns, which ``tl.dot`` would pad to 16. Instead columns are vectors over T:
q_c = Σ_d N(x)_d W_qcd, scores are the sum of outer products q_c k_c, and o_c is a sum of the tile over keys. That is
4 T² operations for a column without waste, and the projections are sums over D.

Rows are of many lengths, and work grows with T²: there is a launch for each of the tiles 16, 32 and 64, in which programs
of rows that belong to another end at once, so that short rows have neither the work nor the registers of long ones.

Backward recomputes, and goes over the heads twice: for the values before the activation, then for the gradients of q, k
and v. It leaves those, o, the gradient before the activation and the norm's statistics (5 D + 2 numbers an element) to
products of all elements (``_flat``): the gradients of weights and of x.
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from . import _flat
from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket
from ._sequence import NORM_EPS, layer_norm, padded

LOG2E = 1.4426950408889634
WIDEST, WIDEST_BACKWARD = 16, 8  # D; wider ones take more registers than there are
TILES = (16, 32, 64)  # a launch for each: work grows with T²


@triton.jit
def _column(h, weight, bias, o, w_row, w_col, D: tl.constexpr, COLS: tl.constexpr):
    """Output ``o`` of the projection of all elements of ``h`` [T, COLS]: [T]."""
    cols = tl.arange(0, COLS)
    w = tl.load(weight + o * w_row + cols * w_col, mask=cols < D, other=0.0)
    return tl.sum(h * w[None, :], axis=1) + tl.load(bias + o)


@triton.jit
def _probabilities(h, in_weight, in_bias, in_row, in_col, scale, length, head, D: tl.constexpr,
                   HEAD: tl.constexpr, COLS: tl.constexpr, BLOCK_T: tl.constexpr):
    """[queries, keys] of one head."""
    s = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
    for c in range(HEAD):
        q = _column(h, in_weight, in_bias, head * HEAD + c, in_row, in_col, D, COLS) * scale
        k = _column(h, in_weight, in_bias, D + head * HEAD + c, in_row, in_col, D, COLS)
        s += q[:, None] * k[None, :]
    s = tl.where((tl.arange(0, BLOCK_T) < length)[None, :], s, float("-inf"))
    p = tl.exp2(s - tl.max(s, axis=1)[:, None])
    return p * (1.0 / tl.sum(p, axis=1))[:, None]


@triton.jit
def _row(x, norm_weight, norm_bias, first, length, x_row, x_col, D: tl.constexpr, HAS_NORM: tl.constexpr, COLS: tl.constexpr,
         BLOCK_T: tl.constexpr):
    """x and N(x) of one row, [BLOCK_T, COLS]."""
    steps, cols = tl.arange(0, BLOCK_T), tl.arange(0, COLS)
    values = tl.load(x + first * x_row + (steps[:, None] * x_row + cols[None, :] * x_col),
                     mask=(steps < length)[:, None] & (cols < D)[None, :], other=0.0)
    h = values
    if HAS_NORM:
        gain = tl.load(norm_weight + cols, mask=cols < D, other=0.0)
        shift = tl.load(norm_bias + cols, mask=cols < D, other=0.0)
        h = layer_norm(values, gain[None, :], shift[None, :], (cols < D)[None, :], D)
    return values, h


@triton.jit
def _mix(h, in_weight, in_bias, out_weight, out_bias, in_row, in_col, out_row, out_col, scale, length,
         D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, COLS: tl.constexpr, BLOCK_T: tl.constexpr):
    """What heads mix, side by side, and its projection: the values before the activation."""
    cols = tl.arange(0, COLS)
    pre = tl.zeros([BLOCK_T, COLS], tl.float32) + tl.load(out_bias + cols, mask=cols < D, other=0.0)[None, :]
    mixed = tl.zeros([BLOCK_T, COLS], tl.float32)
    for head in range(HEADS):
        p = _probabilities(h, in_weight, in_bias, in_row, in_col, scale, length, head, D, HEAD, COLS, BLOCK_T)
        for c in range(HEAD):
            v = _column(h, in_weight, in_bias, 2 * D + head * HEAD + c, in_row, in_col, D, COLS)
            o = tl.sum(p * v[None, :], axis=1)
            w = tl.load(out_weight + cols * out_row + (head * HEAD + c) * out_col, mask=cols < D, other=0.0)
            pre += o[:, None] * w[None, :]
            mixed = tl.where((cols == head * HEAD + c)[None, :], o[:, None], mixed)
    return pre, mixed


@triton.jit
def narrow_attention_kernel(
    x, offsets, norm_weight, norm_bias, in_weight, in_bias, out_weight, out_bias, out,
    x_row, x_col, in_row, in_col, out_row, out_col, scale, shortest,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HAS_NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    COLS: tl.constexpr, BLOCK_T: tl.constexpr,
):
    """One row a program, if it has from ``shortest`` to BLOCK_T elements. ``scale`` is log2(e) / √HEAD."""
    row, steps, cols = tl.program_id(0), tl.arange(0, BLOCK_T), tl.arange(0, COLS)
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    if (length >= shortest) & (length <= BLOCK_T):
        values, h = _row(x, norm_weight, norm_bias, first, length, x_row, x_col, D, HAS_NORM, COLS, BLOCK_T)
        pre, _ = _mix(h, in_weight, in_bias, out_weight, out_bias, in_row, in_col, out_row, out_col, scale, length, D,
                      HEADS, HEAD, COLS, BLOCK_T)
        tl.store(out + first * D + (steps[:, None] * D + cols[None, :]), activate(pre, ACTIVATION) + values,
                 mask=(steps < length)[:, None] & (cols < D)[None, :])


@triton.jit
def narrow_attention_backward_kernel(
    x, offsets, norm_weight, norm_bias, in_weight, in_bias, out_weight, out_bias, gradient, mixed, dpre, dqkv, statistics,
    x_row, x_col, in_row, in_col, out_row, out_col, gradient_row, gradient_col, scale, inverse_root, shortest,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, HAS_NORM: tl.constexpr, ACTIVATION: tl.constexpr,
    COLS: tl.constexpr, BLOCK_T: tl.constexpr,
):
    """Of such a row what the products need that are left: ``mixed`` and ``dpre`` [ΣT, D], ``dqkv`` [ΣT, 3D] and
    ``statistics`` [ΣT, 2] (mean and 1/σ)."""
    row, steps, cols = tl.program_id(0), tl.arange(0, BLOCK_T), tl.arange(0, COLS)
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    if (length >= shortest) & (length <= BLOCK_T):
        there = steps < length
        mask = there[:, None] & (cols < D)[None, :]
        values, h = _row(x, norm_weight, norm_bias, first, length, x_row, x_col, D, HAS_NORM, COLS, BLOCK_T)
        if HAS_NORM:
            mean = tl.sum(values, axis=1) / D
            centred = tl.where((cols < D)[None, :], values - mean[:, None], 0.0)
            tl.store(statistics + first * 2 + steps * 2, mean, mask=there)
            scale_of = tl.rsqrt(tl.sum(centred * centred, axis=1) / D + NORM_EPS)
            tl.store(statistics + first * 2 + 1 + steps * 2, scale_of, mask=there)
        g = tl.load(gradient + first * gradient_row + (steps[:, None] * gradient_row + cols[None, :] * gradient_col), mask=mask,
                    other=0.0)
        pre, o = _mix(h, in_weight, in_bias, out_weight, out_bias, in_row, in_col, out_row, out_col, scale, length, D,
                      HEADS, HEAD, COLS, BLOCK_T)
        # Zero where no element is, and with it whatever comes from there.
        g *= slope(pre, ACTIVATION)
        tl.store(mixed + first * D + (steps[:, None] * D + cols[None, :]), o, mask=mask)
        tl.store(dpre + first * D + (steps[:, None] * D + cols[None, :]), g, mask=mask)
        for head in range(HEADS):
            p = _probabilities(h, in_weight, in_bias, in_row, in_col, scale, length, head, D, HEAD, COLS, BLOCK_T)
            ds = tl.zeros([BLOCK_T, BLOCK_T], tl.float32)
            place = dqkv + first * (3 * D) + head * HEAD
            for c in range(HEAD):
                w = tl.load(out_weight + cols * out_row + (head * HEAD + c) * out_col, mask=cols < D, other=0.0)
                do = tl.sum(g * w[None, :], axis=1)
                v = _column(h, in_weight, in_bias, 2 * D + head * HEAD + c, in_row, in_col, D, COLS)
                ds += do[:, None] * v[None, :]
                tl.store(place + 2 * D + c + steps * (3 * D), tl.sum(p * do[:, None], axis=0), mask=there)
            # Σ_s p ds is what Σ_c do_c o_c is.
            ds = p * (ds - tl.sum(p * ds, axis=1)[:, None])
            for c in range(HEAD):
                k = _column(h, in_weight, in_bias, D + head * HEAD + c, in_row, in_col, D, COLS)
                tl.store(place + c + steps * (3 * D), inverse_root * tl.sum(ds * k[None, :], axis=1), mask=there)
            for c in range(HEAD):
                q = _column(h, in_weight, in_bias, head * HEAD + c, in_row, in_col, D, COLS)
                tl.store(place + D + c + steps * (3 * D), inverse_root * tl.sum(ds * q[:, None], axis=0), mask=there)


def fits(width: int, max_length: int, widest: int = WIDEST) -> bool:
    return width <= widest and max_length <= TILES[-1]


def _shape(width: int, heads: int) -> dict[str, int]:
    return {"D": width, "HEADS": heads, "HEAD": width // heads, "COLS": padded(width)}


_SIGNATURE = dict.fromkeys(("x", "norm_weight", "norm_bias", "in_weight", "in_bias", "out_weight", "out_bias", "out",
                            "gradient", "mixed", "dpre", "dqkv", "statistics"), "*fp32") | {"offsets": "*i64"} | \
    dict.fromkeys(("x_row", "x_col", "in_row", "in_col", "out_row", "out_col", "gradient_row", "gradient_col", "shortest"),
                  "i32") | dict.fromkeys(("scale", "inverse_root"), "fp32")
_CASES = {"alimama 2 heads": (8, 2), "alimama 4 heads": (8, 4), "D16 2 heads": (16, 2)}


def _declared(kernel, direction: str, *configs: Config) -> Kernel:
    specimens = [Specimen(f"{label}, T <= {tile}", {**_shape(*case), "HAS_NORM": True, "ACTIVATION": CODES["swish"],
                                                  "BLOCK_T": tile})
                 for label, case in _CASES.items() for tile in TILES
                 if direction == "forward" or case[0] <= WIDEST_BACKWARD]
    return Kernel(kernel, direction, {n: _SIGNATURE[n] for n in kernel.arg_names if n in _SIGNATURE}, configs, specimens,
                  occupancy=0.1875 if direction == "forward" else 0.25)


_forward = _declared(narrow_attention_kernel, "forward", Config(4), Config(2), Config(1), Config(8))
_backward = _declared(narrow_attention_backward_kernel, "backward", Config(8), Config(4), Config(2), Config(1))


def _launch(kernel: Kernel, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
            max_length: int, heads: int, **arguments) -> None:
    """Once for each size of tile that rows may have."""
    in_weight, in_bias, out_weight, out_bias = weights
    batch, width = offsets.shape[0] - 1, x.shape[1]
    shortest = 1
    for tile in TILES:
        if shortest > max_length:
            break
        kernel(lambda _: (batch,), (*bucket(batch, width, tile), heads), x=x, offsets=offsets,
               norm_weight=norm[0] if norm else None, norm_bias=norm[1] if norm else None, in_weight=in_weight,
               in_bias=in_bias, out_weight=out_weight, out_bias=out_bias, x_row=x.stride(0), x_col=x.stride(1),
               in_row=in_weight.stride(0), in_col=in_weight.stride(1), out_row=out_weight.stride(0),
               out_col=out_weight.stride(1), scale=LOG2E / math.sqrt(width // heads), shortest=shortest,
               HAS_NORM=bool(norm), ACTIVATION=CODES[activation], BLOCK_T=tile, **_shape(width, heads), **arguments)
        shortest = tile + 1


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str, max_length: int,
            heads: int) -> Tensor:
    """Where it ``fits``; vectors are dense."""
    out = x.new_empty(x.shape)
    _launch(_forward, x, offsets, norm, weights, activation, max_length, heads, out=out)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int, heads: int) -> list[Tensor]:
    n, width = x.shape
    mixed, dpre, dqkv = x.new_empty(n, width), x.new_empty(n, width), x.new_empty(n, 3 * width)
    statistics = x.new_empty(n, 2) if norm else None
    _launch(_backward, x, offsets, norm, weights, activation, max_length, heads, gradient=gradient, mixed=mixed, dpre=dpre,
            dqkv=dqkv, statistics=statistics, gradient_row=gradient.stride(0), gradient_col=gradient.stride(1),
            inverse_root=1 / math.sqrt(width // heads))
    partials = _flat.Partials(x, [w.shape for w in weights])
    partials.add(dqkv, x, 0, 1, norm=norm, statistics=statistics)
    partials.add(dpre, mixed, 2, 3)
    dx, dnorm = _flat.input_gradient(dqkv, [weights[0]], gradient, x, norm)
    return [dx, *dnorm, *partials.gradients()]
