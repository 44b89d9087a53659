"""A plan's inputs from ids, in one launch: rows of the embedding matrix, the embedded history and target, offsets that
partition them, and whether every id is in its vocabulary.

``rows[b, i] = start_i + id`` for fields, ``x[e, j·K:(j+1)·K] = E[start_j + id]`` for the N_a ids of a history's element,
``target[b, j·K:(j+1)·K] = E[rows[b, t_j]]``, ``bag_rows[p] = start + id`` with the start of the multi-categorical field whose
bag holds place p (a binary search of the offsets). The buffers are larger than the batch: what is behind it is id 0, in
spare histories of full length and in the last spare row's last bag.

An id outside its vocabulary raises the fault flag and is read as id 0; offsets that do not partition their values raise it,
and others that do take their place. So nothing outside of any table or buffer is touched by what follows, and no second pass
over the ids is needed. Each kind of work is done by programs of its own; offsets by one program each, which has to see all
before it writes any.

Bytes: fields 4 read and 8 written an id; target 4 N_t + 4 D read and 4 D written a row; history 4 N_a + 4 D read and 4 D
written an element; offsets 24 each. No arithmetic to speak of.
"""

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket


@triton.jit
def known_id(ids, place, own, sizes, column, fault):
    """The id at ``place``, 0 where there is none of ``own`` or it is outside its vocabulary, which raises the flag."""
    local = tl.load(ids + place, mask=own, other=0)
    bad = (local < 0) | (local >= tl.load(sizes + column))
    found = tl.max((bad & own).to(tl.int32), 0)
    tl.atomic_max(fault, found, mask=found > 0)
    return tl.where(bad, 0, local)


@triton.jit
def partition(source, out, fault, groups, all_groups, values, capacity, longest, step, BLOCK: tl.constexpr):
    """``out`` [all_groups + 1] from ``source`` [groups + 1], if that partitions ``values`` into groups of at most ``longest``:
    after it groups of ``step`` up to ``capacity``, which the last one reaches. If not, groups of ``step`` from the start."""
    bad = tl.zeros([BLOCK], tl.int1)
    for start in range(0, groups, BLOCK):
        i = start + tl.arange(0, BLOCK)
        inside = i < groups
        size = tl.load(source + i + 1, mask=inside, other=0) - tl.load(source + i, mask=inside, other=0)
        bad = bad | (size < 0) | (size > longest)
    found = tl.max(bad.to(tl.int32), 0)
    wrong = (found > 0) | (tl.load(source) != 0) | (tl.load(source + groups) != values)
    tl.atomic_max(fault, 1, mask=wrong)
    kept = tl.where(wrong, 0, groups)  # of the source's groups; its offset 0 is 0 in any case
    end = tl.where(wrong, 0, values)
    for start in range(0, all_groups + 1, BLOCK):
        i = start + tl.arange(0, BLOCK)
        spare = tl.minimum(end + (i - kept).to(tl.int64) * step, capacity)
        spare = tl.where(i == all_groups, capacity, spare)
        offset = tl.where(i <= kept, tl.load(source + i, mask=(i <= kept) & (i > 0), other=0), spare)
        tl.store(out + i, offset, mask=i <= all_groups)


@triton.jit
def owners(offsets, place, groups, steps):
    """The last of ``groups`` that starts at ``place`` or before it."""
    low = tl.zeros_like(place)
    high = low + groups
    for _ in range(steps):
        middle = (low + high) // 2
        before = tl.load(offsets + middle) <= place
        low = tl.where(before, middle, low)
        high = tl.where(before, high, middle)
    return low


@triton.jit
def plan_inputs_kernel(fields, history, history_offsets, bag_ids, bag_offsets, field_sizes, field_starts, behavior_sizes,
                       behavior_starts, targets, bag_sizes, bag_starts, embedding, rows, x, own_history_offsets, target,
                       bag_rows, own_bag_offsets, fault, samples, all_samples, elements, all_elements, histories,
                       all_histories, ids, all_ids, bags, all_bags, bag_steps, longest, FIELDS: tl.constexpr, BEHAVIOR: tl.constexpr,
                       TARGETS: tl.constexpr, MULTI: tl.constexpr, K: tl.constexpr, BLOCK: tl.constexpr):
    # Numbers come as int32 where they fit; products of them need not.
    program = tl.program_id(0).to(tl.int64)
    samples, all_samples = samples.to(tl.int64), all_samples.to(tl.int64)
    elements, all_elements = elements.to(tl.int64), all_elements.to(tl.int64)
    rows_end = 2 + tl.cdiv(all_samples * FIELDS, BLOCK)
    target_end = rows_end + tl.cdiv(all_samples * TARGETS * K, BLOCK)
    history_end = target_end + tl.cdiv(all_elements * BEHAVIOR * K, BLOCK)
    if program == 0:
        if BEHAVIOR:
            partition(history_offsets, own_history_offsets, fault, histories, all_histories, elements, all_elements, longest,
                      longest, BLOCK)
    elif program == 1:
        if MULTI:
            partition(bag_offsets, own_bag_offsets, fault, bags, all_bags, ids, all_ids, ids, 0, BLOCK)
    elif program < rows_end:
        if FIELDS:
            place = (program - 2) * BLOCK + tl.arange(0, BLOCK)
            column = (place % FIELDS).to(tl.int32)
            local = known_id(fields, place, place < samples * FIELDS, field_sizes, column, fault)
            tl.store(rows + place, tl.load(field_starts + column) + local, mask=place < all_samples * FIELDS)
    elif program < target_end:
        if TARGETS:  # ids of fields: known by the programs before
            place = (program - rows_end) * BLOCK + tl.arange(0, BLOCK)  # of the target
            sample = place // (TARGETS * K)
            column = tl.load(targets + place // K % TARGETS)
            local = tl.load(fields + sample * FIELDS + column, mask=sample < samples, other=0)
            local = tl.where((local < 0) | (local >= tl.load(field_sizes + column)), 0, local)
            row = tl.load(field_starts + column) + local
            inside = sample < all_samples
            tl.store(target + place, tl.load(embedding + row * K + place % K, mask=inside), mask=inside)
    elif program < history_end:
        if BEHAVIOR:
            place = (program - target_end) * BLOCK + tl.arange(0, BLOCK)  # of x
            column = (place // K % BEHAVIOR).to(tl.int32)
            local = known_id(history, place // K, place < elements * BEHAVIOR * K, behavior_sizes, column, fault)
            row = tl.load(behavior_starts + column) + local
            inside = place < all_elements * BEHAVIOR * K
            tl.store(x + place, tl.load(embedding + row * K + place % K, mask=inside), mask=inside)
    else:
        if MULTI:
            place = (program - history_end) * BLOCK + tl.arange(0, BLOCK)
            column = (owners(bag_offsets, place, bags, bag_steps) % MULTI).to(tl.int32)
            local = known_id(bag_ids, place, place < ids, bag_sizes, column, fault)
            tl.store(bag_rows + place, tl.load(bag_starts + column) + local, mask=place < all_ids)


_INTS = ("fields", "history", "bag_ids", "field_sizes", "behavior_sizes", "targets", "bag_sizes", "fault")
_LONGS = ("history_offsets", "bag_offsets", "field_starts", "behavior_starts", "bag_starts", "rows", "own_history_offsets",
          "bag_rows", "own_bag_offsets")
_COUNTS = ("samples", "all_samples", "elements", "all_elements", "ids", "all_ids", "longest", "histories", "all_histories",
           "bags", "all_bags", "bag_steps")
_ABSENT = {"FIELDS": ("field_sizes", "field_starts"),
           "BEHAVIOR": ("history", "history_offsets", "behavior_sizes", "behavior_starts", "x", "own_history_offsets"),
           "TARGETS": ("targets", "target"),
           "MULTI": ("bag_ids", "bag_offsets", "bag_sizes", "bag_starts", "bag_rows", "own_bag_offsets")}


def _specimen(label: str, **constants: int) -> Specimen:
    absent = [name for part, names in _ABSENT.items() if not constants[part] for name in names]
    return Specimen(label, {**dict.fromkeys(absent), **constants})


INPUTS = Kernel(plan_inputs_kernel, "forward",
                {**dict.fromkeys(_INTS, "*i32"), **dict.fromkeys(_LONGS, "*i64"),
                 **dict.fromkeys(("embedding", "x", "target"), "*fp32"), **dict.fromkeys(_COUNTS, "i32")},
                [Config(BLOCK=1024), Config(BLOCK=512), Config(BLOCK=2048, num_warps=8)],
                # What a caller gives begins anywhere; it is read a number at a time.
                unaligned=("fields", "history", "history_offsets", "bag_ids", "bag_offsets", "fault"),
                specimens=[_specimen("alimama", FIELDS=12, BEHAVIOR=2, TARGETS=2, MULTI=0, K=4),
                           _specimen("criteo", FIELDS=39, BEHAVIOR=0, TARGETS=0, MULTI=0, K=4),
                           _specimen("all kinds", FIELDS=12, BEHAVIOR=1, TARGETS=1, MULTI=2, K=64)])


@dataclass(frozen=True)
class Tables:
    """Of a model: ``sizes`` int32 and ``starts`` int64, the rows of the matrix, of each column of fields, behaviour fields
    and multi-categorical fields; ``targets`` int32, columns of the target's fields. None for what there is none of."""

    embedding: Tensor
    longest: int
    field_sizes: Tensor | None
    field_starts: Tensor | None
    behavior_sizes: Tensor | None
    behavior_starts: Tensor | None
    targets: Tensor | None
    bag_sizes: Tensor | None
    bag_starts: Tensor | None


@dataclass(frozen=True)
class Buffers:
    """What is filled: ``rows`` int64 [B', N]; ``x`` [ΣT', D] and ``history_offsets`` int64; ``target`` [B', D]; ``bag_rows`` int64
    and ``bag_offsets`` int64. None for what there is none of. B' and so on are at least the batch's."""

    rows: Tensor
    x: Tensor | None
    history_offsets: Tensor | None
    target: Tensor | None
    bag_rows: Tensor | None
    bag_offsets: Tensor | None


def fill(fields: Tensor, history: Tensor | None, history_offsets: Tensor | None, bag_ids: Tensor | None,
         bag_offsets: Tensor | None, tables: Tables, into: Buffers, fault: Tensor) -> None:
    """Fills ``into`` from a batch's tensors (as in ``Batch``; contiguous). ``fault`` int32 [1] becomes 1 where an id or
    offsets are wrong, and stays as it is otherwise. Of the number of offsets the caller is sure."""
    count = lambda t: 0 if t is None else t.shape[0]
    groups = lambda t: max(0, count(t) - 1)
    k, columns, behavior = tables.embedding.shape[1], fields.shape[1], count(tables.behavior_sizes)
    targets, multi = count(tables.targets), count(tables.bag_sizes)
    samples, elements, ids = count(into.rows), count(into.x), count(into.bag_rows)
    work = samples * columns, samples * targets * k, elements * behavior * k, ids
    INPUTS(lambda blocks: (2 + sum(triton.cdiv(part, blocks["BLOCK"]) for part in work),), (columns, behavior, targets, multi, k, *bucket(samples, elements, ids)),
           fields=fields, history=history, history_offsets=history_offsets, bag_ids=bag_ids, bag_offsets=bag_offsets,
           field_sizes=tables.field_sizes, field_starts=tables.field_starts, behavior_sizes=tables.behavior_sizes,
           behavior_starts=tables.behavior_starts, targets=tables.targets, bag_sizes=tables.bag_sizes,
           bag_starts=tables.bag_starts, embedding=tables.embedding, rows=into.rows, x=into.x,
           own_history_offsets=into.history_offsets, target=into.target, bag_rows=into.bag_rows,
           own_bag_offsets=into.bag_offsets, fault=fault, samples=fields.shape[0], all_samples=samples,
           elements=count(history), all_elements=elements, histories=groups(history_offsets),
           all_histories=groups(into.history_offsets), ids=count(bag_ids), all_ids=ids, bags=groups(bag_offsets),
           all_bags=groups(into.bag_offsets), bag_steps=groups(bag_offsets).bit_length(), longest=tables.longest,
           FIELDS=columns, BEHAVIOR=behavior, TARGETS=targets, MULTI=multi, K=k)
