"""Sums over equal keys of a sorted list, without atomics and always in the same order, and what becomes of them.

The list of n occurrences is sorted stably by key (row of the embedding); ``order`` says where each one's values are.
A chunk is CHUNK sorted places. ``segment_sums_kernel``: every place where a segment or a chunk begins walks to the
end of both, at most CHUNK steps; rows that occur once, most of a large vocabulary, take one step, all side by side. A
segment within one chunk is done then; of one that runs over an edge, the chunk's share is kept, in ``heads`` if it
began earlier and in ``tails`` if it begins here. ``segment_joins_kernel``: the chunk where such a segment begins adds
the others' shares, JOIN chunks at a time, so that an id which is in every sample does not take n steps.

A finished sum is stored in ``target`` [F, K] (``SUM``), or goes into a step of sgd, Adagrad or Adam on that row.

Bytes moved: 12 n of keys and order, 4 n K of values, for each distinct row 4 K, or 8 K to 24 K with a step.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket

SUM, SGD, ADAGRAD, ADAM = 0, 1, 2, 3
CHUNK = 32


@triton.jit
def settle(total, key, mask, target, first, second, learning_rate, beta1, beta2, rest1, rest2, correction1,
           correction2, eps, K: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr):
    """What becomes of sums ``total`` [.., BLOCK_K] of rows ``key``."""
    k = tl.arange(0, BLOCK_K)
    place = key.to(tl.int64)[:, None] * K + k[None, :]
    mask = mask[:, None] & (k < K)[None, :]
    if STEP == 0:
        tl.store(target + place, total, mask)
    else:
        value = tl.load(target + place, mask, other=0.0)
        if STEP == 1:
            change = total
        elif STEP == 2:
            squares = tl.load(first + place, mask, other=0.0) + total * total
            tl.store(first + place, squares, mask)
            change = total / (tl.sqrt(squares) + eps)
        else:
            m = beta1 * tl.load(first + place, mask, other=0.0) + rest1 * total
            v = beta2 * tl.load(second + place, mask, other=0.0) + rest2 * (total * total)
            tl.store(first + place, m, mask)
            tl.store(second + place, v, mask)
            change = m / correction1 / (tl.sqrt(v / correction2) + eps)
        tl.store(target + place, value - learning_rate * change, mask)


@triton.jit
def occurrence(values, order, source, share, place, mask, singles, fields, parts, values_row, values_column,
               K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Values of sorted places. Occurrence i below ``singles`` is field i % fields of a sample, whose values lie among
    ``parts`` a sample; later ones are members of bags, with the row of their values and their share of it."""
    k = tl.arange(0, BLOCK_K)
    i = place.to(tl.int64)
    if order is not None:
        i = tl.load(order + place, mask, other=0)
    row = i // fields * parts + i % fields
    if source is not None:
        in_bag = mask & (i >= singles)
        row = tl.where(in_bag, tl.load(source + (i - singles), in_bag, other=0), row)
    value = tl.load(values + row[:, None] * values_row + k[None, :] * values_column,
                    mask[:, None] & (k < K)[None, :], other=0.0)
    if source is not None:
        value *= tl.load(share + (i - singles), in_bag, other=1.0)[:, None]
    return value


@triton.jit
def segment_sums_kernel(target, first, second, heads, tails, keys, order, values, source, share, count, limit, singles,
                        fields, parts, values_row, values_column, learning_rate, beta1, beta2, rest1, rest2,
                        correction1, correction2, eps, K: tl.constexpr, BLOCK_K: tl.constexpr, STEP: tl.constexpr,
                        CHUNK: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place, place < count, other=limit)
    before = tl.load(keys + place - 1, (place > 0) & (place < count), other=-1)
    begins = (key >= 0) & (key < limit) & ((place % CHUNK == 0) | (key != before))
    total = occurrence(values, order, source, share, place, begins, singles, fields, parts, values_row, values_column,
                       K, BLOCK_K)
    walking, steps, here = begins, 1, place
    while (steps < CHUNK) & (tl.max(walking.to(tl.int32)) > 0):
        here += 1
        walking = walking & (here % CHUNK != 0)
        walking = walking & (tl.load(keys + here, walking & (here < count), other=-1) == key)
        total += occurrence(values, order, source, share, here, walking, singles, fields, parts, values_row,
                            values_column, K, BLOCK_K)
        steps += 1
    # The first place of the next chunk; a segment that is still there runs on.
    edge = (place // CHUNK + 1) * CHUNK
    runs_on = begins & (tl.load(keys + edge, begins & (edge < count), other=-1) == key)
    began_earlier = begins & (key == before)
    settle(total, key, begins & ~runs_on & ~began_earlier, target, first, second, learning_rate, beta1, beta2, rest1,
           rest2, correction1, correction2, eps, K, BLOCK_K, STEP)
    k = tl.arange(0, BLOCK_K)
    kept = (place // CHUNK).to(tl.int64)[:, None] * K + k[None, :]
    tl.store(heads + kept, total, began_earlier[:, None] & (k < K)[None, :])
    tl.store(tails + kept, total, (runs_on & ~began_earlier)[:, None] & (k < K)[None, :])


@triton.jit
def segment_joins_kernel(target, first, second, heads, tails, keys, count, limit, learning_rate, beta1, beta2, rest1,
                         rest2, correction1, correction2, eps, K: tl.constexpr, BLOCK_K: tl.constexpr,
                         STEP: tl.constexpr, CHUNK: tl.constexpr, JOIN: tl.constexpr):
    chunk = tl.program_id(0)
    last = (chunk + 1) * CHUNK - 1
    key = tl.load(keys + last, last < count, other=limit)
    follower = tl.load(keys + last + 1, last + 1 < count, other=-1)
    # Begins here: the chunk's first place has another key, or the place before it has.
    start = tl.load(keys + chunk * CHUNK)
    before = tl.load(keys + chunk * CHUNK - 1, chunk > 0, other=-1)
    if (key >= 0) & (key < limit) & (follower == key) & ((start != key) | (before != key)):
        k = tl.arange(0, BLOCK_K)
        total = tl.load(tails + chunk.to(tl.int64) * K + k, k < K, other=0.0)
        following = chunk + 1
        going = following * CHUNK < count
        while going:
            others = following + tl.arange(0, JOIN)
            same = tl.load(keys + others * CHUNK, others * CHUNK < count, other=-1) == key
            total += tl.sum(tl.load(heads + others.to(tl.int64)[:, None] * K + k[None, :],
                                    same[:, None] & (k < K)[None, :], other=0.0), 0)
            following += JOIN
            going = (tl.min(same.to(tl.int32)) > 0) & (following * CHUNK < count)
        # A block of one row, of which `settle` takes many.
        settle(total[None, :], tl.full([1], 0, tl.int32) + key, tl.full([1], 1, tl.int1), target, first, second,
               learning_rate, beta1, beta2, rest1, rest2, correction1, correction2, eps, K, BLOCK_K, STEP)


def places_block(block_k: int) -> int:
    """Places of a program, so that a thread holds few of their numbers."""
    return min(256, max(8, 1024 // block_k))


_NUMBERS = dict.fromkeys(("learning_rate", "beta1", "beta2", "rest1", "rest2", "correction1", "correction2", "eps"),
                         "fp32")
_TENSORS = dict.fromkeys(("target", "first", "second", "heads", "tails"), "*fp32")
_SUM = {"STEP": SUM, "first": None, "second": None}


def _specimens(more=lambda k: {}) -> list[Specimen]:
    return [Specimen(f"{label} K{k}", {"K": k, "BLOCK_K": k, "CHUNK": CHUNK, **step, **more(k)})
            for k in (4, 16, 64, 128) for label, step in (("sum", _SUM), ("adam", {"STEP": ADAM}))]


SEGMENT_SUMS = Kernel(
    segment_sums_kernel, "backward",
    {**_TENSORS, "keys": "*i32", "order": "*i64", "values": "*fp32", "source": "*i64", "share": "*fp32",
     **dict.fromkeys(("count", "limit", "singles", "fields", "parts", "values_row"), "i32"), "values_column": "i32",
     **_NUMBERS},
    [Config(num_warps=4), Config(num_warps=2), Config(num_warps=8)],
    _specimens(lambda k: {"values_column": 1, "source": None, "share": None, "BLOCK": places_block(k)})
    + [Specimen("sum K4 bags", {"K": 4, "BLOCK_K": 4, "CHUNK": CHUNK, **_SUM, "values_column": 1,
                                "BLOCK": places_block(4)})], accumulates=("target", "first", "second"))

SEGMENT_JOINS = Kernel(
    segment_joins_kernel, "backward", {**_TENSORS, "keys": "*i32", "count": "i32", "limit": "i32", **_NUMBERS},
    [Config(JOIN=32, num_warps=1), Config(JOIN=16, num_warps=1), Config(JOIN=64, num_warps=4)], _specimens(),
    accumulates=("target", "first", "second"))

_NOTHING = dict.fromkeys(_NUMBERS, 0.0)


def reduce_sorted(target: Tensor, keys: Tensor, order: Tensor, values: Tensor, *, step: int = SUM,
                  first: Tensor | None = None, second: Tensor | None = None, numbers: dict | None = None,
                  singles: int | None = None, fields: int = 1, parts: int = 1, source: Tensor | None = None,
                  share: Tensor | None = None) -> None:
    """Sums of ``values`` [*, K] over equal ``keys`` int32 [n], sorted, into rows of ``target`` [F, K]; keys of F and
    more are left out. ``order`` int64 [n]: see ``occurrence``."""
    count, k = keys.shape[0], target.shape[1]
    if not count:
        return
    chunks = triton.cdiv(count, CHUNK)
    kept = values.new_empty(2, chunks, k)
    shared = {"target": target, "first": first, "second": second, "heads": kept[0], "tails": kept[1], "keys": keys,
              "count": count, "limit": target.shape[0], "K": k, "BLOCK_K": triton.next_power_of_2(k), "STEP": step,
              "CHUNK": CHUNK, **(numbers or _NOTHING)}
    block = places_block(shared["BLOCK_K"])
    SEGMENT_SUMS(lambda _: (triton.cdiv(count, block),), bucket(count, k, step), order=order, values=values,
                 source=source, share=share, singles=count if singles is None else singles, fields=fields, parts=parts,
                 values_row=values.stride(0), values_column=values.stride(1), BLOCK=block, **shared)
    SEGMENT_JOINS(lambda _: (chunks,), bucket(count, k, step), **shared)
