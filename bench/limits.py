"""What the machine could do at best: measured GEMM rate and copy bandwidth, and the work a case must do."""

from __future__ import annotations

import time

import numpy as np
import torch

from ..cost import forward_work
from .suites import Case

GEMM_SIZE = 1536
COPY_FLOATS = 32 * 2**20  # 128 MiB: beyond every cache


def gemm_rate() -> float:
    """FLOP/s of one fp32 ``torch.mm`` 1536³ after a warm-up; callers take the median over their repeats."""
    left = torch.rand(GEMM_SIZE, GEMM_SIZE)
    right = torch.rand(GEMM_SIZE, GEMM_SIZE)
    out = torch.mm(left, right)
    start = time.perf_counter()
    torch.mm(left, right, out=out)
    return 2 * GEMM_SIZE**3 / (time.perf_counter() - start)


def copy_rate() -> float:
    """Bytes/s, read plus written, of copying 128 MiB after a warm-up."""
    source = torch.zeros(COPY_FLOATS)
    target = torch.empty_like(source)
    target.copy_(source)
    start = time.perf_counter()
    target.copy_(source)
    return 2 * 4 * COPY_FLOATS / (time.perf_counter() - start)


def flops(case: Case, lengths: np.ndarray) -> int:
    """Floating point operations of one batch with these history lengths (``ameir_fast.cost``)."""
    return sum(work.flops for work in forward_work(case.schema, case.architecture, case.embedding_dim, lengths))


def bytes_moved(case: Case, lengths: np.ndarray, weights: int) -> int:
    """Bytes that any engine must move: ids, the embeddings they name, all other weights once, and the
    output."""
    schema = case.schema
    rows = len(lengths)
    elements = int(lengths.sum()) if schema.num_behavior else 0
    looked_up = rows * schema.num_fields + elements * schema.num_behavior
    total = looked_up * 4 * (1 + case.embedding_dim) + 4 * weights
    if schema.task == "retrieval":
        items = schema.size(schema.item_vocabulary)
        return total + 4 * items * case.embedding_dim + 4 * rows * items
    return total + 4 * rows


def shortest(flop: int, moved: int, gemm: float, copy: float) -> float:
    """Seconds below which this machine cannot do the work: the larger of its arithmetic and its traffic."""
    return max(flop / gemm, moved / copy)
