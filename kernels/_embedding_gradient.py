"""From the gradients of a sample's parts [B, N + m, K] to that of the embedding matrix [F, K].

1. ``product_gradients_kernel`` adds to a field's gradient those of the products it is in, times their other factors,
   looked up again. Only fields that are in a product are touched.
2. ``occurrence_keys_kernel`` and ``bag_members_kernel`` list the occurrences of rows: of each sample's fields, and of
   the members of bags, which get their bag's gradient divided by its size.
3. They are sorted stably by row, and summed by ``_segments``: the same bits every time. With
   ``AMEIR_FAST_TRITON_ATOMICS=1`` they are not sorted but added in any order, by atomics.

Bytes moved beside the sort: 12 K for each sample and factor of step 1, 12 for each occurrence of 2, and see
``_segments``; the dense gradient itself is 4 F K of zeros.
"""

from __future__ import annotations

import os

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._fields import LOOKUP_SIGNATURE, lookup, lookup_arguments, lookup_constants
from ._launch import Config, Kernel, Specimen, bucket
from ._plan import Plan
from ._segments import occurrence, places_block, reduce_sorted


@triton.jit
def product_gradients_kernel(gradients, involved, starts, entries, embedding, rows, pooled, slots, factors, fields,
                             order, samples, parts, members, embedding_row, embedding_column, rows_row, rows_column,
                             K: tl.constexpr, MULTI: tl.constexpr, BLOCK_K: tl.constexpr,
                             BLOCK_B: tl.constexpr):
    """Program: some samples and one field that is in products. In place, each element read and written once."""
    member = tl.program_id(0) % members
    sample = (tl.program_id(0) // members).to(tl.int64)[None, None] * BLOCK_B \
        + tl.arange(0, BLOCK_B).to(tl.int64)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    present, wanted = sample < samples, k < K
    own = gradients + (sample * parts + tl.load(involved + member)) * K + k
    total = tl.load(own, present & wanted, other=0.0)
    for place in range(tl.load(starts + member), tl.load(starts + member + 1)):
        entry = tl.load(entries + place)
        number = entry // order
        term = tl.load(gradients + (sample * parts + fields + number) * K + k, present & wanted, other=0.0)
        for factor in range(order):
            field = tl.load(factors + number * order + factor)
            if (field >= 0) & (factor != entry % order):
                term *= lookup(embedding, rows, pooled, slots, sample, tl.full([1, 1], 0, tl.int32) + field, k, present,
                               tl.full([1, 1], 1, tl.int1), wanted, 1.0, embedding_row, embedding_column, rows_row,
                               rows_column, K, MULTI)
        total += term
    tl.store(own, total, present & wanted)


@triton.jit
def occurrence_keys_kernel(keys, rows, slots, count, fields, limit, rows_row, rows_column, MULTI: tl.constexpr,
                           BLOCK: tl.constexpr):
    """Rows of a sample's fields as keys; ``limit`` in the place of bags."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = i < count
    field = i % fields
    key = tl.load(rows + i // fields * rows_row + field * rows_column, mask, other=0).to(tl.int32)
    if MULTI > 0:
        key = tl.where(tl.load(slots + field, mask, other=-1) < 0, key, limit)
    tl.store(keys + i, key, mask)


@triton.jit
def bag_members_kernel(keys, source, share, bag_rows, bag_offsets, bag_fields, bags, parts, bag_stride,
                       MULTI: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_T: tl.constexpr):
    """Of each member of a bag: its row as a key, the row of its values in [B · (N + m), K], and its share of them."""
    bag = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    present = bag < bags
    begin = tl.load(bag_offsets + bag, present, other=0)
    count = tl.load(bag_offsets + bag + 1, present, other=0) - begin
    values = bag // MULTI * parts + tl.load(bag_fields + bag % MULTI, present, other=0)
    each = 1.0 / tl.maximum(count, 1).to(tl.float32)
    for first in range(0, tl.max(count), BLOCK_T):
        j = first + tl.arange(0, BLOCK_T)[None, :]
        mask = j < count[:, None]
        at = begin[:, None] + j
        tl.store(keys + at, tl.load(bag_rows + at * bag_stride, mask, other=0).to(tl.int32), mask)
        tl.store(source + at, values[:, None] + j * 0, mask)
        tl.store(share + at, each[:, None] + j * 0.0, mask)


@triton.jit
def scatter_add_kernel(target, keys, values, source, share, count, limit, singles, fields, parts, values_row,
                       values_column, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr):
    """The unsorted way: target[key] += values, in any order."""
    place = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    key = tl.load(keys + place, place < count, other=limit)
    mask = (key >= 0) & (key < limit)
    value = occurrence(values, None, source, share, place, mask, singles, fields, parts, values_row, values_column, K,
                       BLOCK_K)
    k = tl.arange(0, BLOCK_K)
    tl.atomic_add(target + key.to(tl.int64)[:, None] * K + k[None, :], value, mask[:, None] & (k < K)[None, :],
                  sem="relaxed")


PRODUCT_GRADIENTS = Kernel(
    product_gradients_kernel, "backward",
    {"gradients": "*fp32", "involved": "*i32", "starts": "*i32", "entries": "*i32", **LOOKUP_SIGNATURE,
     "samples": "i32", "parts": "i32", "members": "i32"},
    [Config(num_warps=4), Config(num_warps=2), Config(num_warps=8)],
    [Specimen(f"K{k}", {**lookup_constants(k), "BLOCK_K": k, "BLOCK_B": places_block(k)})
     for k in (4, 16, 64, 128)]
    + [Specimen("K4 bags", {**lookup_constants(4, 2), "BLOCK_K": 4, "BLOCK_B": places_block(4)})],
    accumulates=("gradients",))

OCCURRENCE_KEYS = Kernel(
    occurrence_keys_kernel, "backward",
    {"keys": "*i32", "rows": "*i64", "slots": "*i32", "count": "i32", "fields": "i32", "limit": "i32",
     "rows_row": "i32", "rows_column": "i32"},
    [Config(BLOCK=256), Config(BLOCK=512), Config(BLOCK=1024)],
    [Specimen(label, {"rows_column": 1, "MULTI": multi}) for label, multi in (("fields", 0), ("bags", 2))])

BAG_MEMBERS = Kernel(
    bag_members_kernel, "backward",
    {"keys": "*i32", "source": "*i64", "share": "*fp32", "bag_rows": "*i64", "bag_offsets": "*i64",
     "bag_fields": "*i32", "bags": "i32", "parts": "i32", "bag_stride": "i32"},
    [Config(BLOCK_B=64, BLOCK_T=8), Config(BLOCK_B=32, BLOCK_T=32), Config(BLOCK_B=16, BLOCK_T=64)],
    [Specimen("two bags", {"bag_stride": 1, "MULTI": 2})])

SCATTER_ADD = Kernel(
    scatter_add_kernel, "backward",
    {"target": "*fp32", "keys": "*i32", "values": "*fp32", "source": "*i64", "share": "*fp32",
     **dict.fromkeys(("count", "limit", "singles", "fields", "parts", "values_row", "values_column"), "i32")},
    [Config(num_warps=4), Config(num_warps=8)],
    [Specimen(f"K{k}", {"K": k, "BLOCK_K": k, "BLOCK": places_block(k), "values_column": 1, "source": None,
                        "share": None}) for k in (4, 16, 64, 128)], accumulates=("target",))


def atomics() -> bool:
    """Whether embedding gradients may be added in any order."""
    return os.environ.get("AMEIR_FAST_TRITON_ATOMICS", "0").strip().lower() not in ("", "0", "false", "no", "off")


def embedding_gradient(gradients: Tensor, embedding: Tensor, rows: Tensor, bag_rows: Tensor | None,
                       bag_offsets: Tensor | None, pooled: Tensor | None, plan: Plan) -> Tensor:
    """dE [F, K] from ``gradients`` [B, N + m, K], contiguous, whose rows of fields are overwritten."""
    samples, k = rows.shape[0], embedding.shape[1]
    result = torch.zeros(embedding.shape, dtype=embedding.dtype, device=embedding.device)
    if samples == 0 or plan.fields == 0:
        return result
    block_k, members = triton.next_power_of_2(k), plan.involved.shape[0]
    block_b = places_block(block_k)
    PRODUCT_GRADIENTS(lambda _: (triton.cdiv(samples, block_b) * members,), bucket(samples, members, k),
                      gradients=gradients, involved=plan.involved, starts=plan.starts, entries=plan.entries,
                      samples=samples, parts=plan.parts, members=members, BLOCK_K=block_k, BLOCK_B=block_b,
                      **lookup_arguments(embedding, rows, pooled, plan))
    keys, source, share = _occurrences(embedding.shape[0], rows, bag_rows, bag_offsets, plan)
    values = gradients.view(samples * plan.parts, k)
    where = {"singles": samples * plan.fields, "fields": plan.fields, "parts": plan.parts, "source": source,
             "share": share}
    if not atomics():
        keys, order = torch.sort(keys, stable=True)
        reduce_sorted(result, keys, order, values, **where)
        return result
    SCATTER_ADD(lambda _: (triton.cdiv(keys.shape[0], block_b),), bucket(keys.shape[0], k), target=result, keys=keys,
                values=values, count=keys.shape[0], limit=embedding.shape[0], values_row=values.stride(0),
                values_column=values.stride(1), K=k, BLOCK_K=block_k, BLOCK=block_b, **where)
    return result


def _occurrences(limit: int, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                 plan: Plan) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Keys int32 of the fields of all samples, then of the bags' members; the latter's sources and shares."""
    samples, singles = rows.shape[0], rows.numel()
    extra = bag_rows.shape[0] if plan.multi else 0
    # Members that no bag has keep a key outside the matrix.
    keys = torch.full((singles + extra,), limit, dtype=torch.int32, device=rows.device)
    OCCURRENCE_KEYS(lambda c: (triton.cdiv(singles, c["BLOCK"]),), bucket(singles), keys=keys, rows=rows,
                    slots=plan.slots, count=singles, fields=plan.fields, limit=limit, rows_row=rows.stride(0),
                    rows_column=rows.stride(1), MULTI=plan.multi)
    if not plan.multi:
        return keys, None, None
    source = torch.zeros(extra, dtype=torch.int64, device=rows.device)
    share = torch.zeros(extra, dtype=torch.float32, device=rows.device)
    bags = samples * plan.multi
    BAG_MEMBERS(lambda c: (triton.cdiv(bags, c["BLOCK_B"]) if extra else 0,), bucket(bags), keys=keys[singles:],
                source=source, share=share, bag_rows=bag_rows, bag_offsets=bag_offsets.contiguous(),
                bag_fields=plan.bags, bags=bags, parts=plan.parts, bag_stride=bag_rows.stride(0), MULTI=plan.multi)
    return keys, source, share
