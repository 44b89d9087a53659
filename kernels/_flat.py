"""Products over all elements of jagged histories, for layers whose projections do not know rows: ``[ΣT, ·]`` matrices.

* ``linear``: ``Y = N(X) W^T + b``, N the LayerNorm or nothing, and at the store one of
  ``Y``, ``Act(Y) + R`` (a block's end) or ``Act'(Y) ⊙ R`` (the gradient of what comes before the activation).
* ``weight_gradients``: ``dW = dY^T N(X)`` and ``db = Σ dY`` as partial sums of row ranges, which the caller adds up; so
  the result does not depend on which program ends first.
* ``input_gradient``: ``dX = N'(Σ_s dY_s W_s) + G`` and partial sums of the LayerNorm's own gradients.

One or two *segments*: two weights of the same shape (directions of a recurrent layer) side by side in Y.

Bytes: X is read once for each BLOCK_N columns of Y (from L2 beyond the first), W once for each BLOCK_M rows, Y written
once. N(X) is never written: mean and 1/σ of each row (2 numbers) are what the backward pass keeps of it.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket, strides
from ._precision import dot, precision
from ._sequence import NORM_EPS, layer_norm_backward, padded, shares, summed

PLAIN, RESIDUAL, SLOPE = 0, 1, 2  # what happens at the store of ``linear``
PARTS = 128       # at most so many partial sums of weight gradients
PART_ROWS = 512   # and at least so many elements in one, but in the last
NORM_PARTS = 512  # at most so many programs of the input's gradient


@triton.jit
def row_statistics(x, rows, there, stride_row, stride_col, WIDTH: tl.constexpr, BLOCK_K: tl.constexpr,
                   BLOCK_M: tl.constexpr):
    """Mean and 1/σ of rows of ``x``, the variance from centred values; a few passes over lines that stay in L1."""
    total = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        total += tl.sum(tl.load(x + rows[:, None] * stride_row + cols[None, :] * stride_col,
                                mask=there[:, None] & (cols < WIDTH)[None, :], other=0.0), axis=1)
    mean = total / WIDTH
    squares = tl.zeros([BLOCK_M], tl.float32)
    for start in range(0, WIDTH, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        mask = there[:, None] & (cols < WIDTH)[None, :]
        values = tl.load(x + rows[:, None] * stride_row + cols[None, :] * stride_col, mask=mask, other=0.0)
        centred = tl.where(mask, values - mean[:, None], 0.0)
        squares += tl.sum(centred * centred, axis=1)
    return mean, 1.0 / tl.sqrt_rn(squares / WIDTH + NORM_EPS)


@triton.jit
def flat_linear_kernel(
    x, norm_weight, norm_bias, weight0, weight1, bias0, bias1, other, out, statistics, n,
    x_row, x_col, w0_row, w0_col, w1_row, w1_col, other_row, other_col, out_row,
    OUT: tl.constexpr, IN: tl.constexpr, SEGMENTS: tl.constexpr, SEGMENT: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_BIAS: tl.constexpr, END: tl.constexpr, ACTIVATION: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr,
):
    """Columns ``segment · SEGMENT + o`` of ``out``; ``statistics`` [n, 2] is written where it is not None."""
    tiles: tl.constexpr = (OUT + BLOCK_N - 1) // BLOCK_N
    segment, tile = tl.program_id(1) // tiles, tl.program_id(1) % tiles
    rows = tl.program_id(0).to(tl.int64) * BLOCK_M + tl.arange(0, BLOCK_M)
    there = rows < n
    outs = tile * BLOCK_N + tl.arange(0, BLOCK_N)
    wanted = outs < OUT
    weight, bias, w_row, w_col = weight0, bias0, w0_row, w0_col
    if SEGMENTS == 2:
        if segment == 1:
            weight, bias, w_row, w_col = weight1, bias1, w1_row, w1_col

    if HAS_NORM:
        mean, scale = row_statistics(x, rows, there, x_row, x_col, IN, BLOCK_K, BLOCK_M)
        if statistics is not None:
            if tl.program_id(1) == 0:
                tl.store(statistics + rows * 2, mean, mask=there)
                tl.store(statistics + rows * 2 + 1, scale, mask=there)
    y = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    for start in range(0, IN, BLOCK_K):
        cols = start + tl.arange(0, BLOCK_K)
        inside = cols < IN
        h = tl.load(x + rows[:, None] * x_row + cols[None, :] * x_col, mask=there[:, None] & inside[None, :], other=0.0)
        if HAS_NORM:
            gain = tl.load(norm_weight + cols, mask=inside, other=0.0)
            shift = tl.load(norm_bias + cols, mask=inside, other=0.0)
            h = (h - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
        w = tl.load(weight + cols[:, None].to(tl.int64) * w_col + outs[None, :].to(tl.int64) * w_row,
                    mask=inside[:, None] & wanted[None, :], other=0.0)
        y += dot(h, w, PRECISION)
    if HAS_BIAS:
        y += tl.load(bias + outs, mask=wanted, other=0.0)[None, :]
    mask = there[:, None] & wanted[None, :]
    if END != 0:
        r = tl.load(other + rows[:, None] * other_row + outs[None, :] * other_col, mask=mask, other=0.0)
        if END == 1:
            y = activate(y, ACTIVATION) + r
        else:
            y = slope(y, ACTIVATION) * r
    tl.store(out + rows[:, None] * out_row + (segment * SEGMENT + outs)[None, :], y, mask=mask)


@triton.jit
def flat_weight_gradient_kernel(
    dy, x, norm_weight, norm_bias, statistics, partials, n, part_rows, dy_row, x_row, x_col, partial_row,
    weight_place, bias_place,
    OUT: tl.constexpr, IN: tl.constexpr, GATE: tl.constexpr, DY_SEGMENT: tl.constexpr, X_SEGMENT: tl.constexpr,
    PLACE_SEGMENT: tl.constexpr, HAS_NORM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_O: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_R: tl.constexpr,
):
    """``partials[part, place + o · IN + d]`` and the same of the bias. Output o is column o of ``dy``, or, with GATE, from
    2 GATE on column o + GATE (the gate whose recurrent gradient differs from its input's)."""
    tiles: tl.constexpr = (IN + BLOCK_D - 1) // BLOCK_D
    part, segment, tile = tl.program_id(0), tl.program_id(2) // tiles, tl.program_id(2) % tiles
    outs = tl.program_id(1) * BLOCK_O + tl.arange(0, BLOCK_O)
    cols = tile * BLOCK_D + tl.arange(0, BLOCK_D)
    wanted, inside = outs < OUT, cols < IN
    dy_cols = outs + segment * DY_SEGMENT
    if GATE > 0:
        dy_cols += tl.where(outs >= 2 * GATE, GATE, 0)
    if HAS_NORM:
        gain = tl.load(norm_weight + cols, mask=inside, other=0.0)
        shift = tl.load(norm_bias + cols, mask=inside, other=0.0)
    dw = tl.zeros([BLOCK_O, BLOCK_D], tl.float32)
    db = tl.zeros([BLOCK_O], tl.float32)
    first = part.to(tl.int64) * part_rows
    for start in range(0, part_rows, BLOCK_R):
        within = start + tl.arange(0, BLOCK_R)
        rows = first + within
        there = (within < part_rows) & (rows < n)
        # Transposed as loaded: [outputs, rows] x [rows, inputs].
        g = tl.load(dy + dy_cols[:, None] + rows[None, :] * dy_row, mask=wanted[:, None] & there[None, :], other=0.0)
        h = tl.load(x + rows[:, None] * x_row + (segment * X_SEGMENT + cols)[None, :] * x_col,
                    mask=there[:, None] & inside[None, :], other=0.0)
        if HAS_NORM:
            mean = tl.load(statistics + rows * 2, mask=there, other=0.0)
            scale = tl.load(statistics + rows * 2 + 1, mask=there, other=0.0)
            h = (h - mean[:, None]) * scale[:, None] * gain[None, :] + shift[None, :]
        dw += dot(g, h, PRECISION)
        db += tl.sum(g, axis=1)
    place = partials + part.to(tl.int64) * partial_row + segment * PLACE_SEGMENT
    tl.store(place + weight_place + outs[:, None] * IN + cols[None, :], dw, mask=wanted[:, None] & inside[None, :])
    if tile == 0:
        tl.store(place + bias_place + outs, db, mask=wanted)


@triton.jit
def flat_input_gradient_kernel(
    dy, weight0, weight1, gradient, x, norm_weight, dx, partials, n,
    dy_row, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col, x_row, x_col,
    OUT: tl.constexpr, IN: tl.constexpr, SEGMENTS: tl.constexpr, DY_SEGMENT: tl.constexpr, HAS_NORM: tl.constexpr,
    HAS_GRADIENT: tl.constexpr, PRECISION: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_O: tl.constexpr,
):
    """WIDTH ≥ IN is a power of two: a program has whole rows, as the LayerNorm's gradient needs their means."""
    cols = tl.arange(0, WIDTH)
    inside = cols < IN
    if HAS_NORM:
        gain = tl.load(norm_weight + cols, mask=inside, other=0.0)
        dgain = tl.zeros([WIDTH], tl.float32)
        dshift = tl.zeros([WIDTH], tl.float32)
    for tile in range(tl.program_id(0), tl.cdiv(n, BLOCK_M), tl.num_programs(0)):
        rows = (tl.zeros([BLOCK_M], tl.int64) + tile) * BLOCK_M + tl.arange(0, BLOCK_M)
        there = rows < n
        mask = there[:, None] & inside[None, :]
        dh = tl.zeros([BLOCK_M, WIDTH], tl.float32)
        for start in range(0, OUT, BLOCK_O):
            outs = start + tl.arange(0, BLOCK_O)
            wanted = outs < OUT
            g = tl.load(dy + rows[:, None] * dy_row + outs[None, :], mask=there[:, None] & wanted[None, :], other=0.0)
            w = tl.load(weight0 + outs[:, None].to(tl.int64) * w0_row + cols[None, :].to(tl.int64) * w0_col,
                        mask=wanted[:, None] & inside[None, :], other=0.0)
            dh += dot(g, w, PRECISION)
            if SEGMENTS == 2:
                g = tl.load(dy + rows[:, None] * dy_row + (DY_SEGMENT + outs)[None, :],
                            mask=there[:, None] & wanted[None, :], other=0.0)
                w = tl.load(weight1 + outs[:, None].to(tl.int64) * w1_row + cols[None, :].to(tl.int64) * w1_col,
                            mask=wanted[:, None] & inside[None, :], other=0.0)
                dh += dot(g, w, PRECISION)
        if HAS_NORM:
            values = tl.load(x + rows[:, None] * x_row + cols[None, :] * x_col, mask=mask, other=0.0)
            dnormed = dh
            dh, normal = layer_norm_backward(dh, values, gain[None, :], inside[None, :], IN)
            dgain += tl.sum(dnormed * normal, axis=0)
            dshift += tl.sum(dnormed, axis=0)
        if HAS_GRADIENT:
            dh += tl.load(gradient + rows[:, None] * gradient_row + cols[None, :] * gradient_col, mask=mask, other=0.0)
        tl.store(dx + rows[:, None] * IN + cols[None, :], dh, mask=mask)
    if HAS_NORM:
        place = partials + tl.program_id(0).to(tl.int64) * (2 * IN) + cols
        tl.store(place, dgain, mask=inside)
        tl.store(place + IN, dshift, mask=inside)


_POINTERS = dict.fromkeys(("x", "norm_weight", "norm_bias", "weight0", "weight1", "bias0", "bias1", "other", "out", "dy",
                           "statistics", "partials", "gradient", "dx"), "*fp32")
_NUMBERS = dict.fromkeys(("part_rows", "x_row", "x_col", "w0_row", "w0_col", "w1_row", "w1_col", "other_row", "other_col",
                          "out_row", "dy_row", "partial_row", "weight_place", "bias_place", "gradient_row",
                          "gradient_col", "n"), "i32")
SIGNATURE = _POINTERS | _NUMBERS
_EXACT = {"PRECISION": "ieee"}
_WIDTHS = {"alimama": 8, "D32": 32, "beauty": 64, "D128": 128, "D256": 256}  # of the histories


def _forwards() -> list[Specimen]:
    for_gru = [Specimen(f"{label} gates", {"OUT": 3 * d // 2, "IN": d, "SEGMENTS": 2, "SEGMENT": 2 * d, "HAS_NORM": True,
                                           "END": PLAIN, "HAS_BIAS": True, "ACTIVATION": 0, "other": None, **_EXACT})
               for label, d in _WIDTHS.items()]
    one = {"weight1": None, "bias1": None, "SEGMENTS": 1, "SEGMENT": 0, "HAS_BIAS": True, **_EXACT}
    for_heads = [Specimen(f"{label} qkv", {"OUT": 3 * d, "IN": d, "HAS_NORM": True, "END": PLAIN, "ACTIVATION": 0,
                                           "other": None, **one}) for label, d in _WIDTHS.items()]
    ends = [Specimen(f"{label} {what}", {"OUT": d, "IN": d, "HAS_NORM": False, "END": end, "ACTIVATION": CODES["gelu"],
                                         "norm_weight": None, "norm_bias": None, "statistics": None, **one})
            for label, d in _WIDTHS.items() for what, end in (("end", RESIDUAL), ("slope", SLOPE))]
    return for_gru + for_heads + ends


def _weight_gradients() -> list[Specimen]:
    bare = {"norm_weight": None, "norm_bias": None, "statistics": None, "HAS_NORM": False, "PRECISION": "ieee"}
    return [s for label, d in _WIDTHS.items() for s in (
        Specimen(f"{label} input", {"OUT": 3 * d, "IN": d, "GATE": 0, "DY_SEGMENT": 0, "X_SEGMENT": 0, "PLACE_SEGMENT": 0,
                                    "HAS_NORM": True, "PRECISION": "ieee"}),
        Specimen(f"{label} recurrent", {"OUT": 3 * d // 2, "IN": d // 2, "GATE": d // 2, "DY_SEGMENT": 2 * d,
                                        "X_SEGMENT": d // 2, "PLACE_SEGMENT": 9 * d * d // 4 + 3 * d, **bare}))]


def _input_gradients() -> list[Specimen]:
    return [s for label, d in _WIDTHS.items() for s in (
        Specimen(f"{label} gates", {"OUT": 3 * d // 2, "IN": d, "SEGMENTS": 2, "DY_SEGMENT": 2 * d, "HAS_NORM": True,
                                    "HAS_GRADIENT": True, "WIDTH": padded(d, 16), **_EXACT}),
        Specimen(f"{label} qkv", {"OUT": 3 * d, "IN": d, "SEGMENTS": 1, "DY_SEGMENT": 0, "HAS_NORM": True, "weight1": None,
                                  "HAS_GRADIENT": True, "WIDTH": padded(d, 16), **_EXACT}))]


def _named(function, types: dict) -> dict[str, str]:
    return {name: types[name] for name in function.arg_names if name in types}


_linear = Kernel(flat_linear_kernel, "forward", _named(flat_linear_kernel, SIGNATURE), (
    Config(4, 1, BLOCK_M=64, BLOCK_N=32, BLOCK_K=16), Config(4, 1, 128, BLOCK_M=64, BLOCK_N=32, BLOCK_K=16),
    Config(4, 1, BLOCK_M=32, BLOCK_N=32, BLOCK_K=16), Config(4, 2, BLOCK_M=64, BLOCK_N=64, BLOCK_K=16),
    Config(8, 2, BLOCK_M=128, BLOCK_N=64, BLOCK_K=16)), _forwards(),
    # Narrow histories, whose loops are unrolled, take more registers; of wider ones the assembler spills for one more block.
    occupancy=0.1875, default=lambda arguments: 1 if arguments["IN"] >= 32 else 0)
_weight_gradient = Kernel(
    flat_weight_gradient_kernel, "backward", _named(flat_weight_gradient_kernel, SIGNATURE), (
        Config(4, 1, BLOCK_O=32, BLOCK_D=32, BLOCK_R=32), Config(4, 2, BLOCK_O=32, BLOCK_D=32, BLOCK_R=16),
        Config(4, 2, BLOCK_O=64, BLOCK_D=64, BLOCK_R=16)), _weight_gradients())
_input_gradient = Kernel(
    flat_input_gradient_kernel, "backward", _named(flat_input_gradient_kernel, SIGNATURE), (
        Config(4, 1, BLOCK_M=32, BLOCK_O=16), Config(16, 1, BLOCK_M=16, BLOCK_O=16), Config(4, 1, BLOCK_M=16, BLOCK_O=16),
        Config(8, 2, BLOCK_M=64, BLOCK_O=16)),
    _input_gradients(), occupancy=0.1875,
    # Whole rows of 32 elements that are wider have no room in four warps' registers.
    default=lambda arguments: 1 if arguments["IN"] > 64 else 0)


def vectors(tensors: list[Tensor]) -> list[Tensor]:
    """Vectors that lie densely, as any slice of a dense one does; only an odd view is copied."""
    return [t if t.dim() != 1 or t.stride(0) == 1 else t.contiguous() for t in tensors]


def _pair(tensors: list) -> list:
    return [*tensors, None, None][:2]


def linear(x: Tensor, norm: list[Tensor], weights: list[Tensor], biases: list[Tensor], out: Tensor, segment: int = 0,
           statistics: Tensor | None = None, end: int = PLAIN, activation: str = "identity",
           other: Tensor | None = None) -> Tensor:
    """``out[:, s · segment + o] = end(N(x) W_s^T + b_s)`` of one or two weights; ``out`` has dense rows."""
    n, (width, inputs) = x.shape[0], weights[0].shape
    (w0, w1), (b0, b1) = _pair(weights), _pair(biases)
    (w0_row, w0_col), (w1_row, w1_col), (other_row, other_col) = strides(w0), strides(w1), strides(other)
    _linear(lambda blocks: (triton.cdiv(n, blocks["BLOCK_M"]), len(weights) * triton.cdiv(width, blocks["BLOCK_N"])),
            (*bucket(n, width, inputs), end), x=x, norm_weight=norm[0] if norm else None,
            norm_bias=norm[1] if norm else None, weight0=w0, weight1=w1, bias0=b0, bias1=b1, other=other, out=out,
            statistics=statistics if norm else None, n=n, x_row=x.stride(0), x_col=x.stride(1), w0_row=w0_row,
            w0_col=w0_col, w1_row=w1_row, w1_col=w1_col, other_row=other_row, other_col=other_col, out_row=out.stride(0),
            OUT=width, IN=inputs, SEGMENTS=len(weights), SEGMENT=segment, HAS_NORM=bool(norm), HAS_BIAS=bool(biases), END=end,
            ACTIVATION=CODES[activation], PRECISION=precision())
    return out


class Partials:
    """Partial sums of weight gradients: one row for each range of elements, all gradients side by side in it."""

    def __init__(self, x: Tensor, shapes: list[torch.Size]):
        self.n = x.shape[0]
        self.rows = max(PART_ROWS, triton.cdiv(self.n, PARTS))
        self.shapes, self.places = shapes, [0]
        for shape in shapes:
            self.places.append(self.places[-1] + shape.numel())
        self.sums = shares(triton.cdiv(self.n, self.rows), self.places[-1], like=x)

    def add(self, dy: Tensor, x: Tensor, weight: int, bias: int, *, segments: int = 1, dy_segment: int = 0,
            x_segment: int = 0, place_segment: int = 0, gate: int = 0, norm: list[Tensor] = (),
            statistics: Tensor | None = None) -> None:
        """Writes ``dy^T N(x)`` and the sum of ``dy`` where gradients number ``weight`` and ``bias`` are."""
        outputs, inputs = self.shapes[weight]
        _weight_gradient(
            lambda blocks: (self.sums.shape[0], triton.cdiv(outputs, blocks["BLOCK_O"]),
                            segments * triton.cdiv(inputs, blocks["BLOCK_D"])),
            bucket(self.n, outputs, inputs), dy=dy, x=x, norm_weight=norm[0] if norm else None,
            norm_bias=norm[1] if norm else None, statistics=statistics if norm else None, partials=self.sums, n=self.n,
            part_rows=self.rows, dy_row=dy.stride(0), x_row=x.stride(0), x_col=x.stride(1),
            partial_row=self.sums.stride(0), weight_place=self.places[weight], bias_place=self.places[bias],
            OUT=outputs, IN=inputs, GATE=gate, DY_SEGMENT=dy_segment, X_SEGMENT=x_segment, PLACE_SEGMENT=place_segment,
            HAS_NORM=bool(norm), PRECISION=precision())

    def gradients(self) -> list[Tensor]:
        flat = summed(self.sums)
        return [flat[a:b].view(shape) for a, b, shape in zip(self.places, self.places[1:], self.shapes, strict=False)]


def input_gradient(dy: Tensor, weights: list[Tensor], gradient: Tensor | None, x: Tensor, norm: list[Tensor],
                   segment: int = 0) -> tuple[Tensor, list[Tensor]]:
    """Gradient of the block's input, and those of the LayerNorm; ``gradient`` is what the residual passes on."""
    n, (outputs, inputs) = dy.shape[0], weights[0].shape
    dx = x.new_empty(n, inputs)
    w0, w1 = _pair(weights)
    (w0_row, w0_col), (w1_row, w1_col), (g_row, g_col) = strides(w0), strides(w1), strides(gradient)
    # As many programs as the default configuration has tiles, so that each has a row of partial sums.
    programs = min(NORM_PARTS, triton.cdiv(n, _input_gradient.default_config({"IN": inputs}).blocks["BLOCK_M"]))
    partials = shares(programs, 2, inputs, like=x) if norm else None
    _input_gradient(lambda blocks: (programs,), bucket(n, outputs, inputs), dy=dy, weight0=w0, weight1=w1,
                    gradient=gradient, x=x, norm_weight=norm[0] if norm else None, dx=dx, partials=partials, n=n,
                    dy_row=dy.stride(0), w0_row=w0_row, w0_col=w0_col, w1_row=w1_row, w1_col=w1_col, gradient_row=g_row,
                    gradient_col=g_col, x_row=x.stride(0), x_col=x.stride(1), OUT=outputs, IN=inputs,
                    SEGMENTS=len(weights), DY_SEGMENT=segment, HAS_NORM=bool(norm), HAS_GRADIENT=gradient is not None,
                    PRECISION=precision(), WIDTH=padded(inputs, 16))
    return dx, list(summed(partials).unbind(0)) if norm else []
