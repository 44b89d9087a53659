"""Models that are trained together: one embedding and one lookup for all, and one front where theirs agree."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from . import forward, ops
from .batch import Batch
from .errors import InputError
from .model import Model, ModelWeights
from .reference import field_embeddings, products

FRONT = ("behavior", "pool")


class ModelGroup(nn.Module):
    """``models`` as one module that is trained in one pass over the data, as a race's finalists are.

    ``group(batch)`` gives logits [n, B], ``group(batch, items)`` what the models say of ``items`` [B, m], scores [n, B, m]; a
    function as ``items`` is given each model's users in turn, and what it returns is stacked. A loss that is the mean over all of
    them gives every model's own weights the gradient that it would have alone, and those that are shared the mean over the models:
    the embedding, and the behaviour blocks and the pooling where all models have the same blocks and interactions.

    Where the front is shared, a batch is looked up, run through the blocks and pooled once, and the MLPs of all models are computed
    layer by layer: the first layers as one product with all their weights, activations and dropout on all units at once.

    ``dropout``, ``block_dropout`` and ``generator`` are those of all models. Dropout draws other numbers than in a model alone. The group
    takes the models' modules over and starts from the first one's embedding and front; ``model(i)`` gives a ``Model`` back.

    Raises ``InputError`` for models of different schemas or embedding widths, the same model twice, and no model at all.
    """

    def __init__(self, models: Sequence[Model]):
        super().__init__()
        if not models:
            raise InputError("a group needs at least one model")
        if len({id(model) for model in models}) < len(models):
            raise InputError("a group's models must be different modules")
        first = models[0]
        for model in models[1:]:
            if model.schema != first.schema or model.embedding_dim != first.embedding_dim:
                raise InputError("a group's models must have one schema and one embedding width")
        self.schema, self.embedding_dim, self.backend = first.schema, first.embedding_dim, first.backend
        self.archs = [model.arch for model in models]
        self.dropout = self.block_dropout = 0.0
        self.generator: torch.Generator | None = None
        self.shares_front = len({(arch.behavior, arch.interactions) for arch in self.archs}) == 1
        self.embedding = first.embedding
        for index, model in enumerate(models):
            del model.embedding
            if self.shares_front and index:
                for name in FRONT:
                    if hasattr(model, name):
                        delattr(model, name)
        self.members = nn.ModuleList(models)
        shared = [self.embedding]
        if self.shares_front:
            shared += [getattr(first, name) for name in FRONT if hasattr(first, name)]
        for module in shared:
            for parameter in module.parameters():
                parameter.register_hook(self._mean)

    def _mean(self, gradient: Tensor) -> Tensor:
        return gradient / len(self.members)

    def model(self, index: int) -> Model:
        """A ``Model`` with copies of this member's weights, the shared ones among them."""
        own = self.embedding.weight
        found = Model(self.schema, self.archs[index], self.embedding_dim, self.backend, own.dtype).to(own.device)
        tensors = {f"embedding.{k}": v for k, v in self.embedding.state_dict().items()}
        if self.shares_front:
            tensors.update(self.members[0].state_dict())
            own_keys = found.state_dict().keys()
            tensors = {k: v for k, v in tensors.items() if k in own_keys and k.startswith(("embedding", *FRONT))}
        found.load_state_dict({**tensors, **self.members[index].state_dict()})
        return found

    # ---- computing -----------------------------------------------------------------------------

    def forward(self, batch: Batch, items: forward.Items = None) -> Tensor:
        if batch.embedded is not None:
            batch = replace(batch, embedded=batch.embedded.map(self._averaging))
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        weights = [_Member(self, model) for model in self.members]
        if self.schema.task == "ctr":
            scores = _Together(self, weights, inputs).logits()
        else:
            scores = torch.stack(self._one_by_one(weights, inputs, items))
        if scores.requires_grad:
            scores.register_hook(lambda gradient: gradient * len(self.members))
        return scores

    def _averaging(self, part: Tensor) -> Tensor:
        part = part.view_as(part)
        if part.requires_grad:
            part.register_hook(self._mean)
        return part

    def _one_by_one(self, weights: list[_Member], inputs: forward.Inputs, items: forward.Items) -> list[Tensor]:
        scores, h_a = [], None
        for own, arch in zip(weights, self.archs, strict=True):
            if h_a is None or not self.shares_front:
                h_a = forward.behavior_vector(own, arch.behavior, inputs)
            h = forward.aggregate(own, arch, forward.first_layer(own, arch, h_a, inputs), forward.input_width(arch, h_a, inputs))
            scores.append(forward.score(own, h, forward.shortcut(own, arch, inputs), self.schema, inputs.batch, items))
        return scores


class _Member(ModelWeights):
    """A member's weights: the group's where they are shared."""

    def __init__(self, group: ModelGroup, model: Model):
        super().__init__(model)
        self.group = group
        self.training = group.training
        self.dropout, self.block_dropout, self.generator = group.dropout, group.block_dropout, group.generator

    def embedding_weight(self) -> Tensor:
        return self.group.embedding.weight


class _Together:
    """All members' MLPs over one batch (CTR): a layer's units of all members that have it lie side by side, those with one
    activation next to each other."""

    def __init__(self, group: ModelGroup, weights: list[_Member], inputs: forward.Inputs):
        self.group, self.weights, self.archs, self.inputs = group, weights, group.archs, inputs

    def logits(self) -> Tensor:
        """[n, B]."""
        h = self._activated(0, *self._first())
        for layer in range(1, max(len(arch.mlp) for arch in self.archs)):
            order = self._order(layer)
            z = [F.linear(h[i], *self.weights[i].mlp(layer, 0, 0)) for i in order]
            h |= self._activated(layer, torch.cat(z, 1), order)
        return torch.stack([self._score(i, h[i]) for i in range(len(self.archs))])

    def _score(self, i: int, h: Tensor) -> Tensor:
        own = self.weights[i]
        return forward.score(own, h, forward.shortcut(own, self.archs[i], self.inputs), self.group.schema, self.inputs.batch)

    def _order(self, layer: int) -> list[int]:
        having = [i for i, arch in enumerate(self.archs) if len(arch.mlp) > layer]
        return sorted(having, key=lambda i: self.archs[i].mlp[layer].activation)

    def _first(self) -> tuple[Tensor, list[int]]:
        """The first layers' pre-activations [B, Σ units], and whose they are in turn."""
        order, inputs = self._order(0), self.inputs
        if not self.group.shares_front:
            return torch.cat([forward.first_layer(self.weights[i], self.archs[i], forward.behavior_vector(
                self.weights[i], self.archs[i].behavior, inputs), inputs) for i in order], 1), order
        weight, bias = (torch.cat(parts) for parts in zip(*(self.weights[i].mlp(0, 0, 0) for i in order), strict=True))
        # For so many units a product of matrices takes less time than the operation that makes no input of its own.
        e = field_embeddings(*inputs.lookup[:4], list(inputs.multi_fields))
        h_a = forward.behavior_vector(self.weights[0], self.archs[0].behavior, inputs)
        parts = [e.flatten(1), *products(e, [list(p) for p in self.archs[0].interactions])]
        return F.linear(torch.cat(parts if h_a is None else [h_a, *parts], 1), weight, bias), order

    def _activated(self, layer: int, z: Tensor, order: list[int]) -> dict[int, Tensor]:
        """The members' hidden layers [B, units] after activation and dropout; ``z`` holds what goes in, in this order."""
        alike = [list(some) for _, some in itertools.groupby(order, key=lambda i: self.archs[i].mlp[layer].activation)]
        widths = {i: self.weights[i].mlp(layer, 0, 0)[1].shape[0] for i in order}
        pieces = z.split([sum(widths[i] for i in some) for some in alike], 1)
        h = torch.cat([self._activation(layer, piece, some, widths) for piece, some in zip(pieces, alike, strict=True)], 1)
        return dict(zip(order, self._drop(h, [widths[i] for i in order]).split(list(widths.values()), 1), strict=True))

    def _drop(self, h: Tensor, widths: list[int]) -> Tensor:
        """Dropout, of the same units of all members: what sets them apart is not luck, and fewer numbers are drawn."""
        group = self.group
        if not group.training or group.dropout == 0:
            return h
        kept = forward.drop(self.weights[0], h.new_ones(h.shape[0], max(widths)))
        return h * torch.cat([kept[:, :width] for width in widths], 1)

    def _activation(self, layer: int, s: Tensor, members: list[int], widths: dict[int, int]) -> Tensor:
        name = self.archs[members[0]].mlp[layer].activation
        dice = [torch.cat([self.weights[i].dice(layer, 0) for i in members], -1)] if name == "dice" else []
        h, statistics = ops.sliced_mlp(s, [], [], [name], dice, backend=self.group.backend)
        if dice and s.shape[0]:
            moments = zip(*(part.split([widths[i] for i in members]) for part in statistics.chunk(2)), strict=True)
            for i, (mean, variance) in zip(members, moments, strict=True):
                self.weights[i].record_statistics(layer, mean, variance)
        return h
