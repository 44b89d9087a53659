"""The scans of the recurrent block (``_recurrent``): one program per BLOCK_S rows and direction, as many steps as the longest
of its rows. The three [H, H] of W_hh are, by H: registers of a sum over a block (BROADCAST), operands of ``tl.dot`` that
stay where they are, or read CHUNK inputs at a time from L2 at each step."""

from __future__ import annotations

import triton
import triton.language as tl

from ._activations import activate, slope
from ._precision import dot


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
def _streamed(h, there, w, step, HIDDEN: tl.constexpr, WIDTH: tl.constexpr, CHUNK: tl.constexpr,
              PRECISION: tl.constexpr, BLOCK_S: tl.constexpr):
    """The product of a block and a matrix too wide to be kept, both read from memory CHUNK at a time: ``h`` points to the
    beginnings of rows [S, 1], ``w`` to those of columns [1, WIDTH]."""
    inside = (tl.arange(0, WIDTH) < HIDDEN)[None, :]
    y = tl.zeros([BLOCK_S, WIDTH], tl.float32)
    for start in range(0, HIDDEN, CHUNK):
        k = start + tl.arange(0, CHUNK)
        part = tl.load(h + k[None, :], mask=there & (k < HIDDEN)[None, :], other=0.0)
        y += dot(part, tl.load(w + k[:, None] * step, mask=(k < HIDDEN)[:, None] & inside, other=0.0), PRECISION)
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
def gru_scan(
    gates, offsets, weight0, weight1, bias0, bias1, x, out, before, batch, w0_row, w0_col, w1_row, w1_col, x_row, x_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, KEEP: tl.constexpr, BROADCAST: tl.constexpr,
    CHUNK: tl.constexpr, PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """``gates`` [ΣT, 2, 4, H] holds gi in its first three parts. KEEP: r, z, n and W_hn h + b_hn take their place and
    ``before`` [ΣT, 2, H] becomes the state before each step; otherwise ``out`` is written. With a CHUNK ``before`` is
    needed in any case: parts of the state are read there."""
    direction = tl.program_id(1)
    weight, bias, w_row, w_col = weight0, bias0, w0_row, w0_col
    if direction == 1:
        weight, bias, w_row, w_col = weight1, bias1, w1_row, w1_col
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
        there = (lengths > t)[:, None]
        if KEEP or CHUNK > 0:
            tl.store(before + place[:, None] * (2 * HIDDEN) + own[None, :], h, mask=mask)
            # All threads have read what is written over below, and see each other's part of the state.
            tl.debug_barrier()
        if CHUNK == 0:
            a_r = _product(h, w_r, BROADCAST, PRECISION)
            a_z = _product(h, w_z, BROADCAST, PRECISION)
            a_n = _product(h, w_n, BROADCAST, PRECISION)
        else:
            state = before + place[:, None] * (2 * HIDDEN) + direction * HIDDEN
            w = weight + units[None, :] * w_row
            a_r = _streamed(state, there, w, w_col, HIDDEN, WIDTH, CHUNK, PRECISION, BLOCK_S)
            a_z = _streamed(state, there, w + HIDDEN * w_row, w_col, HIDDEN, WIDTH, CHUNK, PRECISION, BLOCK_S)
            a_n = _streamed(state, there, w + 2 * HIDDEN * w_row, w_col, HIDDEN, WIDTH, CHUNK, PRECISION, BLOCK_S)
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
def gru_reverse_scan(
    gates, before, offsets, weight0, weight1, gradient, batch, w0_row, w0_col, w1_row, w1_col, gradient_row, gradient_col,
    HIDDEN: tl.constexpr, WIDTH: tl.constexpr, ACTIVATION: tl.constexpr, BROADCAST: tl.constexpr, CHUNK: tl.constexpr,
    PRECISION: tl.constexpr, BLOCK_S: tl.constexpr,
):
    """``gates`` becomes the gradients of gi and, in its fourth part, of W_hn h + b_hn."""
    direction = tl.program_id(1)
    weight, w_row, w_col = weight0, w0_row, w0_col
    if direction == 1:
        weight, w_row, w_col = weight1, w1_row, w1_col
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
            part = gates + at * (8 * HIDDEN) + direction * (4 * HIDDEN)
            w = weight + units[None, :] * w_col
            dh += _streamed(part, there, w, w_row, HIDDEN, WIDTH, CHUNK, PRECISION, BLOCK_S)
            dh += _streamed(part + HIDDEN, there, w + HIDDEN * w_row, w_row, HIDDEN, WIDTH, CHUNK, PRECISION, BLOCK_S)
            dh += _streamed(part + 3 * HIDDEN, there, w + 2 * HIDDEN * w_row, w_row, HIDDEN, WIDTH, CHUNK, PRECISION,
                            BLOCK_S)
