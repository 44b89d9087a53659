"""Scaled dot product attention over each jagged history: q, k, v of all elements in, mixed values out, and its gradients.

A program has one row, one head and BLOCK_T of its queries, and goes over the row's keys BLOCK_T at a time with a running
maximum and sum, so scores are never in memory and rows may be of any length. ``logs`` [ΣT, heads] keeps, for the
backward pass alone, log2 of the sum of a query's exponentials: with it a tile of probabilities is one product and one
exponential.

Backward: a program first takes its tile as keys and goes over the queries (dk, dv), then as queries and goes over the
keys (dq); each gradient is written once, by one program: no atomics.

Bytes: forward reads q once and k, v once for each tile of queries; a row of 50 elements is two tiles, which come from L2
the second time. Operations of a head and row: 4 T² W forward, 14 T² W backward (W columns a head).
"""

from __future__ import annotations

import math

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket
from ._precision import dot, precision
from ._sequence import padded

LOG2E = 1.4426950408889634


@triton.jit
def _tile(qkv, first, start, length, part, head, D: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
          BLOCK_T: tl.constexpr, TRANSPOSED: tl.constexpr):
    """[BLOCK_T, WIDTH] of q (part 0), k (1) or v (2) of a head, zero outside the row; or that transposed."""
    steps, cols = start + tl.arange(0, BLOCK_T), tl.arange(0, WIDTH)
    place = qkv + first * (3 * D) + part * D + head * HEAD
    if TRANSPOSED:
        tile = tl.load(place + steps[None, :].to(tl.int64) * (3 * D) + cols[:, None],
                       mask=(steps < length)[None, :] & (cols < HEAD)[:, None], other=0.0)
    else:
        tile = tl.load(place + steps[:, None].to(tl.int64) * (3 * D) + cols[None, :],
                       mask=(steps < length)[:, None] & (cols < HEAD)[None, :], other=0.0)
    return tile


@triton.jit
def _mixed_tile(mixed, first, start, length, head, D: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr,
                BLOCK_T: tl.constexpr):
    steps, cols = start + tl.arange(0, BLOCK_T), tl.arange(0, WIDTH)
    return tl.load(mixed + (first + steps)[:, None] * D + (head * HEAD + cols)[None, :],
                   mask=(steps < length)[:, None] & (cols < HEAD)[None, :], other=0.0)


@triton.jit
def _tile_of_queries(
    qkv, offsets, mixed, logs, scale,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """``scale`` is log2(e) / √HEAD: exponentials are powers of two."""
    row, head, start = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BLOCK_T
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    if start < length:
        steps, cols = start + tl.arange(0, BLOCK_T), tl.arange(0, WIDTH)
        q = _tile(qkv, first, start, length, 0, head, D, HEAD, WIDTH, BLOCK_T, False) * scale
        out = tl.zeros([BLOCK_T, WIDTH], tl.float32)
        top = tl.full([BLOCK_T], float("-inf"), tl.float32)
        total = tl.zeros([BLOCK_T], tl.float32)
        for begin in range(0, length, BLOCK_T):
            k = _tile(qkv, first, begin, length, 1, head, D, HEAD, WIDTH, BLOCK_T, True)
            s = dot(q, k, PRECISION)
            s = tl.where((begin + tl.arange(0, BLOCK_T) < length)[None, :], s, float("-inf"))
            above = tl.maximum(top, tl.max(s, axis=1))
            p = tl.exp2(s - above[:, None])
            shrink = tl.exp2(top - above)
            total = total * shrink + tl.sum(p, axis=1)
            v = _tile(qkv, first, begin, length, 2, head, D, HEAD, WIDTH, BLOCK_T, False)
            out = out * shrink[:, None] + dot(p, v, PRECISION)
            top = above
        mask = steps < length
        tl.store(mixed + (first + steps)[:, None] * D + (head * HEAD + cols)[None, :], out / total[:, None],
                 mask=mask[:, None] & (cols < HEAD)[None, :])
        if logs is not None:
            tl.store(logs + (first + steps) * HEADS + head, top + tl.log2(total), mask=mask)


@triton.jit
def _backward_of_tile(
    qkv, offsets, mixed, logs, dmixed, dqkv, scale, inverse_root,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """``inverse_root`` is 1 / √HEAD and ``scale`` log2(e) times it."""
    row, head, start = tl.program_id(0), tl.program_id(1), tl.program_id(2) * BLOCK_T
    first = tl.load(offsets + row)
    length = (tl.load(offsets + row + 1) - first).to(tl.int32)
    if start < length:
        own, cols = start + tl.arange(0, BLOCK_T), tl.arange(0, WIDTH)
        place = dqkv + (first + own)[:, None] * (3 * D) + (head * HEAD + cols)[None, :]
        mask = (own < length)[:, None] & (cols < HEAD)[None, :]

        # This tile as keys: blocks are [keys, queries].
        k = _tile(qkv, first, start, length, 1, head, D, HEAD, WIDTH, BLOCK_T, False)
        v = _tile(qkv, first, start, length, 2, head, D, HEAD, WIDTH, BLOCK_T, False)
        dk = tl.zeros([BLOCK_T, WIDTH], tl.float32)
        dv = tl.zeros([BLOCK_T, WIDTH], tl.float32)
        for begin in range(0, length, BLOCK_T):
            steps = begin + tl.arange(0, BLOCK_T)
            other_q = _tile(qkv, first, begin, length, 0, head, D, HEAD, WIDTH, BLOCK_T, False) * scale
            other_g = _mixed_tile(dmixed, first, begin, length, head, D, HEAD, WIDTH, BLOCK_T)
            other_o = _mixed_tile(mixed, first, begin, length, head, D, HEAD, WIDTH, BLOCK_T)
            other_along = tl.sum(other_g * other_o, axis=1)
            # Queries that are not there are zero, as are their logarithm and g: their p is 1 and adds nothing.
            other_log = tl.load(logs + (first + steps) * HEADS + head, mask=steps < length, other=0.0)
            p = tl.exp2(dot(k, tl.trans(other_q), PRECISION) - other_log[None, :])
            dv += dot(p, other_g, PRECISION)
            ds = p * (dot(v, tl.trans(other_g), PRECISION) - other_along[None, :])
            dk += dot(ds, other_q, PRECISION)
        tl.store(place + D, dk * 0.6931471805599453, mask=mask)  # ds is multiplied by q log2(e) / √HEAD above
        tl.store(place + 2 * D, dv, mask=mask)

        # As queries: blocks are [queries, keys].
        q = _tile(qkv, first, start, length, 0, head, D, HEAD, WIDTH, BLOCK_T, False) * scale
        g = _mixed_tile(dmixed, first, start, length, head, D, HEAD, WIDTH, BLOCK_T)
        o = _mixed_tile(mixed, first, start, length, head, D, HEAD, WIDTH, BLOCK_T)
        along = tl.sum(g * o, axis=1)
        log = tl.load(logs + (first + own) * HEADS + head, mask=own < length, other=0.0)
        dq = tl.zeros([BLOCK_T, WIDTH], tl.float32)
        for begin in range(0, length, BLOCK_T):
            other_k = _tile(qkv, first, begin, length, 1, head, D, HEAD, WIDTH, BLOCK_T, False)
            other_v = _tile(qkv, first, begin, length, 2, head, D, HEAD, WIDTH, BLOCK_T, True)
            there = (begin + tl.arange(0, BLOCK_T) < length)[None, :]
            p = tl.exp2(tl.where(there, dot(q, tl.trans(other_k), PRECISION) - log[:, None], float("-inf")))
            ds = p * (dot(g, other_v, PRECISION) - along[:, None])
            dq += dot(ds, other_k, PRECISION)
        tl.store(place, dq * inverse_root, mask=mask)


@triton.jit
def attention_kernel(
    qkv, offsets, mixed, logs, scale,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    _tile_of_queries(qkv, offsets, mixed, logs, scale, D, HEADS, HEAD, WIDTH, PRECISION, BLOCK_T)


@triton.jit
def attention_wide_kernel(
    qkv, offsets, mixed, logs, scale,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The same of heads of more than 32 columns, whose tiles need the registers of more warps."""
    _tile_of_queries(qkv, offsets, mixed, logs, scale, D, HEADS, HEAD, WIDTH, PRECISION, BLOCK_T)


@triton.jit
def attention_backward_kernel(
    qkv, offsets, mixed, logs, dmixed, dqkv, scale, inverse_root,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    _backward_of_tile(qkv, offsets, mixed, logs, dmixed, dqkv, scale, inverse_root, D, HEADS, HEAD, WIDTH, PRECISION,
                      BLOCK_T)


@triton.jit
def attention_wide_backward_kernel(
    qkv, offsets, mixed, logs, dmixed, dqkv, scale, inverse_root,
    D: tl.constexpr, HEADS: tl.constexpr, HEAD: tl.constexpr, WIDTH: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_T: tl.constexpr,
):
    """The same of heads of more than 32 columns."""
    _backward_of_tile(qkv, offsets, mixed, logs, dmixed, dqkv, scale, inverse_root, D, HEADS, HEAD, WIDTH, PRECISION,
                      BLOCK_T)


def _shape(width: int, heads: int) -> dict[str, int]:
    return {"D": width, "HEADS": heads, "HEAD": width // heads, "WIDTH": padded(width // heads, 16)}


_SIGNATURE = dict.fromkeys(("qkv", "mixed", "logs", "dmixed", "dqkv"), "*fp32") | {"offsets": "*i64"} | \
    dict.fromkeys(("scale", "inverse_root"), "fp32")
_CASES = {"D32 2 heads": (32, 2), "beauty 2 heads": (64, 2), "beauty 4 heads": (64, 4)}
_WIDE_CASES = {"D128 2 heads": (128, 2), "D256 2 heads": (256, 2)}
WIDE = 32  # columns of a head beyond which the wide kernels take over


def _declared(kernel, direction: str, configs: tuple[Config, ...], cases: dict, occupancy: float) -> Kernel:
    specimens = [Specimen(f"{label}{suffix}", {**_shape(*case), "PRECISION": "ieee", **logs})
                 for label, case in cases.items()
                 for suffix, logs in ([("", {"logs": None}), (" kept", {})] if direction == "forward" else [("", {})])]
    return Kernel(kernel, direction, {n: _SIGNATURE[n] for n in kernel.arg_names if n in _SIGNATURE}, configs, specimens,
                  occupancy=occupancy)


_forward = _declared(attention_kernel, "forward", (
    Config(4, 1, BLOCK_T=32), Config(2, 1, BLOCK_T=16), Config(4, 1, BLOCK_T=64), Config(8, 1, BLOCK_T=64)), _CASES, 0.25)
_wide_forward = _declared(attention_wide_kernel, "forward", (
    Config(8, 1, BLOCK_T=32), Config(4, 1, BLOCK_T=16), Config(8, 1, BLOCK_T=64)), _WIDE_CASES, 0.125)
_backward = _declared(attention_backward_kernel, "backward", (
    Config(4, 1, BLOCK_T=32), Config(2, 1, BLOCK_T=16), Config(8, 1, BLOCK_T=64)), _CASES, 0.1875)
_wide_backward = _declared(attention_wide_backward_kernel, "backward", (
    Config(8, 1, BLOCK_T=16), Config(4, 1, BLOCK_T=16), Config(8, 1, BLOCK_T=32)), _WIDE_CASES, 0.125)


def _grid(offsets: Tensor, heads: int, max_length: int):
    return lambda blocks: (offsets.shape[0] - 1, heads, triton.cdiv(max_length, blocks["BLOCK_T"]))


def attention(qkv: Tensor, offsets: Tensor, mixed: Tensor, logs: Tensor | None, heads: int, max_length: int) -> None:
    """Fills ``mixed`` [ΣT, D] and, where given, ``logs`` [ΣT, heads]. ``qkv`` [ΣT, 3D] is dense."""
    width = mixed.shape[1]
    kernel = _forward if width // heads <= WIDE else _wide_forward
    kernel(_grid(offsets, heads, max_length), bucket(offsets.shape[0], width, max_length), qkv=qkv, offsets=offsets,
           mixed=mixed, logs=logs, scale=LOG2E / math.sqrt(width // heads), PRECISION=precision(), **_shape(width, heads))


def attention_backward(qkv: Tensor, offsets: Tensor, mixed: Tensor, logs: Tensor, dmixed: Tensor, dqkv: Tensor,
                       heads: int, max_length: int) -> None:
    """Fills ``dqkv`` [ΣT, 3D]."""
    width = mixed.shape[1]
    root = math.sqrt(width // heads)
    kernel = _backward if width // heads <= WIDE else _wide_backward
    kernel(_grid(offsets, heads, max_length), bucket(offsets.shape[0], width, max_length), qkv=qkv, offsets=offsets,
           mixed=mixed, logs=logs, dmixed=dmixed, dqkv=dqkv, scale=LOG2E / root, inverse_root=1 / root,
           PRECISION=precision(), **_shape(width, heads))
