"""What the machine could do at best: measured GEMM rate and copy bandwidth, and the work a case must do."""

from __future__ import annotations

import time

import numpy as np
import torch

from ..space.choices import LAYERS, width
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
    """Floating point operations of one batch with these history lengths, two per multiply-add.

    Linear parts count Σ T elements, attention Σ T². Norms, activations and pools are left out.
    """
    schema, arch, k = case.schema, case.architecture, case.embedding_dim
    rows = len(lengths)
    d = schema.num_behavior * k
    elements = int(lengths.sum()) if d else 0
    pairs = int((lengths.astype(np.int64) ** 2).sum()) if d else 0
    unit = 36 * 4 * d + 36  # the local activation unit, multiply-adds per element
    total = 0
    for block in arch.behavior:
        layer = LAYERS[block.layer]
        if layer.kernel:
            total += elements * d * d * layer.kernel
        elif block.layer == "bi_gru":
            half = d // 2
            total += elements * 2 * 3 * half * (d + half)
        elif block.layer.startswith("self_attn"):
            total += elements * 4 * d * d + pairs * 2 * d
        elif block.layer == "target_attn":
            total += elements * unit
    if schema.target:
        total += elements * (unit + d)
    count = schema.num_fields + len(arch.interactions)
    k0 = history_width(case) + count * k
    inputs = k0
    for entry in arch.mlp:
        outputs = entry.width or width(entry.ratio, k0)
        total += rows * inputs * outputs
        inputs = outputs
    total += rows * sum(len(fields) - 1 for fields in arch.interactions) * k // 2
    if count and arch.shortcut == "se":
        squeezed = max(1, count // 2)
        total += rows * (2 * count * k + 2 * count * squeezed)
        inputs += k
    if schema.task == "retrieval":
        total += rows * (inputs * k + k * schema.size(schema.item_vocabulary))
    else:
        total += rows * inputs
    return 2 * total


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


def history_width(case: Case) -> int:
    """Width of h_a."""
    return (3 if case.schema.target else 2) * case.schema.num_behavior * case.embedding_dim


def shortest(flop: int, moved: int, gemm: float, copy: float) -> float:
    """Seconds below which this machine cannot do the work: the larger of its arithmetic and its traffic."""
    return max(flop / gemm, moved / copy)
