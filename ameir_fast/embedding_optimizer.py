"""Adam for an embedding matrix, in time that does not grow with its rows."""

from __future__ import annotations

import math
from collections.abc import MutableMapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from . import ops
from .batch import Batch
from .embedded import Embedded
from .forward import rows_read
from .huge_pages import use_huge_pages
from .reference.embedding_catch_up import CENTRE, COLUMNS, LEARNING_RATE, ORDER_0, ORDERS
from .schema import FeatureSchema

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8  # torch.optim.Adam's own
#: Steps without a gradient after which a row stands still as far as float32 can tell: 0.9^200 is 7e-10.
WINDOW = 200
#: Rows last touched before this step are followed step by step: later, the expansion about a centre leaves out less
#: than 5e-7 of how far a row moves on.
EXACT = 128


class EmbeddingAdam:
    """``torch.optim.Adam`` for one matrix, which touches only the rows that are read.

    Adam moves every row in every step, also those without a gradient, by their momentum. Here a row is brought up to
    date when it is next read (``ops.embedding_catch_up``), to what Adam would have made of it up to rounding. With
    ``lazy`` rows without a gradient stay as they are instead, as in ``torch.optim.SparseAdam``, and steps are counted
    over all rows as there.

    ``look_up``, forward and backward pass, ``update``, again and again; and ``flush`` before the whole matrix is read or saved. There is no
    weight decay. Memory beside the state: 4 bytes a row, and 56 a step since the last ``flush``.

    Args:
        embedding: [F, K]; native kernels need float32.
        state: its state in a ``torch.optim.Adam``, ``optimizer.state[embedding]``, which then has all that is to be
            saved after a ``flush``: ``exp_avg``, ``exp_avg_sq`` and ``step``. An empty one is filled. Default: one of
            its own.
        backend: of the operations.

    Source: [Kingma & Ba, 2015], as in ``torch.optim.Adam``.
    """

    def __init__(self, embedding: nn.Parameter, state: MutableMapping | None = None, lazy: bool = False,
                 backend: str | None = None):
        self.embedding, self.lazy, self.backend = embedding, lazy, backend
        self.state = {} if state is None else state
        self.steps = int(self.state["step"]) if self.state else 0
        self._last_step: Tensor | None = None  # made by the first step, as the state is: there may be none
        self._sums = _Sums(self.steps)
        self.rows = self.occurrences = None  # of the last look_up: int64 [n], and the leaf [n, K]
        self._read: Tensor | None = None     # bool [n] of a lazy one: not the rows in the fields' places of bags

    def look_up(self, schema: FeatureSchema, batch: Batch, items: Tensor | None = None) -> Batch:
        """The batch with all that a forward pass of a ``Supernet`` or ``Model`` reads of the matrix, as a leaf that gets the
        gradient; ``items`` int32 or int64 [B, n] are those that a retrieval model is to score."""
        parts = rows_read(schema, batch, items)
        self.rows = torch.cat([part.flatten() for part in parts if part is not None])
        self.occurrences = self.gather(self.rows)
        self._read = None
        if self.lazy and schema.multi_fields:
            self._read = torch.ones(len(self.rows), dtype=torch.bool, device=self.rows.device)
            self._read[:batch.fields.numel()].view(batch.fields.shape)[:, list(schema.multi_fields)] = False
        return replace(batch, embedded=Embedded.of(self.occurrences, parts))

    def update(self, learning_rate: float) -> None:
        """One step with the gradients that the last ``look_up`` has got; without any, none. Each ``look_up`` serves one."""
        if self.occurrences is not None and self.occurrences.grad is not None:
            rows, gradient = self.rows, self.occurrences.grad
            if self._read is not None:
                rows, gradient = rows[self._read], gradient[self._read]
            self.step(rows, gradient, learning_rate)
        self.rows = self.occurrences = self._read = None

    @torch.no_grad()
    def gather(self, rows: Tensor) -> Tensor:
        """The rows [n, K] of ``rows`` int64 [n] as a leaf that requires a gradient."""
        self._catch_up(rows)
        return self.embedding.index_select(0, rows).requires_grad_()

    @torch.no_grad()
    def step(self, rows: Tensor, gradient: Tensor, learning_rate: float) -> None:
        """One step with the gradients [n, K] of ``rows``, which the last ``gather`` had; those of a row are added."""
        self._begin()
        self.steps += 1
        self.state["step"].fill_(self.steps)
        moments = [self.state["exp_avg"], self.state["exp_avg_sq"]]
        ops.embedding_update(self.embedding.detach(), moments, rows, gradient, "adam", learning_rate, self.steps, BETA1,
                             BETA2, EPS, backend=self.backend)
        torch.autograd.graph.increment_version(self.embedding)
        if not self.lazy:
            self._last_step.index_fill_(0, rows, self.steps)
            self._sums.add(learning_rate)

    def _begin(self) -> None:
        if self._last_step is not None:
            return
        if not self.state:
            zeros = torch.zeros_like(self.embedding.detach())
            self.state.update(step=torch.tensor(0.0), exp_avg=zeros, exp_avg_sq=zeros.clone())
        self._last_step = torch.full(self.embedding.shape[:1], self.steps, dtype=torch.int32, device=self.embedding.device)
        for tensor in (self.embedding.detach(), self.state["exp_avg"], self.state["exp_avg_sq"], self._last_step):
            use_huge_pages(tensor)

    @torch.no_grad()
    def flush(self) -> None:
        """Brings all rows up to date."""
        if self._sums.base != self.steps:
            self._catch_up(None)
            self._sums = _Sums(self.steps)

    def _catch_up(self, rows: Tensor | None) -> None:
        if self.lazy or self._sums.base == self.steps:
            return
        ops.embedding_catch_up(self.embedding.detach(), self.state["exp_avg"], self.state["exp_avg_sq"],
                               self._last_step, rows, self._sums.table.to(self.embedding.device), self._sums.base, self.steps, EXACT, WINDOW,
                               BETA1, BETA2, EPS, backend=self.backend)
        torch.autograd.graph.increment_version(self.embedding)


class _Sums:
    """The table of ``reference.embedding_catch_up`` for the steps since ``base``, at which all rows were current."""

    _gap = np.arange(WINDOW, 0, -1)
    _moment, _growth = BETA1 ** _gap, BETA2 ** (-_gap / 2)
    _centre = round(1 / (1 - BETA1))  # the mean of the steps after s, weighted by how far a row moves in them

    def __init__(self, base: int):
        self.base, self.steps = base, base
        self._rows = np.zeros((64, COLUMNS))
        self._enter(0.0)

    @property
    def table(self) -> Tensor:
        return torch.from_numpy(self._rows)

    def add(self, learning_rate: float) -> None:
        """One more step."""
        self.steps += 1
        if self.steps - self.base == len(self._rows):
            self._rows = np.concatenate([self._rows, np.zeros_like(self._rows)])
        self._enter(learning_rate)
        count = min(WINDOW, self.steps - self.base)
        now = self.steps - self.base
        recent = self._rows[now - count:now]
        h = math.sqrt(self._correction(self.steps)) * self._growth[-count:]
        term = learning_rate / (1 - BETA1 ** self.steps) * self._moment[-count:] * h
        deviation = h - recent[:, CENTRE]
        for order in range(ORDERS):
            recent[:, ORDER_0 + order] += term
            term = term * deviation

    def _enter(self, learning_rate: float) -> None:
        row = self._rows[self.steps - self.base]
        row[CENTRE] = math.sqrt(self._correction(self.steps + self._centre)) * BETA2 ** (-self._centre / 2)
        row[LEARNING_RATE] = learning_rate

    @staticmethod
    def _correction(step: int) -> float:
        return -math.expm1(step * math.log(BETA2))
