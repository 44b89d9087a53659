"""Click-through rates from fields: LR, FM, DNN, Wide&Deep, DeepFM, and AMEIR-I."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .. import forward
from ..batch import Batch
from ..errors import InputError
from ..modules import make_embedding
from ..reference import field_embeddings, products, relu, sequence_pool
from ..schema import FeatureSchema

WIDTHS = (200, 80)  # of every MLP by hand here, the paper's pre-defined one


class FieldsModel(nn.Module):
    """Embedding of the fields, and what hand-made models share."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int):
        super().__init__()
        if schema.task != "ctr":
            raise InputError(f"{type(self).__name__} predicts click-through rates; this schema's task is retrieval")
        self.schema, self.embedding_dim = schema, embedding_dim
        self.dropout, self.generator = 0.0, None
        self.embedding = make_embedding(schema.num_embeddings, embedding_dim)

    @property
    def backend(self) -> None:
        return None

    def fields(self, inputs: forward.Inputs, table: Tensor | None = None) -> Tensor:
        """Embeddings [B, N, K] of the non-sequential fields, bags averaged; of another ``table``, its own."""
        table = self.embedding.weight if table is None else table
        return field_embeddings(table, *inputs.lookup[1:4], list(self.schema.multi_fields))

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters: all, and those outside the embedding matrix (first-order weights count as
        embedding, for they are one number a row)."""
        total = sum(p.numel() for p in self.parameters())
        rows = self.embedding.weight.numel() + (self.first_order.numel() if hasattr(self, "first_order") else 0)
        return total, total - rows


class DeepModel(FieldsModel):
    """An MLP with ReLU and one logit; ``wide`` adds the sum of one weight per id of the fields."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, inputs: int, wide: bool, widths: tuple[int, ...]):
        super().__init__(schema, embedding_dim)
        self.mlp = nn.ModuleDict()
        for index, outputs in enumerate(widths):
            self.mlp[str(index)] = nn.Linear(inputs, outputs)
            inputs = outputs
        self.head = nn.Linear(inputs, 1)
        if wide:
            self.first_order = nn.Parameter(torch.zeros(schema.num_embeddings, 1))

    def deep(self, h: Tensor) -> Tensor:
        """Logit [B] of the MLP."""
        for layer in self.mlp.values():
            h = forward.drop(self, relu(layer(h)))
        return self.head(h)[:, 0]

    def wide(self, inputs: forward.Inputs) -> Tensor:
        """Sum [B] of the weights of the fields' ids."""
        return self.fields(inputs, self.first_order)[..., 0].sum(1)


class PooledDNN(DeepModel):
    """DNN over fields and, where the schema has behaviour, the sum-pooled history; ``wide`` adds a linear
    part over the fields' ids (Wide & Deep, [Cheng et al., 2016])."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, wide: bool = False, widths: tuple[int, ...] = WIDTHS):
        super().__init__(schema, embedding_dim, (schema.num_fields + schema.num_behavior) * embedding_dim, wide, widths)

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        parts = [self.fields(inputs).flatten(1)]
        if inputs.history is not None:
            pooled = sequence_pool(inputs.history, batch.history_offsets, None, [], inputs.max_length)
            parts.append(pooled[:, :inputs.history.shape[1]])
        logit = self.deep(torch.cat(parts, 1))
        return logit + self.wide(inputs) if hasattr(self, "first_order") else logit


class AmeirI(DeepModel):
    """AMEIR-I (paper table 3 and the FM row of table 5): DeepFM whose pairwise term is the found interactions.

    ``logit = MLP(e_b) + Σ_i w_i + Σ_p Σ_k p_k``: an interaction enters as its inner product, the Hadamard
    product summed over its K dimensions.
    """

    def __init__(self, schema: FeatureSchema, interactions: tuple[tuple[int, ...], ...], embedding_dim: int,
                 widths: tuple[int, ...] = WIDTHS):
        schema = without_behavior(schema)
        super().__init__(schema, embedding_dim, schema.num_fields * embedding_dim, True, widths)
        self.interactions = tuple(tuple(i) for i in interactions)

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        e = self.fields(inputs)
        logit = self.deep(e.flatten(1)) + self.wide(inputs)
        for p in products(e, [list(i) for i in self.interactions]):
            logit = logit + p.sum(1)
        return logit


class DeepFM(DeepModel):
    """DeepFM [Guo et al., 2017]: ``logit = MLP(e_b) + Σ_i w_i + Σ_{i<j} ⟨e_i, e_j⟩`` over all pairs of fields."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, widths: tuple[int, ...] = WIDTHS):
        schema = without_behavior(schema)
        super().__init__(schema, embedding_dim, schema.num_fields * embedding_dim, True, widths)

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        e = self.fields(inputs)
        return self.deep(e.flatten(1)) + self.wide(inputs) + all_pairs(e)


class FM(FieldsModel):
    """A factorisation machine [Rendle, 2010]: ``logit = c + Σ_i w_i + Σ_{i<j} ⟨e_i, e_j⟩``."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int):
        super().__init__(without_behavior(schema), embedding_dim)
        self.first_order = nn.Parameter(torch.zeros(schema.num_embeddings, 1))
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        return self.bias + self.fields(inputs, self.first_order)[..., 0].sum(1) + all_pairs(self.fields(inputs))


class LR(FieldsModel):
    """Logistic regression over the fields' ids: ``logit = c + Σ_i w_i``, an embedding of width 1."""

    def __init__(self, schema: FeatureSchema):
        super().__init__(without_behavior(schema), 1)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch, items: Tensor | None = None) -> Tensor:
        inputs = forward.prepare(self.schema, self.embedding.weight, batch)
        return self.bias + self.fields(inputs)[..., 0].sum(1)


def without_behavior(schema: FeatureSchema) -> FeatureSchema:
    return schema.select(behavior=False) if schema.behavior else schema


def all_pairs(e: Tensor) -> Tensor:
    """Σ_{i<j} ⟨e_i, e_j⟩ [B] of e [B, N, K], as half of (Σ e)² − Σ e²."""
    return 0.5 * (e.sum(1).square() - e.square().sum(1)).sum(1)
