"""Block with a bidirectional gated recurrent layer: ``Act(BiGRU(Norm(x))) + x`` on jagged histories.

Of direction d (forward, or backward from each row's last element), with gates in the order r, z, n::

    gi = W_ih N(x_t) + b_ih                                            [3H], H = D / 2
    r = σ(gi_r + W_hr h + b_hr)    z = σ(gi_z + W_hz h + b_hz)    n = tanh(gi_n + r (W_hn h + b_hn))
    h' = (1 - z) n + z h           out[t, d H:(d + 1) H] = Act(h') + x[t, d H:(d + 1) H]

Forward: one product of all elements gives gi of both directions ([ΣT, 6H] of scratch: the part that does not wait for
the step before), then a scan: one program per direction and BLOCK_S rows, their state in registers, as many steps as
the longest of its rows, whose gi of the next step is on its way while this one is computed. W_hh stays on the chip:
in registers for H ≤ 8, where a product is a sum over a [S, H, H] block (padding to 16 would do 4 to 16 times the work),
else as an operand of ``tl.dot``. Bytes: x read once for each 32 columns of gi and once at the end, gi written and read,
out written. Operations: 12 H (D + H) of multiplying and adding for each element.

Backward: both again, the scan now writing r, z, n over gi and, beside them, W_hn h + b_hn and the state before the step
([ΣT, 10H] in all). The reverse scan carries dh and turns gates into their gradients in place; all that is left are
products of all elements: of weights as partial sums of ranges, of x through the LayerNorm.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import _flat
from ._activations import CODES, activate, slope
from ._launch import Config, Kernel, Specimen, bucket, strides
from ._precision import dot, precision
from ._sequence import padded

NARROW = 8   # up to this H a product is a sum of a block; beyond, tl.dot
KEPT = 32    # up to this padded H the three [H, H] of W_hh stay on the chip; of wider ones
CHUNK = 16   # so many inputs at a time come from L2 at each step, and of the state from where it was just written


@triton.jit
def _tanh(x):
    # By the exponential of -2|x|, which cannot overflow; near 0, where 1 - e loses digits, by the series.
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    s = x * x
    near = x * (1.0 + s * (-0.3333333333 + s * (0.1333333333 + s * (-0.05396825397 + s * 0.02186948854))))
    return tl.where(tl.abs(x) < 0.25, near, tl.where(x < 0, -far, far))


@triton.jit
def _recurrent_matrix(weight, gate, row_step, col_step, HIDDEN: tl.constexpr, WIDTH: tl.constexpr,
                      TRANSPOSED: tl.constexpr):
    """One gate's [H, H] of W_hh, padded with zeros: [outputs, inputs] or [inputs, outputs]."""
    i, j = tl.arange(0, WIDTH)[:, None], tl.arange(0, WIDTH)[None, :]
    mask = (i < HIDDEN) & (j < HIDDEN)
    if TRANSPOSED:
        w = tl.load(weight + (gate * HIDDEN + j) * row_step + i * col_step, mask=mask, other=0.0)
    else:
        w = tl.load(weight + (gate * HIDDEN + i) * row_step + j * col_step, mask=mask, other=0.0)
    return w


@triton.jit
def _product(h, w, BROADCAST: tl.constexpr, PRECISION: tl.constexpr):
    """``h w`` for h [S, WIDTH] and w [WIDTH, WIDTH]."""
    if BROADCAST:
        y = tl.sum(h[:, :, None] * w[None, :, :], axis=1)
    else:
        y = dot(h, w, PRECISION)
    return y


@triton.jit
def _rows_of(offsets, batch, direction, BLOCK_S: tl.constexpr):
    """Of a program's rows: lengths, the element where the direction begins, and the step to its next one."""
    rows = tl.program_id(0).to(tl.int64) * BLOCK_S + tl.arange(0, BLOCK_S)
    first = tl.load(offsets + rows, mask=rows < batch, other=0)
    lengths = tl.load(offsets + rows + 1, mask=rows < batch, other=0) - first
    backwards = tl.zeros([BLOCK_S], tl.int64) + direction
    return lengths, first + backwards * (lengths - 1), 1 - 2 * backwards


@triton.jit
def _scan(
    gates, offsets, weight, bias, x, out, before, batch, w_row, w_col, x_row, x_col, direction,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, BROADCAST: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    lengths, place, step = _rows_of(offsets, batch, direction, BLOCK_S)
    longest = tl.max(lengths, axis=0).to(tl.int32)
    units = tl.arange(0, WIDTH)
    inside = units < HIDDEN
    bias_r = tl.load(bias + units, mask=inside, other=0.0)[None, :]
    bias_z = tl.load(bias + HIDDEN + units, mask=inside, other=0.0)[None, :]
    bias_n = tl.load(bias + 2 * HIDDEN + units, mask=inside, other=0.0)[None, :]
    if CHUNK == 0:
        w_r = _recurrent_matrix(weight, 0, w_row, w_col, HIDDEN, WIDTH, True)
        w_z = _recurrent_matrix(weight, 1, w_row, w_col, HIDDEN, WIDTH, True)
        w_n = _recurrent_matrix(weight, 2, w_row, w_col, HIDDEN, WIDTH, True)

    own = direction * HIDDEN + units
    slot = gates + place[:, None] * (8 * HIDDEN) + (direction * (4 * HIDDEN) + units)[None, :]
    ahead = step[:, None] * (8 * HIDDEN)
    mask = (lengths > 0)[:, None] & inside[None, :]
    gi_r = tl.load(slot, mask=mask, other=0.0)
    gi_z = tl.load(slot + HIDDEN, mask=mask, other=0.0)
    gi_n = tl.load(slot + 2 * HIDDEN, mask=mask, other=0.0)
    h = tl.zeros([BLOCK_S, WIDTH], tl.float32)
    for t in range(0, longest):
        more = (lengths > t + 1)[:, None] & inside[None, :]
        next_r = tl.load(slot + ahead, mask=more, other=0.0)
        next_z = tl.load(slot + ahead + HIDDEN, mask=more, other=0.0)
        next_n = tl.load(slot + ahead + 2 * HIDDEN, mask=more, other=0.0)
        if not KEEP:
            residual = tl.load(x + place[:, None] * x_row + own[None, :] * x_col, mask=mask, other=0.0)
        if KEEP or CHUNK > 0:
            tl.store(before + place[:, None] * (2 * HIDDEN) + own[None, :], h, mask=mask)
            # All threads have read what is written over below, and see each other's part of the state.
            tl.debug_barrier()
        if CHUNK == 0:
            a_r = _product(h, w_r, BROADCAST, PRECISION)
            a_z = _product(h, w_z, BROADCAST, PRECISION)
            a_n = _product(h, w_n, BROADCAST, PRECISION)
        else:
            a_r = tl.zeros([BLOCK_S, WIDTH], tl.float32)
            a_z = tl.zeros([BLOCK_S, WIDTH], tl.float32)
            a_n = tl.zeros([BLOCK_S, WIDTH], tl.float32)
            for start in range(0, HIDDEN, CHUNK):
                ins = start + tl.arange(0, CHUNK)
                part = tl.load(before + place[:, None] * (2 * HIDDEN) + (direction * HIDDEN + ins)[None, :],
                               mask=(lengths > t)[:, None] & (ins < HIDDEN)[None, :], other=0.0)
                w = weight + units[None, :] * w_row + ins[:, None] * w_col
                there = (ins < HIDDEN)[:, None] & inside[None, :]
                a_r += dot(part, tl.load(w, mask=there, other=0.0), PRECISION)
                a_z += dot(part, tl.load(w + HIDDEN * w_row, mask=there, other=0.0), PRECISION)
                a_n += dot(part, tl.load(w + 2 * HIDDEN * w_row, mask=there, other=0.0), PRECISION)
        r = tl.sigmoid(gi_r + a_r + bias_r)
        z = tl.sigmoid(gi_z + a_z + bias_z)
        a_n += bias_n
        n = _tanh(gi_n + r * a_n)
        if KEEP:
            tl.store(slot, r, mask=mask)
            tl.store(slot + HIDDEN, z, mask=mask)
            tl.store(slot + 2 * HIDDEN, n, mask=mask)
            tl.store(slot + 3 * HIDDEN, a_n, mask=mask)
        h = n + z * (h - n)
        if not KEEP:
            tl.store(out + place[:, None] * (2 * HIDDEN) + own[None, :], activate(h, ACTIVATION) + residual, mask=mask)
        gi_r, gi_z, gi_n = next_r, next_z, next_n
        slot += ahead
        place += step
        mask = more


@triton.jit
def _reverse_scan(
    gates, before, offsets, weight, gradient, batch, w_row, w_col, gradient_row, gradient_col, direction,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BROADCAST: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    lengths, place, step = _rows_of(offsets, batch, direction, BLOCK_S)
    longest = tl.max(lengths, axis=0).to(tl.int32)
    units = tl.arange(0, WIDTH)
    inside = units < HIDDEN
    if CHUNK == 0:
        w_r = _recurrent_matrix(weight, 0, w_row, w_col, HIDDEN, WIDTH, False)
        w_z = _recurrent_matrix(weight, 1, w_row, w_col, HIDDEN, WIDTH, False)
        w_n = _recurrent_matrix(weight, 2, w_row, w_col, HIDDEN, WIDTH, False)
    own = direction * HIDDEN + units
    dh = tl.zeros([BLOCK_S, WIDTH], tl.float32)
    for back in range(0, longest):
        # All rows of the program at the same step of theirs: the shorter ones begin later, with dh still zero.
        t = longest - 1 - back
        there = (lengths > t)[:, None]
        mask = there & inside[None, :]
        at = (place + step * t)[:, None]
        slot = gates + at * (8 * HIDDEN) + direction * (4 * HIDDEN) + units[None, :]
        r = tl.load(slot, mask=mask, other=0.0)
        z = tl.load(slot + HIDDEN, mask=mask, other=0.0)
        n = tl.load(slot + 2 * HIDDEN, mask=mask, other=0.0)
        a_n = tl.load(slot + 3 * HIDDEN, mask=mask, other=0.0)
        h = tl.load(before + at * (2 * HIDDEN) + own[None, :], mask=mask, other=0.0)
        g = tl.load(gradient + at * gradient_row + own[None, :] * gradient_col, mask=mask, other=0.0)
        dh += g * slope(n + z * (h - n), ACTIVATION)
        d_n = dh * (1.0 - z) * (1.0 - n * n)
        d_z = dh * (h - n) * z * (1.0 - z)
        d_r = d_n * a_n * r * (1.0 - r)
        d_a = d_n * r
        # A block smaller than the program is held by several threads: all have read what is written over now.
        tl.debug_barrier()
        tl.store(slot, d_r, mask=mask)
        tl.store(slot + HIDDEN, d_z, mask=mask)
        tl.store(slot + 2 * HIDDEN, d_n, mask=mask)
        tl.store(slot + 3 * HIDDEN, d_a, mask=mask)
        dh *= z
        if CHUNK == 0:
            dh += _product(d_r, w_r, BROADCAST, PRECISION)
            dh += _product(d_z, w_z, BROADCAST, PRECISION)
            dh += _product(d_a, w_n, BROADCAST, PRECISION)
        else:
            tl.debug_barrier()
            for start in range(0, HIDDEN, CHUNK):
                outs = start + tl.arange(0, CHUNK)
                known = there & (outs < HIDDEN)[None, :]
                part = gates + at * (8 * HIDDEN) + direction * (4 * HIDDEN) + outs[None, :]
                w = weight + outs[:, None] * w_row + units[None, :] * w_col
                needed = (outs < HIDDEN)[:, None] & inside[None, :]
                dh += dot(tl.load(part, mask=known, other=0.0), tl.load(w, mask=needed, other=0.0), PRECISION)
                dh += dot(tl.load(part + HIDDEN, mask=known, other=0.0),
                          tl.load(w + HIDDEN * w_row, mask=needed, other=0.0), PRECISION)
                dh += dot(tl.load(part + 3 * HIDDEN, mask=known, other=0.0),
                          tl.load(w + 2 * HIDDEN * w_row, mask=needed, other=0.0), PRECISION)


@triton.jit
def gru_narrow_scan_kernel(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """``gates`` [ΣT, 2, 4, H] holds gi in its first three parts. KEEP: r, z, n and W_hn h + b_hn take their place and
    ``before`` [ΣT, 2, H] becomes the state before each step; otherwise ``out`` is written."""
    if tl.program_id(1) == 0:
        _scan(gates, offsets, weight0, bias0, x, out, before, batch, w0_row, w0_col, x_row, x_col, 0, HIDDEN, WIDTH,
              ACTIVATION, KEEP, True, CHUNK, PRECISION, BLOCK_S)
    else:
        _scan(gates, offsets, weight1, bias1, x, out, before, batch, w1_row, w1_col, x_row, x_col, 1, HIDDEN, WIDTH,
              ACTIVATION, KEEP, True, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_scan_kernel(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """The same with ``tl.dot``. With a CHUNK ``before`` is scratch without KEEP too: parts of the state are read there."""
    if tl.program_id(1) == 0:
        _scan(gates, offsets, weight0, bias0, x, out, before, batch, w0_row, w0_col, x_row, x_col, 0, HIDDEN, WIDTH,
              ACTIVATION, KEEP, False, CHUNK, PRECISION, BLOCK_S)
    else:
        _scan(gates, offsets, weight1, bias1, x, out, before, batch, w1_row, w1_col, x_row, x_col, 1, HIDDEN, WIDTH,
              ACTIVATION, KEEP, False, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_narrow_reverse_scan_kernel(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """``gates`` becomes the gradients of gi and, in its fourth part, of W_hn h + b_hn."""
    if tl.program_id(1) == 0:
        _reverse_scan(gates, before, offsets, weight0, gradient, batch, w0_row, w0_col, gradient_row, gradient_col, 0,
                      HIDDEN, WIDTH, ACTIVATION, True, CHUNK, PRECISION, BLOCK_S)
    else:
        _reverse_scan(gates, before, offsets, weight1, gradient, batch, w1_row, w1_col, gradient_row, gradient_col, 1,
                      HIDDEN, WIDTH, ACTIVATION, True, CHUNK, PRECISION, BLOCK_S)


@triton.jit
def gru_reverse_scan_kernel(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, CHUNK: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_S: tl.constexpr,
):
    """The same with ``tl.dot``."""
    if tl.program_id(1) == 0:
        _reverse_scan(gates, before, offsets, weight0, gradient, batch, w0_row, w0_col, gradient_row, gradient_col, 0,
                      HIDDEN, WIDTH, ACTIVATION, False, CHUNK, PRECISION, BLOCK_S)
    else:
        _reverse_scan(gates, before, offsets, weight1, gradient, batch, w1_row, w1_col, gradient_row, gradient_col, 1,
                      HIDDEN, WIDTH, ACTIVATION, False, CHUNK, PRECISION, BLOCK_S)


def _shape(hidden: int) -> dict[str, int]:
    width = padded(hidden) if hidden <= NARROW else padded(hidden, 16)
    return {"HIDDEN": hidden, "WIDTH": width, "CHUNK": CHUNK if width > KEPT else 0}


_POINTERS = dict.fromkeys(("gates", "weight0", "weight1", "bias0", "bias1", "x", "out", "before", "gradient"), "*fp32")
_NUMBERS = dict.fromkeys(("batch", "w0_row", "w0_col", "w1_row", "w1_col", "x_row", "x_col", "gradient_row",
                          "gradient_col"), "i32")
_SIGNATURE = _POINTERS | _NUMBERS | {"offsets": "*i64"}
_NARROW, _WIDE = {"alimama": 4, "D16": 8}, {"D32": 16, "beauty": 32, "D128": 64, "D256": 128}
_EXACT = {"ACTIVATION": CODES["gelu"], "PRECISION": "ieee"}


def _declared(kernel, direction: str, configs: tuple[Config, ...], specimens: list[Specimen]) -> Kernel:
    return Kernel(kernel, direction, {name: _SIGNATURE[name] for name in kernel.arg_names if name in _SIGNATURE}, configs,
                  specimens)


def _forward_specimens(widths: dict[str, int]) -> list[Specimen]:
    specimens = []
    for label, hidden in widths.items():
        shape = {**_shape(hidden), **_EXACT}
        scratch = {} if shape["CHUNK"] else {"before": None}
        specimens += [Specimen(label, {**shape, "KEEP": False, **scratch}),
                      Specimen(f"{label} kept", {**shape, "KEEP": True, "x": None, "out": None})]
    return specimens


def _reverse_specimens(widths: dict[str, int]) -> list[Specimen]:
    return [Specimen(label, {**_shape(hidden), **_EXACT}) for label, hidden in widths.items()]


# One warp needs no barrier between steps, and small programs spread a batch over the device; 16 rows are the least of a dot.
_narrow_configs = (Config(1, 1, BLOCK_S=8), Config(1, 1, BLOCK_S=16), Config(1, 1, BLOCK_S=4), Config(4, 1, BLOCK_S=16))
_configs = (Config(4, 1, BLOCK_S=16), Config(8, 1, BLOCK_S=16), Config(2, 1, BLOCK_S=16), Config(8, 1, BLOCK_S=32))
_narrow = _declared(gru_narrow_scan_kernel, "forward", _narrow_configs, _forward_specimens(_NARROW))
_wide = _declared(gru_scan_kernel, "forward", _configs, _forward_specimens(_WIDE))
_narrow_reverse = _declared(gru_narrow_reverse_scan_kernel, "backward", _narrow_configs, _reverse_specimens(_NARROW))
_wide_reverse = _declared(gru_reverse_scan_kernel, "backward", _configs, _reverse_specimens(_WIDE))


def _scanned(gates: Tensor, x: Tensor, offsets: Tensor, weights: list[Tensor], activation: str, max_length: int,
             out: Tensor | None, before: Tensor | None) -> None:
    batch, hidden = offsets.shape[0] - 1, weights[1].shape[1]
    (w0_row, w0_col), (w1_row, w1_col) = strides(weights[1]), strides(weights[5])
    shape = _shape(hidden)
    if before is None and shape["CHUNK"]:
        before = torch.empty_like(out)
    scan = _narrow if hidden <= NARROW else _wide
    scan(lambda blocks: (triton.cdiv(batch, blocks["BLOCK_S"]), 2), bucket(batch, hidden, max_length),
                  gates=gates, offsets=offsets, weight0=weights[1], weight1=weights[5], bias0=weights[3],
                  bias1=weights[7], x=None if out is None else x, out=out, before=before, batch=batch, w0_row=w0_row,
                  w0_col=w0_col, w1_row=w1_row, w1_col=w1_col, x_row=x.stride(0), x_col=x.stride(1),
                  ACTIVATION=CODES[activation], KEEP=out is None, PRECISION=precision(), **shape)


def _gates(x: Tensor, norm: list[Tensor], weights: list[Tensor], statistics: Tensor | None = None) -> Tensor:
    """gi of both directions, in three of every four parts of scratch [ΣT, 2, 4, H]."""
    hidden = weights[1].shape[1]
    return _flat.linear(x, norm, [weights[0], weights[4]], [weights[2], weights[6]], x.new_empty(x.shape[0], 8 * hidden),
                        4 * hidden, statistics)


def forward(x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
            max_length: int) -> Tensor:
    out = x.new_empty(x.shape)
    if x.shape[0]:
        offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
        _scanned(_gates(x, norm, weights), x, offsets, weights, activation, max_length, out, None)
    return out


def backward(gradient: Tensor, x: Tensor, offsets: Tensor, norm: list[Tensor], weights: list[Tensor], activation: str,
             max_length: int) -> list[Tensor]:
    n, width = x.shape
    if n == 0:
        return [x.new_zeros(t.shape) for t in (x, *norm, *weights)]
    offsets, norm, weights = offsets.contiguous(), _flat.vectors(norm), _flat.vectors(weights)
    hidden, batch = width // 2, offsets.shape[0] - 1
    statistics = x.new_empty(n, 2) if norm else None
    gates, before = _gates(x, norm, weights, statistics), x.new_empty(n, width)
    _scanned(gates, x, offsets, weights, activation, max_length, None, before)
    (w0_row, w0_col), (w1_row, w1_col) = strides(weights[1]), strides(weights[5])
    reverse_scan = _narrow_reverse if hidden <= NARROW else _wide_reverse
    reverse_scan(lambda blocks: (triton.cdiv(batch, blocks["BLOCK_S"]), 2), bucket(batch, hidden, max_length),
                  gates=gates, before=before, offsets=offsets, weight0=weights[1], weight1=weights[5],
                  gradient=gradient, batch=batch, w0_row=w0_row, w0_col=w0_col, w1_row=w1_row, w1_col=w1_col,
                  gradient_row=gradient.stride(0), gradient_col=gradient.stride(1), ACTIVATION=CODES[activation],
                  PRECISION=precision(), **_shape(hidden))
    partials = _flat.Partials(x, [w.shape for w in weights])
    both = {"segments": 2, "dy_segment": 4 * hidden, "place_segment": partials.places[4]}
    partials.add(gates, x, 0, 2, norm=norm, statistics=statistics, **both)
    partials.add(gates, before, 1, 3, x_segment=hidden, gate=hidden, **both)
    dx, dnorm = _flat.input_gradient(gates, [weights[0], weights[4]], gradient, x, norm, 4 * hidden)
    return [dx, *dnorm, *partials.gradients()]
