"""What a task trains on and is judged by: loss, validation score, metrics."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from .. import metrics
from ..batch import Batch
from ..forward import field_rows
from ..losses import ctr_loss, retrieval_loss
from ..schema import FeatureSchema
from .config import SearchConfig

EVALUATION_BATCH = 2048
Call = Callable[[Batch, Tensor | None], Tensor]  # scores of a batch (of items, where given)


class Objective:
    """Loss and metrics of one task; ``primary`` names the metric that every selection maximises."""

    primary: str

    def __init__(self, schema: FeatureSchema, config: SearchConfig):
        self.schema, self.config = schema, config

    def loss(self, call: Call, batch: Batch) -> Tensor:
        raise NotImplementedError

    def evaluate(self, call: Call, batches: Iterable[Batch]) -> dict[str, float]:
        """Metrics over the batches, without gradients."""
        raise NotImplementedError


    def test(self, call: Call, batches: Iterable[Batch]) -> dict[str, float]:
        """``evaluate``, and what the task can say of the error of its metrics."""
        return self.evaluate(call, batches)


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

    def test(self, call, batches):
        logits, label = self.scores(call, batches)
        return {**self._metrics(logits, label), "auc_standard_error": metrics.auc_standard_error(logits, label)}

    @staticmethod
    def _metrics(logits: np.ndarray, label: np.ndarray) -> dict[str, float]:
        return {"auc": metrics.auc(logits, label), "log_loss": metrics.log_loss(logits, label)}


class RetrievalObjective(Objective):
    """Sampled binary cross-entropy; NDCG@5 over all items decides. Id 0 is never ranked."""

    primary = "ndcg@5"

    def loss(self, call, batch):
        items = torch.cat([batch.items[:, None], batch.negatives], 1)
        return retrieval_loss(call(batch, items))

    @torch.no_grad()
    def evaluate(self, call, batches):
        total: dict[str, float] = {}
        count = 0
        for batch in batches:
            scores = call(batch, None)[:, 1:]
            found = metrics.hit_rate_ndcg(scores.cpu(), (batch.items.long() - 1).cpu(), k=(5, 10))
            for name, value in found.items():
                total[name] = total.get(name, 0.0) + value * len(batch)
            count += len(batch)
        return {name: value / count for name, value in total.items()}


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
        scale = counts.to(embedding.dtype).mul_(2 * strength / rows)
        embedding.grad.addcmul_(embedding, scale[:, None])


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
