"""A plan's inputs from ids: rows of the embedding matrix, the embedded history, and whether every id is in its vocabulary.

``rows[b, i] = offset_i + id`` for fields, ``x[e, j·K:(j+1)·K] = E[offset_j + id]`` for the N_a ids of a history's element. An
id outside its vocabulary raises the fault flag and is read as id 0, so that nothing outside the table is touched and no
second pass over the ids is needed.

Bytes: fields 4 read and 8 written an id; history 4·N_a + 4·D read and 4·D written an element. No arithmetic to speak of.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen


@triton.jit
def field_rows_kernel(ids, sizes, offsets, rows, fault, count, COLUMNS: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < count
    column = (place % COLUMNS).to(tl.int32)
    local = tl.load(ids + place, mask=inside, other=0)
    bad = (local < 0) | (local >= tl.load(sizes + column))
    tl.store(rows + place, tl.load(offsets + column) + tl.where(bad, 0, local), mask=inside)
    found = tl.max((bad & inside).to(tl.int32), 0)
    tl.atomic_max(fault, found, mask=found > 0)


@triton.jit
def embed_history_kernel(ids, sizes, offsets, embedding, x, fault, count, COLUMNS: tl.constexpr, K: tl.constexpr,
                         BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)  # of x
    inside = place < count
    column = (place // K % COLUMNS).to(tl.int32)
    local = tl.load(ids + place // K, mask=inside, other=0)
    bad = (local < 0) | (local >= tl.load(sizes + column))
    row = tl.load(offsets + column) + tl.where(bad, 0, local)
    tl.store(x + place, tl.load(embedding + row * K + place % K, mask=inside), mask=inside)
    found = tl.max((bad & inside).to(tl.int32), 0)
    tl.atomic_max(fault, found, mask=found > 0)


_TABLES = {"ids": "*i32", "sizes": "*i32", "offsets": "*i64", "fault": "*i32"}
_rows = Kernel(field_rows_kernel, "forward", {**_TABLES, "rows": "*i64", "count": "i64"}, [Config(BLOCK=1024)],
               [Specimen("12 fields", {"COLUMNS": 12}), Specimen("39 fields", {"COLUMNS": 39})])
_embed = Kernel(embed_history_kernel, "forward", {**_TABLES, "embedding": "*fp32", "x": "*fp32", "count": "i64"},
                [Config(BLOCK=1024)],
                [Specimen("D 8", {"COLUMNS": 2, "K": 4}), Specimen("D 64", {"COLUMNS": 1, "K": 64})])


def field_rows(ids: Tensor, sizes: Tensor, offsets: Tensor, rows: Tensor, fault: Tensor) -> None:
    """Fills ``rows`` int64 [B, N] from local ``ids`` int32 [B, N]; ``sizes`` int32 and ``offsets`` int64 [N]. ``fault``
    int32 [1] becomes 1 where an id is outside its vocabulary and stays as it is otherwise. All contiguous."""
    count, columns = ids.numel(), ids.shape[1]
    _rows(lambda b: (triton.cdiv(count, b["BLOCK"]),), ids=ids, sizes=sizes, offsets=offsets, rows=rows, fault=fault,
          count=count, COLUMNS=max(1, columns))


def embed_history(ids: Tensor, sizes: Tensor, offsets: Tensor, embedding: Tensor, fault: Tensor) -> Tensor:
    """Embedded history [ΣT, N_a·K] of local ``ids`` int32 [ΣT, N_a]; the rest as in :func:`field_rows`."""
    count, columns = ids.shape
    k = embedding.shape[1]
    x = torch.empty(count, columns * k, dtype=embedding.dtype, device=embedding.device)
    _embed(lambda b: (triton.cdiv(x.numel(), b["BLOCK"]),), ids=ids, sizes=sizes, offsets=offsets, embedding=embedding,
           x=x, fault=fault, count=x.numel(), COLUMNS=columns, K=k)
    return x
