"""Device functions that look fields up and multiply them in registers, and the pooling of bags.

The parts of a sample are its N field embeddings ``e_f`` [K] and its m products; ``_plan.Plan`` says which field stands
where. ``h_0`` is ``[dense, e_0 … e_{N-1}, p_0 … p_{m-1}]`` and exists only a block at a time: column c of it belongs
to part ``(c - A) // K``, component ``(c - A) % K``, with A dense ones, so that blocks are full whatever K is.

Bags are pooled beforehand into [B, multi, K], once: a field's mean is read by the field's own columns and by each
product it is in.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket
from ._plan import Plan


@triton.jit
def lookup(embedding, rows, pooled, slots, samples, fields, components, present, wanted, inside, other: tl.constexpr,
           embedding_row, embedding_column, rows_row, rows_column, K: tl.constexpr, MULTI: tl.constexpr):
    """``e_field[component]`` of int64 samples that are ``present``, fields that are ``wanted`` and components that are
    ``inside``; ``other`` elsewhere. Shapes broadcast; an id is read once for each place of samples and fields."""
    chosen = present & wanted
    if MULTI > 0:
        slot = tl.load(slots + fields, wanted, other=0)
        single, in_bag = chosen & (slot < 0), chosen & (slot >= 0)
        ids = tl.load(rows + (samples * rows_row + fields.to(tl.int64) * rows_column), single, other=0)
        value = tl.load(embedding + (ids * embedding_row + components * embedding_column), single & inside,
                        other=other)
        mean = tl.load(pooled + ((samples * MULTI + slot) * K + components), in_bag & inside, other=other)
        value = tl.where(slot >= 0, mean, value)
    else:
        ids = tl.load(rows + (samples * rows_row + fields.to(tl.int64) * rows_column), chosen, other=0)
        value = tl.load(embedding + (ids * embedding_row + components * embedding_column), chosen & inside,
                        other=other)
    return value


@triton.jit
def parts_block(embedding, rows, pooled, slots, factors, samples, parts, components, present, wanted, inside, last,
                fields, order, embedding_row, embedding_column, rows_row, rows_column, K: tl.constexpr,
                MULTI: tl.constexpr):
    """Components of parts: fields, or products of up to ``order`` of them; 0 beyond the masks. ``last`` is the last
    part: where it is a field, products are not looked at."""
    of_product = wanted & (parts >= fields)
    table = factors + (parts - fields) * order
    first = tl.where(of_product, tl.load(table, of_product, other=0), parts)
    values = lookup(embedding, rows, pooled, slots, samples, first, components, present, wanted, inside, 0.0,
                    embedding_row, embedding_column, rows_row, rows_column, K, MULTI)
    for place in range(1, tl.where(last >= fields, order, 1)):
        field = tl.load(table + place, of_product, other=-1)
        values *= lookup(embedding, rows, pooled, slots, samples, field, components, present, field >= 0, inside, 1.0,
                         embedding_row, embedding_column, rows_row, rows_column, K, MULTI)
    return values


@triton.jit
def columns_block(begin, samples, present, embedding, rows, pooled, slots, factors, fields, columns, order,
                  embedding_row, embedding_column, rows_row, rows_column, K: tl.constexpr, MULTI: tl.constexpr,
                  BLOCK_C: tl.constexpr):
    """[e, p][samples, begin : begin + BLOCK_C] of ``columns``; samples int64 [BLOCK_B] of which ``present`` exist."""
    column = begin + tl.arange(0, BLOCK_C)[None, :]
    return parts_block(embedding, rows, pooled, slots, factors, samples[:, None], column // K, column % K,
                       present[:, None], column < columns, column < columns,
                       (tl.minimum(begin + BLOCK_C, columns) - 1) // K, fields, order, embedding_row,
                       embedding_column, rows_row, rows_column, K, MULTI)


@triton.jit
def bag_means_kernel(pooled, embedding, bag_rows, bag_offsets, bags, bag_stride, embedding_row, embedding_column,
                     K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr):
    """Means of bags, [bags, K]: each bag's rows one after the other, side by side with those of its neighbours."""
    bag = tl.program_id(0).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    k = tl.arange(0, BLOCK_K)
    present = bag < bags
    begin = tl.load(bag_offsets + bag, present, other=0)
    count = tl.load(bag_offsets + bag + 1, present, other=0) - begin
    total = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for j in range(tl.max(count)):
        here = j < count
        ids = tl.load(bag_rows + (begin + j) * bag_stride, here, other=0)
        total += tl.load(embedding + ids[:, None] * embedding_row + k[None, :] * embedding_column,
                         here[:, None] & (k < K)[None, :], other=0.0)
    mean = total / tl.maximum(count, 1).to(tl.float32)[:, None]
    tl.store(pooled + bag[:, None] * K + k[None, :], mean, present[:, None] & (k < K)[None, :])


BAG_MEANS = Kernel(
    bag_means_kernel, "forward",
    {"pooled": "*fp32", "embedding": "*fp32", "bag_rows": "*i64", "bag_offsets": "*i64", "bags": "i32",
     "bag_stride": "i32", "embedding_row": "i32", "embedding_column": "i32"},
    [Config(BLOCK_B=32, maxnreg=128), Config(BLOCK_B=8), Config(BLOCK_B=128)],
    [Specimen(f"K{k}", {"bag_stride": 1, "embedding_column": 1, "K": k, "BLOCK_K": k}) for k in (4, 16, 64, 128)])


def means_of_bags(embedding: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None, samples: int,
                  plan: Plan) -> Tensor | None:
    """[B, multi, K], or None without multi-categorical fields."""
    if not plan.multi:
        return None
    bags, k = samples * plan.multi, embedding.shape[1]
    pooled = embedding.new_empty(samples, plan.multi, k)
    BAG_MEANS(lambda c: (triton.cdiv(bags, c["BLOCK_B"]),), bucket(bags, k), pooled=pooled, embedding=embedding,
              bag_rows=bag_rows, bag_offsets=bag_offsets.contiguous(), bags=bags, bag_stride=bag_rows.stride(0),
              embedding_row=embedding.stride(0), embedding_column=embedding.stride(1), K=k,
              BLOCK_K=triton.next_power_of_2(k))
    return pooled


def lookup_arguments(embedding: Tensor, rows: Tensor, pooled: Tensor | None, plan: Plan) -> dict:
    """What every kernel that looks up takes."""
    return {"embedding": embedding, "rows": rows, "pooled": pooled, "slots": plan.slots, "factors": plan.factors,
            "fields": plan.fields, "embedding_row": embedding.stride(0), "embedding_column": embedding.stride(1),
            "rows_row": rows.stride(0), "rows_column": rows.stride(1), "order": plan.order, "K": embedding.shape[1],
            "MULTI": plan.multi}


#: Their types, and the constants of a contiguous embedding without bags.
LOOKUP_SIGNATURE = {"embedding": "*fp32", "rows": "*i64", "pooled": "*fp32", "slots": "*i32", "factors": "*i32",
                    "fields": "i32", "order": "i32", "embedding_row": "i32", "embedding_column": "i32",
                    "rows_row": "i32", "rows_column": "i32"}


def lookup_constants(k: int, multi: int = 0) -> dict:
    return {"K": k, "MULTI": multi, "embedding_column": 1, "rows_column": 1,
            **({} if multi else {"pooled": None})}
