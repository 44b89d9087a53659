"""One training step: look up, forward, backward, update."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..batch import Batch
from ..embedding_optimizer import EmbeddingAdam
from ..group import ModelGroup
from ..model import Model
from ..ops import Backend, resolve
from ..supernet import Supernet
from .objective import Call, add_embedding_l2, add_occurrences_l2, looked_up

if TYPE_CHECKING:
    from .training import Task

#: Embedding rows for each that a batch with full histories would read, from which on training goes by rows; for fewer, a
#: dense step costs about as much or less.
SPARSE_FROM = 1.0
REFERENCE_TIMES = 8.0  # so many times more where rows are updated in plain PyTorch, which takes so much longer


class Stepper:
    """Trains ``net`` with Adam, step by step. ``optimizer`` holds the state, all of it after ``flush``.

    ``by_rows``: whether the embedding is trained by the rows that a batch reads; ``trains_by_rows`` by default.
    """

    def __init__(self, task: Task, net: nn.Module, by_rows: bool | None = None):
        self.task, self.net = task, net
        parameters = list(net.parameters())
        self.optimizer = torch.optim.Adam(parameters, weight_decay=task.config.weight_decay,
                                          fused=all(p.device.type in ("cpu", "cuda") for p in parameters))
        pays = trains_by_rows(task, net) if by_rows is None else by_rows
        self._by_rows = _ByRows(task, net, self.optimizer) if pays else None

    def step(self, batch: Batch, learning_rate: float, forward: Call) -> Tensor:
        """The loss [] of the batch before the step; ``forward`` gives scores of a batch and items."""
        config, embedding = self.task.config, self.net.embedding.weight
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.zero_grad(set_to_none=True)
        if self._by_rows:
            batch = self._by_rows.look_up(batch)
        loss = self.task.objective.loss(forward, batch)
        loss.backward()
        if self._by_rows:
            self._by_rows.step(batch, learning_rate)
        if embedding.grad is not None and config.embedding_l2:
            add_embedding_l2(embedding, looked_up(self.task.data.schema, batch), len(batch), config.embedding_l2)
        self.optimizer.step()
        return loss.detach()

    def flush(self) -> None:
        """Brings the embedding and the optimizer's state of it to where the last step left them: before anything but
        ``step`` reads them."""
        if self._by_rows:
            self._by_rows.flush()


def trains_by_rows(task: Task, net: nn.Module) -> bool:
    """Whether the embedding is trained by the rows that a batch reads, which gives what the dense step would, up to
    rounding, and does not grow with the matrix. The reference backend takes dense steps."""
    schema, config = task.data.schema, task.config
    if not isinstance(net, (Supernet, Model, ModelGroup)) or net.embedding.weight.device.type != "cpu" or config.weight_decay:
        return False
    if config.backend == "reference":
        return False
    items = 1 + config.negatives if schema.task == "retrieval" else 0
    read = config.batch_size * (schema.num_fields + schema.num_behavior * schema.max_history + items)
    weight = net.embedding.weight
    plain = resolve("embedding_update", None, weight.device, weight.dtype) is Backend.REFERENCE
    return schema.num_embeddings >= SPARSE_FROM * read * (REFERENCE_TIMES if plain else 1)


class _ByRows:
    """Training steps of the embedding by the rows that each batch reads, with the optimizer's state of it. While it
    requires no gradient, rows are read and left as they are."""

    def __init__(self, task: Task, net: nn.Module, optimizer: torch.optim.Adam):
        self.task, self.embedding, self.optimizer = task, net.embedding.weight, optimizer
        self.adam: EmbeddingAdam | None = None

    def look_up(self, batch: Batch) -> Batch:
        """The batch with what it reads of the matrix."""
        if self.adam is None:
            self.adam = EmbeddingAdam(self.embedding, self.optimizer.state[self.embedding])
        return self.adam.look_up(self.task.data.schema, batch, self.task.objective.items(batch))

    def step(self, batch: Batch, learning_rate: float) -> None:
        if not self.embedding.requires_grad or self.adam.occurrences.grad is None:
            return
        add_occurrences_l2(self.adam.occurrences.grad, self.adam.occurrences, self.task.data.schema, batch,
                           self.task.config.embedding_l2)
        self.adam.update(learning_rate)

    def flush(self) -> None:
        """The whole matrix and the optimizer's state as they are after the last step."""
        if self.adam is not None:
            self.adam.flush()
