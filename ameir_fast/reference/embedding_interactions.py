"""Lookup, Hadamard interactions of any order and the first MLP layer (paper section 2.1, Stages 2 and 3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..tables import table
from .activations import activate


def field_embeddings(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                     multi_fields: list[int]) -> Tensor:
    """e_b [B, N, K]: one row of ``embedding`` [F, K] a field, the mean of a bag for multi-categorical ones.

    ``rows`` int64 [B, N] and ``bag_rows`` int64 [*] are row numbers of the matrix, not local ids;
    ``bag_offsets`` int64 [B·n_multi+1] is row-major. An empty bag is the zero vector.
    """
    e = F.embedding(rows, embedding)
    if not multi_fields:
        return e
    pooled = F.embedding_bag(bag_rows, embedding, bag_offsets, mode="mean", include_last_offset=True)
    where = table(multi_fields, rows.device)
    return e.index_copy(1, where, pooled.view(rows.shape[0], len(multi_fields), embedding.shape[1]))


def products(e: Tensor, interactions: list[list[int]]) -> list[Tensor]:
    """Hadamard products [B, K] of the named fields of ``e`` [B, N, K]."""
    columns = e.unbind(1)
    result = []
    for fields in interactions:
        p = columns[fields[0]]
        for f in fields[1:]:
            p = p * columns[f]
        result.append(p)
    return result


def fields_and_products(embedding, rows, bag_rows, bag_offsets, multi_fields, interactions) -> Tensor:
    """Q = [e_b, p_b], [B, N+m, K]."""
    e = field_embeddings(embedding, rows, bag_rows, bag_offsets, multi_fields)
    return torch.cat([e, torch.stack(products(e, interactions), 1)], 1) if interactions else e


def embedding_interactions(embedding: Tensor, rows: Tensor, bag_rows: Tensor | None, bag_offsets: Tensor | None,
                           multi_fields: list[int], interactions: list[list[int]], dense: Tensor | None,
                           weight: Tensor, bias: Tensor, activation: str) -> Tensor:
    """``Act(W_a h_a + Σ W_i e_i + Σ W_p p + b)``.

    Args:
        embedding, rows, bag_rows, bag_offsets, multi_fields: see ``field_embeddings``.
        interactions: lists of field positions.
        dense: h_a [B, W_a] or None.
        weight: [out, W_a + (N+m)·K], columns in the order dense, fields, interactions; may be a slice.
        bias: [out].
        activation: relu, swish, gelu or identity. Dice needs the batch's statistics: ask for the identity
            and give its result to ``sliced_mlp``.
    Returns:
        [B, out]
    """
    q = fields_and_products(embedding, rows, bag_rows, bag_offsets, multi_fields, interactions).flatten(1)
    h0 = q if dense is None else torch.cat([dense, q], 1)
    return activate(activation, F.linear(h0, weight, bias))
