"""squeeze_excite: the shortcut from ids, ``h_se = Σ_i a_i q_i`` with ``a = σ(W2 relu(W1 (Q v)))``.

Q [N + m, K] are a sample's field embeddings and products, looked up and multiplied in registers; v [1, K], W1 [S, N +
m], W2 [N + m, S]; out [B, K]. All weights are small: a program has a tile of samples and goes over their parts twice,
BLOCK_P at a time: for ``hidden = W1 (Q v)``, and for a and the sum. The second time, rows come from the caches. Bytes
from and to device memory: 8 B N ids + 4 K B N of rows + 4 B K; 2 B (N + m) (2 K + 2 S) operations.

Backward goes over the parts three times, with everything computed again:

    hidden                       dt_i = (q_i · g) a_i (1 − a_i)               ds_i = Σ_s W1_si dh_s
                                 dh = relu'(hidden) Σ_i W2_is dt_i              dq_i = a_i g + ds_i v

and stores dq [B, N + m, K], which ``_embedding_gradient`` takes to dE, ``Σ ds_i q_i`` of its samples, a share of dv,
and the four small matrices dt, Q v [B, N + m], dh, hidden [B, S], from which ``_dense.weight_gradient`` makes dW2 and
dW1. Bytes: 4 B ((N + m) (2 K + 2) + 2 S) beside those of the forward pass.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._dense import sum_parts, weight_gradient
from ._embedding_gradient import embedding_gradient
from ._fields import LOOKUP_SIGNATURE, lookup_arguments, lookup_constants, means_of_bags, parts_block
from ._launch import Config, Kernel, Specimen, bucket
from ._plan import Plan, plan_of


@triton.jit
def some_parts(begin, first_sample, embedding, rows, pooled, slots, factors, samples, parts, fields, order,
               embedding_row, embedding_column, rows_row, rows_column, K: tl.constexpr, MULTI: tl.constexpr,
               BLOCK_K: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr):
    """q [BLOCK_B, BLOCK_P, BLOCK_K] of parts ``begin`` and following."""
    i = tl.arange(0, BLOCK_B * BLOCK_P)[:, None]
    k = tl.arange(0, BLOCK_K)[None, :]
    sample, part = first_sample + i // BLOCK_P, begin + i % BLOCK_P
    q = parts_block(embedding, rows, pooled, slots, factors, sample, part, k, sample < samples, part < parts, k < K,
                    tl.minimum(begin + BLOCK_P, parts) - 1, fields, order, embedding_row, embedding_column, rows_row,
                    rows_column, K, MULTI)
    return tl.reshape(q, [BLOCK_B, BLOCK_P, BLOCK_K])


@triton.jit
def small_block(matrix, row, column, rows, columns, stride_row, stride_column):
    """matrix[row, column], 0 beyond it."""
    return tl.load(matrix + row[:, None] * stride_row + column[None, :] * stride_column,
                   (row < rows)[:, None] & (column < columns)[None, :], other=0.0)


@triton.jit
def hidden_units(first_sample, v, squeeze, squeeze_row, squeeze_column, hidden_size, embedding, rows, pooled, slots,
                 factors, samples, parts, fields, order, embedding_row, embedding_column, rows_row, rows_column,
                 K: tl.constexpr, MULTI: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr,
                 BLOCK_B: tl.constexpr, BLOCK_P: tl.constexpr):
    """W1 (Q v), [BLOCK_B, BLOCK_S]."""
    hidden = tl.zeros([BLOCK_B, BLOCK_S], tl.float32)
    for begin in range(0, parts, BLOCK_P):
        q = some_parts(begin, first_sample, embedding, rows, pooled, slots, factors, samples, parts, fields, order,
                       embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_K, BLOCK_B, BLOCK_P)
        projected = tl.sum(q * v[None, None, :], 2)
        w = small_block(squeeze, tl.arange(0, BLOCK_S), begin + tl.arange(0, BLOCK_P), hidden_size, parts,
                        squeeze_row, squeeze_column)
        hidden += tl.sum(projected[:, None, :] * w[None, :, :], 2)
    return hidden


@triton.jit
def excitations(hidden, w):
    """a [BLOCK_B, BLOCK_P] of the parts whose rows of W2 are ``w``, [BLOCK_P, BLOCK_S]."""
    return tl.sigmoid(tl.sum(tl.maximum(hidden, 0.0)[:, None, :] * w[None, :, :], 2))


@triton.jit
def squeeze_excite_kernel(out, project, squeeze, excite, embedding, rows, pooled, slots, factors, samples, parts,
                          hidden_size, fields, order, project_column, squeeze_row, squeeze_column, excite_row,
                          excite_column, embedding_row, embedding_column, rows_row, rows_column, K: tl.constexpr,
                          MULTI: tl.constexpr, BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr,
                          BLOCK_P: tl.constexpr):
    first_sample = tl.program_id(0).to(tl.int64) * BLOCK_B
    k = tl.arange(0, BLOCK_K)
    v = tl.load(project + k * project_column, k < K, other=0.0)
    hidden = hidden_units(first_sample, v, squeeze, squeeze_row, squeeze_column, hidden_size, embedding, rows, pooled,
                          slots, factors, samples, parts, fields, order, embedding_row, embedding_column, rows_row,
                          rows_column, K, MULTI, BLOCK_K, BLOCK_S, BLOCK_B, BLOCK_P)
    total = tl.zeros([BLOCK_B, BLOCK_K], tl.float32)
    for begin in range(0, parts, BLOCK_P):
        w = small_block(excite, begin + tl.arange(0, BLOCK_P), tl.arange(0, BLOCK_S), parts, hidden_size, excite_row,
                        excite_column)
        a = excitations(hidden, w)
        q = some_parts(begin, first_sample, embedding, rows, pooled, slots, factors, samples, parts, fields, order,
                       embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_K, BLOCK_B, BLOCK_P)
        total += tl.sum(a[:, :, None] * q, 1)
    sample = first_sample + tl.arange(0, BLOCK_B)
    tl.store(out + sample[:, None] * K + k[None, :], total, (sample < samples)[:, None] & (k < K)[None, :])


@triton.jit
def squeeze_excite_backward_kernel(d_parts, d_project, d_raw, projected, d_hidden, hidden_out, gradient, project,
                                   squeeze, excite, embedding, rows, pooled, slots, factors, samples, parts,
                                   hidden_size, fields, order, gradient_row, gradient_column, project_column,
                                   squeeze_row, squeeze_column, excite_row, excite_column, embedding_row,
                                   embedding_column, rows_row, rows_column, K: tl.constexpr, MULTI: tl.constexpr,
                                   BLOCK_K: tl.constexpr, BLOCK_S: tl.constexpr, BLOCK_B: tl.constexpr,
                                   BLOCK_P: tl.constexpr):
    first_sample = tl.program_id(0).to(tl.int64) * BLOCK_B
    k, s = tl.arange(0, BLOCK_K), tl.arange(0, BLOCK_S)
    sample = first_sample + tl.arange(0, BLOCK_B)
    present = (sample < samples)[:, None]
    v = tl.load(project + k * project_column, k < K, other=0.0)
    g = tl.load(gradient + sample[:, None] * gradient_row + k[None, :] * gradient_column,
                present & (k < K)[None, :], other=0.0)
    hidden = hidden_units(first_sample, v, squeeze, squeeze_row, squeeze_column, hidden_size, embedding, rows, pooled,
                          slots, factors, samples, parts, fields, order, embedding_row, embedding_column, rows_row,
                          rows_column, K, MULTI, BLOCK_K, BLOCK_S, BLOCK_B, BLOCK_P)
    tl.store(hidden_out + sample[:, None] * hidden_size + s[None, :], hidden, present & (s < hidden_size)[None, :])
    dh = tl.zeros([BLOCK_B, BLOCK_S], tl.float32)
    for begin in range(0, parts, BLOCK_P):
        part = begin + tl.arange(0, BLOCK_P)
        w = small_block(excite, part, s, parts, hidden_size, excite_row, excite_column)
        a = excitations(hidden, w)
        q = some_parts(begin, first_sample, embedding, rows, pooled, slots, factors, samples, parts, fields, order,
                       embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_K, BLOCK_B, BLOCK_P)
        dt = tl.sum(q * g[:, None, :], 2) * a * (1.0 - a)
        dh += tl.sum(dt[:, :, None] * w[None, :, :], 1)
        mask = present & (part < parts)[None, :]
        tl.store(d_raw + sample[:, None] * parts + part[None, :], dt, mask)
        tl.store(projected + sample[:, None] * parts + part[None, :], tl.sum(q * v[None, None, :], 2), mask)
    dh = tl.where(hidden > 0, dh, 0.0)
    tl.store(d_hidden + sample[:, None] * hidden_size + s[None, :], dh, present & (s < hidden_size)[None, :])
    dv = tl.zeros([BLOCK_K], tl.float32)
    for begin in range(0, parts, BLOCK_P):
        part = begin + tl.arange(0, BLOCK_P)
        a = excitations(hidden, small_block(excite, part, s, parts, hidden_size, excite_row, excite_column))
        w = small_block(squeeze, s, part, hidden_size, parts, squeeze_row, squeeze_column)
        ds = tl.sum(dh[:, :, None] * w[None, :, :], 1)
        q = some_parts(begin, first_sample, embedding, rows, pooled, slots, factors, samples, parts, fields, order,
                       embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_K, BLOCK_B, BLOCK_P)
        dv += tl.sum(tl.sum(ds[:, :, None] * q, 1), 0)
        at = (sample[:, None] * parts + part[None, :])[:, :, None] * K + k[None, None, :]
        tl.store(d_parts + at, a[:, :, None] * g[:, None, :] + ds[:, :, None] * v[None, None, :],
                 (present & (part < parts)[None, :])[:, :, None] & (k < K)[None, None, :])
    tl.store(d_project + tl.program_id(0).to(tl.int64) * K + k, dv, k < K)


BLOCK_P = 8


def _blocks(k: int, hidden: int, backwards: bool) -> dict:
    """Samples of a program, by compiling: as many as registers have room for on every architecture."""
    block_k, block_s = triton.next_power_of_2(k), triton.next_power_of_2(hidden)
    widest = max(block_k, block_s)
    if backwards:
        samples = min(8, (2048 if widest >= 64 else 1024) // (BLOCK_P * widest))
    else:
        samples = min(32, (2048 if widest <= 16 else 1024) // (BLOCK_P * widest))
    return {"BLOCK_K": block_k, "BLOCK_S": block_s, "BLOCK_P": BLOCK_P, "BLOCK_B": max(1, samples)}


_INTS = dict.fromkeys(("samples", "parts", "hidden_size", "project_column", "squeeze_row", "squeeze_column",
                       "excite_row", "excite_column"), "i32")
_WEIGHTS = dict.fromkeys(("project", "squeeze", "excite"), "*fp32")
_CONFIGS = [Config(num_warps=8), Config(num_warps=4)]


def _specimens(backwards: bool, **more) -> list[Specimen]:
    plain = {"project_column": 1, "squeeze_column": 1, "excite_column": 1, **more}
    return [Specimen(name, {**lookup_constants(k, multi), **_blocks(k, hidden, backwards), **plain})
            for name, k, hidden, multi in (("alimama", 4, 8, 0), ("criteo", 16, 22, 0), ("K64", 64, 8, 0),
                                           ("K128", 128, 8, 0), ("bags", 4, 8, 2))]


EXCITE = Kernel(squeeze_excite_kernel, "forward", {"out": "*fp32", **_WEIGHTS, **LOOKUP_SIGNATURE, **_INTS}, _CONFIGS,
                _specimens(False))
EXCITE_BACKWARD = Kernel(
    squeeze_excite_backward_kernel, "backward",
    {**dict.fromkeys(("d_parts", "d_project", "d_raw", "projected", "d_hidden", "hidden_out", "gradient"), "*fp32"),
     **_WEIGHTS, **LOOKUP_SIGNATURE, **_INTS, "gradient_row": "i32", "gradient_column": "i32"},
    _CONFIGS, _specimens(True, gradient_column=1))


def _arguments(embedding: Tensor, rows: Tensor, pooled: Tensor | None, plan: Plan, project: Tensor, squeeze: Tensor,
               excite: Tensor, backwards: bool) -> dict:
    return {**lookup_arguments(embedding, rows, pooled, plan), "project": project, "squeeze": squeeze,
            "excite": excite, "samples": rows.shape[0], "parts": plan.parts, "hidden_size": squeeze.shape[0],
            "project_column": project.stride(1), "squeeze_row": squeeze.stride(0), "squeeze_column": squeeze.stride(1),
            "excite_row": excite.stride(0), "excite_column": excite.stride(1),
            **_blocks(embedding.shape[1], squeeze.shape[0], backwards)}


def forward(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
            multi_fields: list[int], interaction_fields: list[int], orders: list[int], project: Tensor,
            squeeze: Tensor, excite: Tensor) -> Tensor:
    plan = plan_of(rows, multi_fields, interaction_fields, orders)
    samples, k = rows.shape[0], embedding.shape[1]
    pooled = means_of_bags(embedding, bag_rows, bag_offsets, samples, plan)
    arguments = _arguments(embedding, rows, pooled, plan, project, squeeze, excite, backwards=False)
    out = embedding.new_empty(samples, k)
    EXCITE(lambda _: (triton.cdiv(samples, arguments["BLOCK_B"]),), bucket(samples, plan.parts, k), out=out,
           **arguments)
    return out


def backward(gradient: Tensor, embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
             multi_fields: list[int], interaction_fields: list[int], orders: list[int], project: Tensor,
             squeeze: Tensor, excite: Tensor) -> list[Tensor]:
    plan = plan_of(rows, multi_fields, interaction_fields, orders)
    samples, k, hidden = rows.shape[0], embedding.shape[1], squeeze.shape[0]
    pooled = means_of_bags(embedding, bag_rows, bag_offsets, samples, plan)
    arguments = _arguments(embedding, rows, pooled, plan, project, squeeze, excite, backwards=True)
    programs = triton.cdiv(samples, arguments["BLOCK_B"])
    d_parts, d_project = embedding.new_empty(samples, plan.parts, k), embedding.new_empty(programs, 1, k)
    d_raw, projected = (embedding.new_empty(samples, plan.parts) for _ in range(2))
    d_hidden, hidden_out = (embedding.new_empty(samples, hidden) for _ in range(2))
    EXCITE_BACKWARD(lambda _: (programs,), bucket(samples, plan.parts, k), d_parts=d_parts, d_project=d_project,
                    d_raw=d_raw, projected=projected, d_hidden=d_hidden, hidden_out=hidden_out, gradient=gradient,
                    gradient_row=gradient.stride(0), gradient_column=gradient.stride(1), **arguments)
    return [embedding_gradient(d_parts, embedding, rows, bag_rows, bag_offsets, pooled, plan),
            sum_parts(d_project) if programs else project.new_zeros(1, k),
            weight_gradient(d_hidden, projected)[0], weight_gradient(d_raw, hidden_out, "relu")[0]]
