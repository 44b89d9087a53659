"""embedding_interactions: lookup, Hadamard products and the first layer in one kernel.

    out = act(W_a h_a + Σ_i W_i e_i + Σ_p W_p p + b)

E [F, K]; ids [B, N], bags for multi-categorical fields; m products p of up to any number of fields; h_a [B, A]; W [O,
C] with C = A + (N + m) K, read in place by its strides; out [B, O].

Forward: a program has a tile of rows and one of outputs, and goes over the columns of h_0 = [h_a, e, p], BLOCK_C at a
time: it looks them up, multiplies factors in registers and adds their product with W to its accumulator. Neither h_0
nor p reach device memory. Programs of the same rows follow each other, so what they look up comes from the L2 cache
after the first; W stays there. Bytes from and to device memory (``traffic``), with T = ⌈B / BLOCK_B⌉:

    loaded   8 B N ids + 4 B A + 4 K · (distinct rows of a tile, ≤ BLOCK_B N) · T + 4 T O C + 4 O
    stored   4 B O

and, for bags, once 8 and 4 K for each member, 4 B K for each mean, stored and loaded. 2 B C O operations.

Backward, with z and h_0 recomputed: the same kernel gives dz = grad ⊙ act'(z) (identity: dz = grad); ``dW = dzᵀ h_0``
of a share of the rows and one tile a program, shares added in order (``_dense``); ``[dh_a, dq] = dz W``; and
``_embedding_gradient`` takes dq [B, N + m, K] to dE. Scratch: dz, dq, and at most 4 MB of shares.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from ._activations import CODES
from ._dense import (
    ACTIVATE,
    SLOPE,
    finish,
    input_block,
    linear,
    output_block,
    store_weight_gradient,
    sum_shares,
    weight_block,
    weight_shares,
)
from ._embedding_gradient import embedding_gradient
from ._fields import LOOKUP_SIGNATURE, columns_block, lookup_arguments, lookup_constants, means_of_bags
from ._launch import Config, Kernel, Specimen, bucket, strides
from ._plan import Plan, plan_of
from ._precision import dot, precision


@triton.jit
def embedding_interactions_kernel(out, weight, bias, other, embedding, rows, pooled, slots, factors, dense, samples,
                                  outputs, columns, fields, order, dense_width, weight_row, weight_column, other_row,
                                  other_column, embedding_row, embedding_column, rows_row, rows_column, dense_row,
                                  dense_column, ACTIVATION: tl.constexpr, EPILOGUE: tl.constexpr,
                                  PRECISION: tl.constexpr, K: tl.constexpr, MULTI: tl.constexpr,
                                  BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr, BLOCK_C: tl.constexpr):
    tiles = tl.cdiv(outputs, BLOCK_N)
    sample = (tl.program_id(0) // tiles).to(tl.int64) * BLOCK_B + tl.arange(0, BLOCK_B)
    n = (tl.program_id(0) % tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    present, wanted = sample < samples, n < outputs
    z = tl.zeros([BLOCK_B, BLOCK_N], tl.float32)
    if dense is not None:
        for begin in range(0, dense_width, BLOCK_C):
            h = input_block(dense, sample, present, begin, dense_width, dense_row, dense_column, None, None, None, 0,
                            BLOCK_C)
            w = weight_block(weight, n, wanted, begin, dense_width, weight_row, weight_column, BLOCK_C)
            z += dot(h, tl.trans(w), PRECISION)
        weight += dense_width * weight_column
    for begin in range(0, columns, BLOCK_C):
        w = weight_block(weight, n, wanted, begin, columns, weight_row, weight_column, BLOCK_C)
        h = columns_block(begin, sample, present, embedding, rows, pooled, slots, factors, fields, columns,
                          order, embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_C)
        z += dot(h, tl.trans(w), PRECISION)
    z += tl.load(bias + n, wanted, other=0.0)[None, :]
    mask = present[:, None] & wanted[None, :]
    y = finish(z, other, sample, n, mask, other_row, other_column, ACTIVATION, EPILOGUE)
    tl.store(out + sample[:, None] * outputs + n[None, :], y, mask)


@triton.jit
def interactions_weight_kernel(partial, bias_partial, dz, embedding, rows, pooled, slots, factors, samples, share,
                               outputs, columns, partial_row, fields, order, dz_row, dz_column, embedding_row,
                               embedding_column, rows_row, rows_column, PRECISION: tl.constexpr,
                               K: tl.constexpr, MULTI: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_B: tl.constexpr,
                               BLOCK_C: tl.constexpr):
    output_tiles, column_tiles = tl.cdiv(outputs, BLOCK_N), tl.maximum(tl.cdiv(columns, BLOCK_C), 1)
    pid = tl.program_id(0)
    n = (pid % output_tiles) * BLOCK_N + tl.arange(0, BLOCK_N)
    begin = (pid // output_tiles % column_tiles) * BLOCK_C
    part = (pid // (output_tiles * column_tiles)).to(tl.int64)
    total = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    bias_total = tl.zeros([BLOCK_N], tl.float32)
    for start in range(0, share, BLOCK_B):
        sample = part * share + start + tl.arange(0, BLOCK_B)
        present = (sample < samples) & (start + tl.arange(0, BLOCK_B) < share)
        d = tl.load(dz + sample[:, None] * dz_row + n[None, :] * dz_column,
                    present[:, None] & (n < outputs)[None, :], other=0.0)
        h = columns_block(begin, sample, present, embedding, rows, pooled, slots, factors, fields, columns,
                          order, embedding_row, embedding_column, rows_row, rows_column, K, MULTI, BLOCK_C)
        total += dot(tl.trans(d), h, PRECISION)
        bias_total += tl.sum(d, 0)
    store_weight_gradient(partial, bias_partial, total, bias_total, part, n, begin, outputs, columns, partial_row,
                          BLOCK_C)


def _constants(k: int, dense: bool, multi: int = 0) -> dict:
    return {**lookup_constants(k, multi), "PRECISION": "ieee", "BLOCK_N": 64,
            **({"dense_column": 1} if dense else {"dense": None})}


#: K, whether there are dense features, multi-categorical fields.
_SHAPES = {"alimama": (4, True), "criteo": (16, False), "K64": (64, True), "K128": (128, False), "bags": (4, True, 2)}

INTERACTIONS = Kernel(
    embedding_interactions_kernel, "forward",
    {**dict.fromkeys(("out", "weight", "bias", "other", "dense"), "*fp32"), **LOOKUP_SIGNATURE,
     **dict.fromkeys(("samples", "outputs", "columns", "dense_width", "dense_row", "dense_column", "weight_row",
                      "weight_column", "other_row", "other_column"), "i32")},
    [Config(BLOCK_B=64, BLOCK_C=16, num_warps=8), Config(BLOCK_B=32, BLOCK_C=16), Config(BLOCK_B=64, BLOCK_C=16),
     Config(BLOCK_B=128, BLOCK_C=16, num_warps=8), Config(BLOCK_B=64, BLOCK_C=32, num_warps=8),
     Config(BLOCK_B=16, BLOCK_C=32)],
    [Specimen(name, {**_constants(*shape), "weight_column": 1, "other": None, "ACTIVATION": 1, "EPILOGUE": ACTIVATE})
     for name, shape in _SHAPES.items()]
    + [Specimen("slope of swish", {**_constants(*_SHAPES["criteo"]), "weight_column": 1, "other_column": 1,
                                   "ACTIVATION": 3, "EPILOGUE": SLOPE})])

INTERACTIONS_WEIGHT = Kernel(
    interactions_weight_kernel, "backward",
    {**dict.fromkeys(("partial", "bias_partial", "dz"), "*fp32"), **LOOKUP_SIGNATURE,
     **dict.fromkeys(("samples", "share", "outputs", "columns", "partial_row", "dz_row", "dz_column"), "i32")},
    [Config(BLOCK_B=16, BLOCK_C=64, num_warps=8), Config(BLOCK_B=16, BLOCK_C=32, num_warps=8, maxnreg=80),
     Config(BLOCK_B=32, BLOCK_C=64, num_warps=8), Config(BLOCK_B=32, BLOCK_C=32), Config(BLOCK_B=16, BLOCK_C=32)],
    [Specimen(name, {**lookup_constants(k, *multi), "PRECISION": "ieee", "BLOCK_N": 64, "dz_column": 1})
     for name, (k, _, *multi) in _SHAPES.items()],
    # Bags take registers of their own: the wide tile would spill, or leave room for one block.
    default=lambda arguments: 1 if arguments["MULTI"] else 0)


def _arguments(embedding: Tensor, rows: Tensor, pooled: Tensor | None, plan: Plan, weight: Tensor) -> dict:
    """What both kernels take."""
    return {**lookup_arguments(embedding, rows, pooled, plan), "samples": rows.shape[0], "outputs": weight.shape[0],
            "columns": plan.parts * embedding.shape[1], "PRECISION": precision(),
            "BLOCK_N": output_block(weight.shape[0])}


def _first_layer(arguments: dict, dense: Tensor | None, weight: Tensor, bias: Tensor, activation: str,
                 gradient: Tensor | None) -> Tensor:
    """The layer's output, or, with the gradient of it, the one before the activation."""
    samples, outputs = arguments["samples"], arguments["outputs"]
    out = weight.new_empty(samples, outputs)
    INTERACTIONS(lambda c: (triton.cdiv(samples, c["BLOCK_B"]) * triton.cdiv(outputs, arguments["BLOCK_N"]),),
                 bucket(samples, outputs, weight.shape[1]), out=out, weight=weight, bias=bias.contiguous(),
                 other=gradient, dense=dense, dense_width=0 if dense is None else dense.shape[1],
                 dense_row=strides(dense)[0], dense_column=strides(dense)[1],
                 weight_row=weight.stride(0), weight_column=weight.stride(1),
                 other_row=strides(gradient)[0], other_column=strides(gradient)[1], ACTIVATION=CODES[activation],
                 EPILOGUE=ACTIVATE if gradient is None else SLOPE, **arguments)
    return out


def forward(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
            multi_fields: list[int], interaction_fields: list[int], orders: list[int], dense: Tensor | None,
            weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    plan = plan_of(rows, multi_fields, interaction_fields, orders)
    pooled = means_of_bags(embedding, bag_rows, bag_offsets, rows.shape[0], plan)
    return _first_layer(_arguments(embedding, rows, pooled, plan, weight), dense, weight, bias, activation, None)


def backward(gradient: Tensor, embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
             multi_fields: list[int], interaction_fields: list[int], orders: list[int], dense: Tensor | None,
             weight: Tensor, bias: Tensor, activation: str) -> list[Tensor]:
    plan = plan_of(rows, multi_fields, interaction_fields, orders)
    samples = rows.shape[0]
    pooled = means_of_bags(embedding, bag_rows, bag_offsets, samples, plan)
    arguments = _arguments(embedding, rows, pooled, plan, weight)
    outputs, columns = arguments["outputs"], arguments["columns"]
    width = 0 if dense is None else dense.shape[1]
    dz = gradient if activation == "identity" else _first_layer(arguments, dense, weight, bias, activation, gradient)

    def launch(partial: Tensor, bias_partial: Tensor, share: int, shares: int) -> None:
        if width:
            weight_shares(partial, None, share, shares, dz, dense)
        INTERACTIONS_WEIGHT(
            lambda c: (triton.cdiv(outputs, arguments["BLOCK_N"]) * max(1, triton.cdiv(columns, c["BLOCK_C"]))
                       * shares,), bucket(samples, outputs, columns), partial=partial[..., width:],
            bias_partial=bias_partial, dz=dz, share=share, partial_row=partial.stride(1), dz_row=dz.stride(0),
            dz_column=dz.stride(1), **arguments)

    d_weight, d_bias = sum_shares(samples, outputs, width + columns, weight, launch)
    d_parts = linear(dz, weight[:, width:].t(), None)
    result = [embedding_gradient(d_parts, embedding, rows, bag_rows, bag_offsets, pooled, plan)]
    if dense is not None:
        result.append(linear(dz, weight[:, :width].t(), None))
    return [*result, d_weight, d_bias]


def traffic(samples: int, fields: int, columns: int, outputs: int, dense_width: int, k: int, distinct: int,
            factors: int, block_b: int | None = None) -> dict[str, int]:
    """Bytes of a forward launch without bags: what is loaded (each address once for all programs of the same rows) and
    stored, and the minimum for any kernel that does not keep W from one tile of rows to the next.

    ``distinct`` is the number of distinct rows looked up by all tiles, added up; ``factors`` that of places in the
    table of products.
    """
    block_b = INTERACTIONS.configs[0].blocks["BLOCK_B"] if block_b is None else block_b
    tiles = triton.cdiv(samples, block_b)
    weights = 4 * tiles * outputs * (columns + 1)
    loaded = 8 * samples * fields + 4 * samples * dense_width + 4 * k * distinct + weights
    stored = 4 * samples * outputs
    return {"loaded": loaded + 4 * tiles * factors, "stored": stored, "minimum": loaded + stored}
