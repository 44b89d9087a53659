"""Hand-made models that the search space does not contain, for comparison; and AMEIR-I."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from . import forward
from .batch import Batch
from .errors import InputError
from .modules import make_embedding
from .reference import field_embeddings, products, relu, sequence_pool
from .schema import FeatureSchema


class _FieldsModel(nn.Module):
    """Embedding, the MLP [200, 80] with ReLU over what ``features`` gives, and one logit."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, inputs: int, widths: tuple[int, ...]):
        super().__init__()
        if schema.task != "ctr":
            raise InputError(f"{type(self).__name__} predicts click-through rates; this schema's task is retrieval")
        self.schema, self.embedding_dim = schema, embedding_dim
        self.dropout, self.generator = 0.0, None
        self.embedding = make_embedding(schema.num_embeddings, embedding_dim)
        self.mlp = nn.ModuleDict()
        for index, outputs in enumerate(widths):
            self.mlp[str(index)] = nn.Linear(inputs, outputs)
            inputs = outputs
        self.head = nn.Linear(inputs, 1)

    @property
    def backend(self) -> None:
        return None

    def deep(self, h: Tensor) -> Tensor:
        """Logit [B] of the MLP."""
        for layer in self.mlp.values():
            h = forward.drop(self, relu(layer(h)))
        return self.head(h)[:, 0]

    def fields(self, inputs: forward.Inputs) -> Tensor:
        return field_embeddings(*inputs.lookup[:4], list(self.schema.multi_fields))

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters: all, and those outside the embedding matrix (first-order weights count as
        embedding, for they are one number a row)."""
        total = sum(p.numel() for p in self.parameters())
        rows = self.embedding.weight.numel() + (self.first_order.numel() if hasattr(self, "first_order") else 0)
        return total, total - rows


def first_order(table: Tensor, inputs: forward.Inputs, schema: FeatureSchema) -> Tensor:
    """Sum of one weight per id of the non-sequential fields (bags averaged), [B]."""
    return field_embeddings(table, *inputs.lookup[1:4], list(schema.multi_fields))[..., 0].sum(1)


class PooledDNN(_FieldsModel):
    """DNN over fields and, where the schema has behaviour, the sum-pooled history; ``wide`` adds a linear
    part over the fields' ids (Wide & Deep, [Cheng et al., 2016])."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, wide: bool = False,
                 widths: tuple[int, ...] = (200, 80)):
        super().__init__(schema, embedding_dim, (schema.num_fields + schema.num_behavior) * embedding_dim, widths)
        if wide:
            self.first_order = nn.Parameter(torch.zeros(schema.num_embeddings, 1))

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        parts = [self.fields(inputs).flatten(1)]
        if inputs.history is not None:
            pooled = sequence_pool(inputs.history, batch.history_offsets, None, [], inputs.max_length)
            parts.append(pooled[:, :inputs.history.shape[1]])
        logit = self.deep(torch.cat(parts, 1))
        return logit + first_order(self.first_order, inputs, self.schema) if hasattr(self, "first_order") else logit


class AmeirI(_FieldsModel):
    """AMEIR-I (paper table 3 and the FM row of table 5): DeepFM whose pairwise term is the found interactions.

    ``logit = MLP(e_b) + Σ_i w_i + Σ_p Σ_k p_k``: an interaction enters as its inner product, the Hadamard
    product summed over its K dimensions.
    """

    def __init__(self, schema: FeatureSchema, interactions: tuple[tuple[int, ...], ...], embedding_dim: int,
                 widths: tuple[int, ...] = (200, 80)):
        schema = schema.select(behavior=False) if schema.behavior else schema
        super().__init__(schema, embedding_dim, schema.num_fields * embedding_dim, widths)
        self.interactions = tuple(tuple(i) for i in interactions)
        self.first_order = nn.Parameter(torch.zeros(schema.num_embeddings, 1))

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        e = self.fields(inputs)
        logit = self.deep(e.flatten(1)) + first_order(self.first_order, inputs, self.schema)
        for p in products(e, [list(i) for i in self.interactions]):
            logit = logit + p.sum(1)
        return logit
