"""The backbone (paper section 2.1) over any source of weights: what ``Supernet`` and ``Model`` both compute."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from . import ops
from .batch import Batch
from .embedded import Embedded
from .schema import FeatureSchema
from .space import Architecture, Block
from .tables import table


#: Which items a retrieval model scores: see ``item_scores``.
Items = Tensor | Callable[[Tensor, Tensor], Tensor] | None


class Weights(Protocol):
    """Where an architecture's tensors come from: slices of a supernet, or a model's own."""

    backend: str | None
    training: bool
    dropout: float
    block_dropout: float
    generator: torch.Generator | None

    def embedding_weight(self) -> Tensor: ...
    def norm(self, block: int) -> list[Tensor]: ...
    def layer(self, block: int, name: str) -> list[Tensor]: ...
    def pool_attention(self) -> list[Tensor]: ...
    def mlp(self, layer: int, outputs: int, inputs: int) -> tuple[Tensor, Tensor]: ...
    def dice(self, layer: int, width: int) -> Tensor: ...
    def squeeze_excite(self, inputs: int) -> tuple[Tensor, Tensor, Tensor]: ...
    def head(self, outputs: int, shortcut: bool) -> tuple[Tensor, Tensor | None]: ...
    def record_statistics(self, layer: int, mean: Tensor, variance: Tensor) -> None: ...


@dataclass
class Inputs:
    """A batch as row numbers of the embedding matrix, or of the batch's own embeddings, and the embedded history and
    target."""

    batch: Batch
    embedding: Tensor            # [F, K]; or [B·N (+ *), K]
    rows: Tensor                 # int64 [B, N]
    bag_rows: Tensor | None      # int64 [*]
    bag_offsets: Tensor | None   # int64 [B·n_multi+1]
    multi_fields: tuple[int, ...]
    history: Tensor | None       # [ΣT, D]
    target: Tensor | None        # [B, D]
    max_length: int

    @property
    def lookup(self) -> tuple:
        """The arguments with which the operations look fields up. Without fields nothing is looked up, and the
        gradient of the whole matrix that a lookup makes would be zeros alone: there the matrix has no rows."""
        embedding = self.embedding if self.rows.shape[1] else self.embedding[:0].detach()
        return embedding, self.rows, self.bag_rows, self.bag_offsets, self.multi_fields


def field_rows(schema: FeatureSchema, batch: Batch) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Embedding rows of the non-sequential fields: rows [B, N], bag rows [*], bag offsets."""
    device = batch.device
    rows = batch.fields.long() + table(schema.field_offsets, device)
    if not schema.multi_fields:
        return rows, None, None
    bag_rows, offsets = batch.bag_ids.long(), [schema.field_offsets[i] for i in schema.multi_fields]
    if len(set(offsets)) == 1:
        return rows, bag_rows + offsets[0], batch.bag_offsets
    owner = torch.arange(batch.bag_offsets.shape[0] - 1, device=device) % len(offsets)
    start = table(offsets, device)[owner]
    return rows, bag_rows + start.repeat_interleave(batch.bag_offsets.diff(),
                                                    output_size=bag_rows.shape[0]), batch.bag_offsets


def rows_read(schema: FeatureSchema, batch: Batch, items: Tensor | None = None) -> list[Tensor | None]:
    """Embedding rows of all that a forward pass looks up, int64: fields [B, N], history [ΣT, N_a], bags [*] and
    ``items`` [B, n]; None for what is not there."""
    rows, bag_rows, _ = field_rows(schema, batch)
    history = batch.history.long() + table(schema.behavior_offsets, batch.device) if schema.behavior else None
    return [rows, history, bag_rows, None if items is None else items.long() + schema.offset(schema.item_vocabulary)]


def field_lookup(schema: FeatureSchema, embedding: Tensor,
                 batch: Batch) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    """The matrix in which a batch's fields are looked up and ``field_rows`` in it. Where they are looked up already,
    these embeddings are the matrix."""
    if batch.embedded is None:
        return embedding, *field_rows(schema, batch)
    fields, bags = batch.embedded.fields, batch.embedded.bags
    count = fields.shape[0] * fields.shape[1]
    rows = torch.arange(count, device=fields.device).view(fields.shape[:2])
    if bags is None:
        return fields.flatten(0, 1), rows, None, None
    bag_rows = torch.arange(count, count + bags.shape[0], device=fields.device)
    return torch.cat([fields.flatten(0, 1), bags]), rows, bag_rows, batch.bag_offsets


def prepare(schema: FeatureSchema, embedding: Tensor, batch: Batch) -> Inputs:
    """Row numbers of all ids; H_0 and t. Ids are trusted here: ``Batch.check`` is the gate."""
    device = embedding.device
    if batch.embedded is None and not embedding.requires_grad and torch.is_grad_enabled():
        # Nobody wants the gradient of the whole matrix that a backward pass would make.
        parts = rows_read(schema, batch)
        read = torch.cat([part.flatten() for part in parts if part is not None])
        batch = replace(batch, embedded=Embedded.of(embedding.index_select(0, read), parts))
    matrix, rows, bag_rows, bag_offsets = field_lookup(schema, embedding, batch)
    history = target = None
    max_length = 0
    if schema.behavior:
        if batch.embedded is None:
            ids = batch.history.long() + table(schema.behavior_offsets, device)
            history = F.embedding(ids, embedding).flatten(1)
        else:
            history = batch.embedded.history.flatten(1)
        # On a GPU the exact maximum would cost a synchronisation.
        max_length = schema.max_history if device.type == "cuda" or not len(batch) else int(batch.lengths.max())
        if schema.target:
            target = F.embedding(rows.index_select(1, table(schema.target_positions, device)), matrix).flatten(1)
    return Inputs(batch, matrix, rows, bag_rows, bag_offsets, schema.multi_fields, history, target, max_length)


def run_block(weights: Weights, index: int, block: Block, x: Tensor, inputs: Inputs) -> Tensor:
    """H_l from H_{l−1}; a zero block is the identity and costs nothing."""
    if block.layer == "zero":
        return x
    norm = weights.norm(index) if block.norm == "layer_norm" else []
    y = ops.sequence_block(x, inputs.batch.history_offsets, norm, weights.layer(index, block.layer),
                           inputs.target if block.layer == "target_attn" else None, block.layer,
                           block.activation, inputs.max_length, backend=weights.backend)
    if not weights.training or weights.block_dropout == 0:
        return y
    return x + drop(weights, y - x, weights.block_dropout)  # of the branch alone, as transformers do


def run_activations(weights: Weights, index: int, norm: str, layer: str, activations: list[str], x: Tensor,
                    inputs: Inputs) -> list[Tensor]:
    """``run_block`` with each of these activations, without dropout; not for zero blocks."""
    tensors = weights.norm(index) if norm == "layer_norm" else []
    return list(ops.sequence_activations(
        x, inputs.batch.history_offsets, tensors, weights.layer(index, layer),
        inputs.target if layer == "target_attn" else None, layer, activations, inputs.max_length,
        backend=weights.backend))


def pool(weights: Weights, x: Tensor, inputs: Inputs) -> Tensor:
    """h_a from H_{L_a}."""
    attention = weights.pool_attention() if inputs.target is not None else []
    return ops.sequence_pool(x, inputs.batch.history_offsets, inputs.target, attention, inputs.max_length,
                             backend=weights.backend)


def behavior_vector(weights: Weights, behavior: tuple[Block, ...], inputs: Inputs) -> Tensor | None:
    """h_a [B, 2D or 3D]; None without behaviour fields."""
    if inputs.history is None:
        return None
    x = inputs.history
    for index, block in enumerate(behavior):
        x = run_block(weights, index, block, x, inputs)
    return pool(weights, x, inputs)


def drop(weights: Weights, x: Tensor, rate: float | None = None) -> Tensor:
    """Inverted dropout in training mode, from the weights' own generator; ``rate`` in place of the MLP's."""
    rate = weights.dropout if rate is None else rate
    if not weights.training or rate == 0:
        return x
    keep = 1 - rate
    # Uniform numbers below ``keep``, because torch draws them faster on the CPU than Bernoulli ones.
    mask = torch.rand(x.shape, dtype=x.dtype, device=x.device, generator=weights.generator).lt_(keep)
    return x * mask.mul_(1 / keep)


def shortcut(weights: Weights, arch: Architecture, inputs: Inputs) -> Tensor | None:
    """h_se [B, K]; None without SE or without fields to recalibrate."""
    count = inputs.rows.shape[1] + len(arch.interactions)
    if arch.shortcut == "none" or count == 0:
        return None
    return ops.squeeze_excite(*inputs.lookup, arch.interactions, *weights.squeeze_excite(count),
                              backend=weights.backend)


def _activation(weights: Weights, index: int, name: str, s: Tensor) -> Tensor:
    dice = [weights.dice(index, s.shape[1])] if name == "dice" else []
    h, statistics = ops.sliced_mlp(s, [], [], [name], dice, backend=weights.backend)
    if dice and s.shape[0]:
        weights.record_statistics(index, *statistics.chunk(2))
    return drop(weights, h)


def first_layer(weights: Weights, arch: Architecture, h_a: Tensor | None, inputs: Inputs,
                outputs: int | None = None) -> Tensor:
    """The first MLP layer's pre-activation; ``outputs`` overrides the architecture's width."""
    k0 = input_width(arch, h_a, inputs)
    weight, bias = weights.mlp(0, arch.mlp[0].units(k0) if outputs is None else outputs, k0)
    return ops.embedding_interactions(*inputs.lookup, arch.interactions, h_a, weight, bias,
                                      backend=weights.backend)


def input_width(arch: Architecture, h_a: Tensor | None, inputs: Inputs) -> int:
    """K0 of the architecture."""
    fields = inputs.rows.shape[1] + len(arch.interactions)
    return (0 if h_a is None else h_a.shape[1]) + fields * inputs.embedding.shape[1]


def aggregate(weights: Weights, arch: Architecture, pre_activation: Tensor, k0: int) -> Tensor:
    """h_Lc from the first layer's pre-activation."""
    h = _activation(weights, 0, arch.mlp[0].activation, pre_activation)
    for index, layer in enumerate(arch.mlp[1:], start=1):
        weight, bias = weights.mlp(index, layer.units(k0), h.shape[1])
        h = _activation(weights, index, layer.activation, F.linear(h, weight, bias))
    return h


def score(weights: Weights, h: Tensor, h_se: Tensor | None, schema: FeatureSchema, batch: Batch,
          items: Items = None) -> Tensor:
    """CTR: logit [B]. Retrieval: what ``item_scores`` says of ``items``."""
    weight, bias = weights.head(h.shape[1], h_se is not None)
    h_c = h if h_se is None else torch.cat([h, h_se], 1)
    out = F.linear(h_c, weight, bias)
    if schema.task == "ctr":
        return out[:, 0]
    embedded = None if batch.embedded is None else batch.embedded.items
    if embedded is not None and isinstance(items, Tensor):
        return (embedded @ out[..., None])[..., 0]
    return item_scores(schema, weights.embedding_weight(), out, items)


def item_scores(schema: FeatureSchema, embedding: Tensor, users: Tensor, items: Items = None) -> Tensor:
    """Retrieval: scores [B, V] of all local ids, or [B, n] of ``items`` [B, n]; or what the function ``items`` makes
    of the users' vectors [B, K] and all items' [V, K] (ranking in tiles, without [B, V] scores)."""
    start = schema.offset(schema.item_vocabulary)
    if isinstance(items, Tensor):
        return (F.embedding(items.long() + start, embedding) @ users[..., None])[..., 0]
    table = embedding[start:start + schema.size(schema.item_vocabulary)]
    return users @ table.t() if items is None else items(users, table)


def run(weights: Weights, schema: FeatureSchema, arch: Architecture, batch: Batch, items: Items = None) -> Tensor:
    """The whole model: scores of a batch."""
    inputs = prepare(schema, weights.embedding_weight(), batch)
    h_a = behavior_vector(weights, arch.behavior, inputs)
    pre = first_layer(weights, arch, h_a, inputs)
    h = aggregate(weights, arch, pre, input_width(arch, h_a, inputs))
    return score(weights, h, shortcut(weights, arch, inputs), schema, batch, items)
