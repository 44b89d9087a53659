"""What a task trains on and is judged by: loss, validation score, metrics."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .. import metrics
from ..batch import Batch
from ..forward import Items, field_rows
from ..losses import ctr_loss, retrieval_loss
from ..ranking import rank_counts, rank_metrics, row_metrics
from ..schema import FeatureSchema
from .config import SearchConfig

EVALUATION_BATCH = 2048
NEGATIVES = 100  # of the sampled metrics, as in the papers of SASRec and BERT4Rec
SAMPLED = {f"uniform{NEGATIVES}": False, f"popular{NEGATIVES}": True}  # how they are called, and whether by popularity
REPEATS = 0.01  # training rows whose item is in their history, above which such items are ranked among all
ERROR = "_standard_error"  # of a metric, as the end of its name
Call = Callable[[Batch, Items], Tensor]  # scores of a batch (of items, where given)


class Objective:
    """Loss and metrics of one task; ``primary`` names the metric that every selection maximises."""

    primary: str

    def __init__(self, schema: FeatureSchema, config: SearchConfig):
        self.schema, self.config = schema, config

    def items(self, batch: Batch) -> Tensor | None:
        """The items [B, n] whose scores the loss is of; None where a row has one score."""
        return None

    def loss(self, call: Call, batch: Batch) -> Tensor:
        raise NotImplementedError

    def evaluate(self, call: Call, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics over the batches, without gradients."""
        raise NotImplementedError

    def evaluate_group(self, call: Call, batches: Iterable[Batch]) -> list[float]:
        """``primary`` of each model of a ``ModelGroup``."""
        raise NotImplementedError

    def test(self, call: Call, batches: Iterable[Batch], candidates: Iterable[list[Tensor]] = ()) -> dict[str, float]:
        """``evaluate``, further metrics of the task, and the standard error that the rows leave on ``primary``."""
        raise NotImplementedError


class CtrObjective(Objective):
    """Binary log loss; AUC decides."""

    primary = "auc"

    def loss(self, call, batch):
        return ctr_loss(call(batch, None), batch.label)

    @torch.no_grad()
    def scores(self, call: Call, batches: Iterable[Batch]) -> tuple[np.ndarray, np.ndarray]:
        """Logits and labels of all rows."""
        logits, labels = zip(*((call(b, None).cpu(), b.label.cpu()) for b in batches), strict=True)
        return torch.cat(logits).numpy(), torch.cat(labels).numpy()

    def evaluate(self, call, batches):
        return self._metrics(*self.scores(call, batches))

    @torch.no_grad()
    def evaluate_group(self, call, batches):
        logits, labels = zip(*((call(b, None).cpu(), b.label.cpu()) for b in batches), strict=True)
        return metrics.auc_columns(torch.cat(logits, 1), torch.cat(labels)).tolist()

    def test(self, call, batches, candidates=()):
        logits, label = self.scores(call, batches)
        return {**self._metrics(logits, label), self.primary + ERROR: metrics.auc_standard_error(logits, label)}

    @staticmethod
    def _metrics(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
        return {"auc": metrics.auc(logits, label), "log_loss": metrics.log_loss(logits, label)}


class RetrievalObjective(Objective):
    """Sampled binary cross-entropy; NDCG@5 over all items decides.

    Id 0 is never ranked, nor what a batch names as ``seen`` (``training.ranks_seen`` decides). Beside all items, each
    row's own is ranked against sampled ones (``SAMPLED``), which are never from the row's history.
    """

    primary = "ndcg@5"

    def items(self, batch):
        return torch.cat([batch.items[:, None], batch.negatives], 1)

    def loss(self, call, batch):
        return retrieval_loss(call(batch, self.items(batch)))

    def evaluate(self, call, batches):
        return rank_metrics(self._counts(call, ((b, []) for b in batches))[0])

    def evaluate_group(self, call, batches):
        counts = self._counts(call, ((b, []) for b in batches), dim=2)
        return [rank_metrics(own)[self.primary] for own in counts[:, 0]]

    def test(self, call, batches, candidates=()):
        counts = self._counts(call, zip(batches, candidates, strict=True))
        found = rank_metrics(counts[0])
        for name, sampled in zip(SAMPLED, counts[1:], strict=True):
            found.update({f"{key}_{name}": value for key, value in rank_metrics(sampled).items()})
        primary = row_metrics(counts[0])[self.primary]
        error = float(primary.std(ddof=1)) / math.sqrt(len(primary)) if len(primary) > 1 else math.nan
        return {**found, self.primary + ERROR: error}

    @torch.no_grad()
    def _counts(self, call: Call, rows: Iterable[tuple[Batch, list[Tensor]]], dim: int = 1) -> Tensor:
        """Items above and tied [1 + sets of candidates, rows, 2], among all items first; of a group [models, …]."""
        def ranked(batch: Batch, drawn: list[Tensor]) -> Tensor:
            seen = None if batch.seen is None else (batch.seen_offsets, batch.seen)
            return call(batch, lambda users, items: torch.stack(
                [rank_counts(users, items, batch.items, seen=seen),
                 *(rank_counts(users, items, batch.items, among) for among in drawn)]))
        return torch.cat([ranked(batch, drawn).cpu() for batch, drawn in rows], dim)


def make_objective(schema: FeatureSchema, config: SearchConfig) -> Objective:
    return (CtrObjective if schema.task == "ctr" else RetrievalObjective)(schema, config)


def looked_up(schema: FeatureSchema, batch: Batch) -> Tensor:
    """How often each row of the embedding matrix is read for a batch: float [F]."""
    rows, bag_rows, _ = field_rows(schema, batch)
    single = [i for i in range(schema.num_fields) if i not in schema.multi_fields]
    parts = [rows[:, single].flatten()]
    if bag_rows is not None:
        parts.append(bag_rows)
    if schema.behavior:
        parts.append((batch.history + torch.tensor(schema.behavior_offsets, dtype=torch.int32,
                                                   device=batch.device)).flatten().long())
    return torch.bincount(torch.cat(parts), minlength=schema.num_embeddings)


@torch.no_grad()
def add_embedding_l2(embedding: nn.Parameter, counts: Tensor, rows: int, strength: float) -> None:
    """Adds the gradient of ``strength · Σ |e|² / rows`` over the looked-up rows, as a loss term would."""
    if strength and rows:
        touched = counts.nonzero()[:, 0]  # of a large matrix a few
        scale = counts[touched].to(embedding.dtype).mul_(2 * strength / rows)
        embedding.grad.index_add_(0, touched, embedding[touched].mul_(scale[:, None]))


@torch.no_grad()
def add_occurrences_l2(gradient: Tensor, occurrences: Tensor, schema: FeatureSchema, batch: Batch,
                       strength: float) -> None:
    """The same for the gradient [n, K] of ``occurrences`` [n, K], which lie as ``forward.rows_read`` gives them."""
    if strength and len(batch):
        single = batch.fields.numel()
        count = single + (0 if batch.history is None else batch.history.numel()) + \
            (0 if batch.bag_ids is None else batch.bag_ids.numel())
        gradient[:count].add_(occurrences[:count], alpha=2 * strength / len(batch))
        if schema.multi_fields:
            # In the fields' place of a bag lies a row that is not read: its gradient was zero.
            gradient[:single].view(*batch.fields.shape, -1)[:, list(schema.multi_fields)] = 0


def forget_some_ids(batch: Batch, rate: float, generator: torch.Generator) -> Batch:
    """Replaces ids by 0 with probability ``rate``: otherwise the row of unknown ids would never be trained."""
    if not rate:
        return batch

    def forget(ids: Tensor | None) -> Tensor | None:
        if ids is None:
            return None
        keep = torch.empty(ids.shape, dtype=torch.float32, device=ids.device).bernoulli_(1 - rate,
                                                                                        generator=generator)
        return ids * keep.to(ids.dtype)

    return replace(batch, fields=forget(batch.fields), history=forget(batch.history), bag_ids=forget(batch.bag_ids))
