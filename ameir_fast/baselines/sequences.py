"""Next-item models by hand: GRU4Rec, SASRec and NextItNet, each sized as in its paper for embeddings of width K.

All read the history alone, from left to right, and score an item by the inner product of its embedding with the state
at the newest element. They differ from their papers where this project's frame is the same for every model: one row
predicts one item, with the shared sampled loss, and the output embeddings are the input ones.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import forward
from ..batch import Batch
from ..errors import InputError
from ..modules import make_embedding
from ..schema import FeatureSchema


class SequenceModel(nn.Module):
    """Embedding, states of the history, and the newest of them against item embeddings.

    Rows are computed in groups of similar length, each padded to its own longest on the right. Every state depends on
    the elements up to its own alone, so padding is never seen and needs no mask. An empty history has the zero vector.
    """

    def __init__(self, schema: FeatureSchema, embedding_dim: int):
        super().__init__()
        if schema.task != "retrieval" or not schema.behavior:
            raise InputError(f"{type(self).__name__} predicts the next item of a history; this schema has none")
        self.schema, self.embedding_dim = schema, embedding_dim
        self.width = schema.num_behavior * embedding_dim
        self.dropout, self.generator = 0.0, None
        self.embedding = make_embedding(schema.num_embeddings, embedding_dim)

    def states(self, x: Tensor, lengths: Tensor) -> Tensor:
        """States [B, T, H] of embedded histories x [B, T, D] whose first ``lengths`` elements are true."""
        raise NotImplementedError

    def project(self, state: Tensor) -> Tensor:
        """User vectors [B, K] from states [B, H]."""
        return self.head(state)

    def forward(self, batch: Batch, items: forward.Items = None) -> Tensor:
        history = forward.prepare(self.schema, self.embedding.weight, batch).history
        offsets, lengths = batch.history_offsets, batch.lengths
        users = history.new_zeros(len(batch), self.embedding_dim)
        for rows in by_length(lengths):
            own = lengths[rows]
            steps = torch.arange(int(own.max()), device=own.device)
            # Beyond a row's end this reads its neighbours' elements, which its true states never see.
            read = (offsets[rows, None] + steps).clamp_(max=len(history) - 1)
            x = history.index_select(0, read.flatten()).view(*read.shape, -1)
            last = self.states(x, own)[torch.arange(len(rows), device=own.device), own - 1]
            users = users.index_copy(0, rows, self.project(last))
        return forward.item_scores(self.schema, self.embedding.weight, users, items)

    def parameter_counts(self) -> tuple[int, int]:
        """Trainable parameters: all, and those outside the embedding matrix."""
        total = sum(p.numel() for p in self.parameters())
        return total, total - self.embedding.weight.numel()


def by_length(lengths: Tensor, shortest: int = 4) -> Iterator[Tensor]:
    """Rows by length in (0, 4], (4, 8], (8, 16], …: none is padded to more than twice its own length, or 4."""
    group = (lengths.clamp(min=shortest).double() / shortest).log2().ceil().long()
    group[lengths == 0] = -1
    for number in group.unique().tolist():
        if number >= 0:
            yield (group == number).nonzero()[:, 0]


class GRU4Rec(SequenceModel):
    """GRU4Rec [Hidasi et al., 2016] with embedded items: one GRU layer of 2D units (100 beside embeddings of 50, as
    NARM [Li et al., 2017] sizes it), dropout on its input and output, projected to K."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int):
        super().__init__(schema, embedding_dim)
        self.gru = nn.GRU(self.width, 2 * self.width, batch_first=True)
        self.head = nn.Linear(2 * self.width, embedding_dim, bias=False)

    def states(self, x: Tensor, lengths: Tensor) -> Tensor:
        return forward.drop(self, self.gru(forward.drop(self, x))[0])


class SASRec(SequenceModel):
    """SASRec [Kang and McAuley, 2018]: two causal self-attention blocks of one head, each with a point-wise network of
    width D, learnt positions counted from the newest element, LayerNorm before each part and at the end.

    As there, embeddings are scaled by √D, dropout acts on embeddings, attention weights and both parts, and the state
    meets the item embeddings without a projection (with one where D is not K).
    """

    def __init__(self, schema: FeatureSchema, embedding_dim: int, blocks: int = 2):
        super().__init__(schema, embedding_dim)
        width = self.width
        self.positions = make_embedding(schema.max_history, width)
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "attention_norm": nn.LayerNorm(width, eps=1e-8),
            "query": nn.Linear(width, width), "key": nn.Linear(width, width), "value": nn.Linear(width, width),
            "feed_norm": nn.LayerNorm(width, eps=1e-8),
            "first": nn.Linear(width, width), "second": nn.Linear(width, width),
        }) for _ in range(blocks))
        self.norm = nn.LayerNorm(width, eps=1e-8)
        if width != embedding_dim:
            self.head = nn.Linear(width, embedding_dim, bias=False)

    def states(self, x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1], device=x.device)
        age = (lengths[:, None] - 1 - steps).clamp_(min=0)  # beyond the end any position will do
        x = forward.drop(self, x * math.sqrt(self.width) + self.positions(age))
        future = steps[:, None] < steps
        for block in self.blocks:
            h = block["attention_norm"](x)
            weights = block["query"](h) @ block["key"](h).transpose(1, 2) / math.sqrt(self.width)
            weights = forward.drop(self, weights.masked_fill(future, -math.inf).softmax(2))
            x = x + forward.drop(self, weights @ block["value"](h))
            h = forward.drop(self, F.relu(block["first"](block["feed_norm"](x))))
            x = x + forward.drop(self, block["second"](h))
        return self.norm(x)

    def project(self, state: Tensor) -> Tensor:
        return self.head(state) if hasattr(self, "head") else state


class NextItNet(SequenceModel):
    """NextItNet [Yuan et al., 2019]: residual blocks of two dilated causal convolutions of kernel 3, the second twice
    as dilated as the first, each with LayerNorm and ReLU; D channels, projected to K.

    Dilations (1, 4) twice: the newest state sees 61 elements, more than the 50 of this project's histories.
    """

    def __init__(self, schema: FeatureSchema, embedding_dim: int, dilations: tuple[int, ...] = (1, 4, 1, 4)):
        super().__init__(schema, embedding_dim)
        self.dilations = dilations
        self.blocks = nn.ModuleList(nn.ModuleDict({
            "first": nn.Conv1d(self.width, self.width, 3), "first_norm": nn.LayerNorm(self.width),
            "second": nn.Conv1d(self.width, self.width, 3), "second_norm": nn.LayerNorm(self.width),
        }) for _ in dilations)
        self.head = nn.Linear(self.width, embedding_dim, bias=False)

    def states(self, x: Tensor, lengths: Tensor) -> Tensor:
        for block, dilation in zip(self.blocks, self.dilations, strict=True):
            h = F.relu(block["first_norm"](causal_convolution(x, block["first"], dilation)))
            h = F.relu(block["second_norm"](causal_convolution(h, block["second"], 2 * dilation)))
            x = x + h
        return forward.drop(self, x)


def causal_convolution(x: Tensor, layer: nn.Conv1d, dilation: int) -> Tensor:
    """[B, T, D] of x [B, T, D], each output from its own element and earlier ones; the taps side by side make it one
    matrix product."""
    taps, length = layer.weight.shape[2], x.shape[1]
    padded = F.pad(x, (0, 0, dilation * (taps - 1), 0))
    x = torch.cat([padded[:, j * dilation:j * dilation + length] for j in range(taps)], dim=2)
    return F.linear(x, layer.weight.permute(0, 2, 1).reshape(layer.out_channels, -1), layer.bias)
