"""Interactions scored by the data itself: how far the cells of a cross tell what the base model leaves unexplained.

A candidate's cells are the combinations of its fields' ids. With r the residuals (label minus predicted probability,
without what single fields explain of them) and S_a, S_b their sums per cell over the training and the validation rows,
the score is

    z = Σ S_a S_b / sqrt(Σ S_a² Q_b),    Q_b the sums of squares of validation rows,

whose mean is 0 and variance 1 where cells say nothing of validation rows, whatever they say of training rows. It needs
no weights, so an interaction that gradients find only after long training, such as a product of three fields without any
effect of two of them, is as visible as any other.

What is found is chosen one by one: after each choice the residuals lose what its cells explain, so that the next one
has to add something, and choosing ends where nothing is left that is more than chance. Places that are left go to pairs
of fields in the same way, with the residuals of a model that has single fields alone: the base explains such pairs, but
a model that is given their products learns them sooner.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence

import numpy as np
import torch

from ..errors import InputError
from ..schema import FeatureSchema
from .context import Context

#: A score from here on is hardly chance: of a million candidates without effect 0.3 have it.
SIGNIFICANT = 5.0
#: More rows of a split than these sharpen nothing that matters, and cost memory: a number for each of the fields.
MOST_ROWS = 4_000_000
#: Pairs that are looked at again for each place that is left to pairs.
PAIRS = 50
#: Cells of a candidate; where it has more combinations than that, they are hashed into so many.
MOST_CELLS = 1 << 20
#: A field's effect is estimated as if its ids had so many more rows without any, three times over all fields.
_PRIOR_ROWS, _ROUNDS = 20, 3
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(65 - MOST_CELLS.bit_length())
_READ = 16_384

Interaction = tuple[int, ...]


class Crosses:
    """Scores candidates on rows as they are stored.

    Args: ``values`` of each field, integers [R], in training rows first, then in validation rows; ``sizes``, how many
    different ones a field has, below which its values lie (None: any 64-bit numbers); ``residual`` float [R] of the base
    model; ``training``, how many of the rows are training rows; ``label`` float [R] in [0, 1], for ``choose`` to go on
    with pairs.

    Raises ``InputError`` for a residual that is not finite: the base model's training diverged.
    """

    def __init__(self, values: Sequence[np.ndarray], sizes: Sequence[int | None], residual: np.ndarray, training: int,
                 label: np.ndarray | None = None):
        if not np.isfinite(residual).all():
            raise InputError("the base model of step 2 predicts numbers that are not finite; a smaller learning_rate may help")
        self.values, self.sizes, self.label = list(values), list(sizes), label
        self._numbered = [np.unique(v, return_inverse=True)[1] if size is None else v
                          for v, size in zip(self.values, self.sizes, strict=True)]
        self._parts = slice(0, training), slice(training, None)
        self._left = self._in_parts(_without_fields, residual)

    @classmethod
    def of(cls, context: Context) -> Crosses:
        """With the residuals of step 2's base as it is trained."""
        data, net, schema = context.task.data, context.net, context.space.schema
        values: list[list[np.ndarray]] = [[] for _ in schema.fields]
        residuals, labels = [], []
        rows = {split: min(MOST_ROWS, data.size(split)) for split in ("train", "valid")}
        net.eval()
        with torch.no_grad():
            for split, limit in rows.items():
                for batch in data.batches(split, _READ, limit=limit, device=context.task.device):
                    left = batch.label - torch.sigmoid(net.interaction_logit(batch, None))
                    residuals.append(left.double().cpu().numpy())
                    labels.append(batch.label.double().cpu().numpy())
                    for column, found in zip(values, _values(schema, batch), strict=True):
                        column.append(found)
        sizes = [None if f in schema.multi_fields else schema.size(field.vocabulary)
                 for f, field in enumerate(schema.fields)]
        return cls([np.concatenate(v) for v in values], sizes, np.concatenate(residuals), rows["train"], np.concatenate(labels))

    def _in_parts(self, left_of: Callable[[np.ndarray, list[np.ndarray]], np.ndarray], target: np.ndarray) -> np.ndarray:
        return np.concatenate([left_of(target[part], [v[part] for v in self._numbered]) for part in self._parts])

    def score(self, fields: Interaction) -> float:
        """z of one candidate; 0 where a part has no residual at all."""
        return self._score(fields, self._left)

    def choose(self, candidates: Sequence[Interaction], most: int,
               progress: Callable[[int], None] = lambda done: None) -> list[tuple[Interaction, float]]:
        """At most so many candidates, then pairs, that each add to those before, with the score that they were chosen by:
        the best one, then the best one given its cells, as long as one has ``SIGNIFICANT`` or more."""
        chosen: list[tuple[Interaction, float]] = []
        self._add(chosen, list(candidates), self._left, most, progress)
        if self.label is not None and len(chosen) < most:
            left = self._in_parts(_without_effects_in_logits, self.label)
            for fields, _ in chosen:
                left = self._without_cells(fields, left)
            pairs = [pair for pair in itertools.combinations(range(len(self.values)), 2) if pair not in dict(chosen)]
            pairs.sort(key=lambda pair: -self._score(pair, left))
            self._add(chosen, pairs[:PAIRS], left, most, progress)
        return chosen

    def _add(self, chosen: list, pool: list[Interaction], left: np.ndarray, most: int, progress: Callable[[int], None]) -> None:
        while pool and len(chosen) < most:
            scores = [self._score(c, left) for c in pool]
            best = int(np.argmax(scores))
            if scores[best] < SIGNIFICANT:
                break
            chosen.append((pool.pop(best), scores[best]))
            left = self._without_cells(chosen[-1][0], left)
            progress(len(chosen))

    def _score(self, fields: Interaction, left: np.ndarray) -> float:
        cell, count = self._cells(fields)
        first, second = self._parts
        sums = np.bincount(cell[first], left[first], count)
        spread = math.sqrt(np.square(sums) @ np.bincount(cell[second], np.square(left[second]), count))
        return float(sums @ np.bincount(cell[second], left[second], count) / spread) if spread else 0.0

    def _without_cells(self, fields: Interaction, left: np.ndarray) -> np.ndarray:
        """The residuals without what a candidate's cells explain of them, over both parts. Means of cells are drawn to 0
        by as many rows as fit their variance, which is what the parts agree on: with a fixed number, where cells hold
        few rows, most of a strong effect would stay."""
        cell, count = self._cells(fields)
        sums, rows = zip(*((np.bincount(cell[part], left[part], count), np.bincount(cell[part], minlength=count))
                           for part in self._parts), strict=True)
        together, both = float(sums[0] @ sums[1]), float(rows[0] @ rows[1])
        if together <= 0:  # the parts agree on nothing
            return left
        prior = max(0.0, float(np.square(left).mean()) * both / together - 1)
        return left - _effects(cell, left, count, prior)[cell]

    def _cells(self, fields: Interaction) -> tuple[np.ndarray, int]:
        """Each row's cell, and how many cells there are."""
        sizes = [self.sizes[f] for f in fields]
        exact = None not in sizes and math.prod(sizes) <= MOST_CELLS
        cell = np.zeros(self.values[0].shape[0], np.int64 if exact else np.uint64)
        for f, size in zip(fields, sizes, strict=True):
            cell *= size if exact else _ODD
            cell += self.values[f].astype(cell.dtype)
        if exact:
            return cell, math.prod(sizes)
        return ((cell ^ (cell >> np.uint64(32))) * _ODD >> _SHIFT).astype(np.int64), MOST_CELLS


def _without_fields(residual: np.ndarray, fields: Sequence[np.ndarray]) -> np.ndarray:
    """What is left of the residuals without their mean and what each field's ids explain of them (backfitting): the base
    fits rare ids late, and their effects would pass for interactions with any other field."""
    left = residual - (residual.mean() if residual.size else 0)
    for _ in range(_ROUNDS):
        for ids in fields:
            left -= _effects(ids, left)[ids]
    return left


def _without_effects_in_logits(label: np.ndarray, fields: Sequence[np.ndarray]) -> np.ndarray:
    """The residuals of a logistic model with an effect of each field's ids (Newton steps, a field at a time)."""
    share = float(np.clip(label.mean(), 1e-6, 1 - 1e-6)) if label.size else 0.5
    logit = np.full(label.shape, math.log(share / (1 - share)))
    prior = _PRIOR_ROWS * share * (1 - share)
    for _ in range(_ROUNDS):
        for ids in fields:
            p = 1 / (1 + np.exp(-logit))
            logit += (np.bincount(ids, label - p) / (np.bincount(ids, p * (1 - p)) + prior))[ids]
    return label - 1 / (1 + np.exp(-logit))


def _effects(ids: np.ndarray, residual: np.ndarray, count: int = 0, prior: float = _PRIOR_ROWS) -> np.ndarray:
    """Each id's mean residual as if it had ``prior`` more rows without any."""
    return np.bincount(ids, residual, count) / np.maximum(np.bincount(ids, minlength=count) + prior, 1)


def _values(schema: FeatureSchema, batch) -> list[np.ndarray]:
    """A number for each field of each row: the id, or of a bag one that its ids decide, whatever their order."""
    found = list(batch.fields.cpu().numpy().T)
    if schema.multi_fields:
        ids, offsets = batch.bag_ids.cpu().numpy().astype(np.uint64), batch.bag_offsets.cpu().numpy()
        mixed = (ids + np.uint64(1)) * _ODD
        total = np.concatenate([np.zeros(1, np.uint64), np.cumsum(mixed ^ (mixed >> np.uint64(29)), dtype=np.uint64)])
        bags = (total[offsets[1:]] - total[offsets[:-1]]).reshape(-1, len(schema.multi_fields))
        for column, f in enumerate(schema.multi_fields):
            found[f] = bags[:, column]
    return found


def nothing_added(ranking: Sequence[dict]) -> list[dict]:
    """The ranking without candidates that contain a better one of order 2 or more that is no chance: their cells are
    parts of its cells, so they score by it."""
    kept: list[dict] = []
    better: list[frozenset] = []
    for entry in ranking:
        fields = frozenset(entry["fields"])
        if any(b < fields for b in better):
            continue
        kept.append(entry)
        if len(fields) >= 2 and entry["score"] >= SIGNIFICANT:
            better.append(fields)
    return kept
