"""embedding_catch_up: rows of E [F, K] brought, in place, to where dense Adam has them after ``step`` steps in which
their gradients were zero.

A row that was current at step s (``last_step``) with moments m, v moves by ``m / D · Σ_p (−z)^p N_p(s)`` with ``D =
√v + ε H(s)`` and ``z = ε / D``; H and N_0 … N_4 of each step are columns of ``sums`` float64. Rows from before step
``exact`` are followed step by step, at most ``window`` of them: ``Σ_j η_(s+j) β1^j / (1 − β1^(s+j)) / (√v / h_j +
ε)``, ``h_j = √((1 − β2^(s+j)) / β2^j)``. Then m ← β1^d m and v ← β2^d v with d = step − s, and ``last_step`` = step.
What belongs to a step and not to a component, the table, powers and their quotients, is computed in float64 and
rounded once; components are float32.

A program has a few rows, each by its first occurrence only: ``rows`` are sorted, equal ones stand side by side, and
all but the first are masked, so that no count of distinct rows comes back to the host. Nor does an error: a row from
before ``base``, where the reference raises, stays as it is. Bytes moved: 12 for each occurrence and its sort, 24 K +
8 + 56 (or 8 for each step followed) for each distinct row that is behind; 4 for each one that is not.
"""

from __future__ import annotations

import functools
import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ._launch import Config, Kernel, Specimen, bucket


@triton.jit
def power(log_base, exponent):
    """base^exponent in float64, from the logarithm."""
    return tl.exp(log_base * exponent.to(tl.float64))


@triton.jit
def catch_up_kernel(embedding, first, second, last_step, rows, sums, logs, count, limit, base, step, exact, window,
                    eps, K: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK: tl.constexpr):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = place < count
    row = place
    if rows is not None:  # sorted: each row's first place alone
        row = tl.load(rows + place, mask, other=-1).to(tl.int64)
        mask = mask & (row != tl.load(rows + place - 1, mask & (place > 0), other=-1)) & (row >= 0) & (row < limit)
    since = tl.load(last_step + row, mask, other=step)
    # A row from before the table cannot be right; it stays as it is.
    behind = mask & (since < step) & (since >= base)
    if tl.max(behind.to(tl.int32)) > 0:
        k = tl.arange(0, BLOCK_K)
        at, present = row[:, None] * K + k[None, :], behind[:, None] & (k < K)[None, :]
        m = tl.load(first + at, present, other=0.0)
        v = tl.load(second + at, present, other=0.0)
        root = tl.sqrt(v)
        log1, log2 = tl.load(logs), tl.load(logs + 1)

        table = sums + (since - base).to(tl.int64) * 7
        expand = behind & (since >= exact)
        centre = tl.load(table, expand, other=1.0)
        over = 1.0 / (root + (eps * centre).to(tl.float32)[:, None])
        z = eps * over
        total = tl.load(table + 5, expand, other=0.0).to(tl.float32)[:, None] + z * 0.0
        for order in tl.static_range(4):
            total = tl.load(table + (4 - order), expand, other=0.0).to(tl.float32)[:, None] - z * total
        total = tl.where(m == 0.0, 0.0, total * over)  # nothing moves, and with v = 0 there may be no quotient

        follow = behind & (since < exact)
        steps = tl.minimum(tl.where(follow, step - since, 0), window)
        for j in range(1, tl.max(steps) + 1):
            now = since + j
            here = j <= steps
            rate = tl.load(sums + (now - base).to(tl.int64) * 7 + 6, here, other=0.0)
            gap = tl.full([BLOCK], 0, tl.int32) + j
            factor = tl.where(here, rate * power(log1, gap) / (1.0 - power(log1, now)), 0.0).to(tl.float32)
            scale = tl.sqrt(power(log2, gap) / (1.0 - power(log2, now))).to(tl.float32)
            total += factor[:, None] / (root * scale[:, None] + eps)

        present = present & ((m != 0.0) | (v != 0.0))  # of rows that never had a gradient nothing is stored
        value = tl.load(embedding + at, present, other=0.0)
        # Threads that share a row's numbers have all read when it was last current before one writes that.
        tl.debug_barrier()
        tl.store(embedding + at, value - m * total, present)
        tl.store(first + at, m * power(log1, step - since).to(tl.float32)[:, None], present)
        tl.store(second + at, v * power(log2, step - since).to(tl.float32)[:, None], present)
        tl.store(last_step + row, tl.full([BLOCK], 0, tl.int32) + step, behind)


def _block(block_k: int) -> int:
    """Rows of a program: two numbers a thread of each tensor."""
    return min(64, max(1, 256 // block_k))


CATCH_UP = Kernel(
    catch_up_kernel, "update",
    {**dict.fromkeys(("embedding", "first", "second"), "*fp32"), "last_step": "*i32", "rows": "*i32", "sums": "*fp64",
     "logs": "*fp64", **dict.fromkeys(("count", "limit", "base", "step", "exact", "window"), "i32"), "eps": "fp32"},
    [Config(num_warps=4), Config(num_warps=2), Config(num_warps=1)],
    [Specimen(f"K{k}{label}", {"K": k, "BLOCK_K": k, "BLOCK": _block(k), **rows})
     for k, label, rows in ((4, "", {}), (16, "", {}), (16, " all rows", {"rows": None}), (64, "", {}), (128, "", {}))],
    accumulates=("embedding", "first", "second", "last_step"))


@functools.lru_cache(maxsize=64)
def _logs(beta1: float, beta2: float, device: torch.device) -> Tensor:
    """As a tensor, because scalars reach kernels as float32."""
    return torch.tensor([math.log(beta1), math.log(beta2)], dtype=torch.float64, device=device)


def forward(embedding: Tensor, first: Tensor, second: Tensor, last_step: Tensor, rows: Tensor | None, sums: Tensor,
            base: int, step: int, exact: int, window: int, beta1: float, beta2: float, eps: float) -> None:
    for name, tensor in (("embedding", embedding), ("first", first), ("second", second), ("last_step", last_step),
                         ("sums", sums)):
        if not tensor.is_contiguous():
            raise RuntimeError(f"embedding_catch_up: {name} must be contiguous")
    if not 0 <= base <= step < base + sums.shape[0]:
        raise RuntimeError(f"embedding_catch_up: steps {base} to {step} are not in the {sums.shape[0]} rows of sums")
    (limit, k), keys = embedding.shape, None
    if rows is not None:
        keys = torch.sort(rows.to(torch.int32)).values
    count, block_k = limit if keys is None else keys.shape[0], triton.next_power_of_2(k)
    CATCH_UP(lambda _: (triton.cdiv(count, _block(block_k)),), bucket(count, k), embedding=embedding,
             first=first, second=second, last_step=last_step, rows=keys, sums=sums,
             logs=_logs(beta1, beta2, embedding.device), count=count, limit=limit,
             base=base, step=step, exact=exact, window=window, eps=eps, K=k, BLOCK_K=block_k,
             BLOCK=_block(block_k))
