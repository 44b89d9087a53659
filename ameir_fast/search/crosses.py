"""Interactions scored by the data itself: how far the cells of a cross tell what the base model leaves unexplained.

A candidate's cells are the combinations of its fields' ids. With r the residuals (label minus predicted probability,
without what single fields explain of them) and S_a, S_b their sums per cell over the training and the validation rows,
the score is

    z = Σ S_a S_b / sqrt(Σ S_a² Q_b),    Q_b the sums of squares of validation rows,

whose mean is 0 and variance at most 1 where cells say nothing of validation rows, whatever they say of training rows. (Q_b is
taken to be no less than what as many rows have on average: the few rows of cells that both parts know may hold no click
at all, and then their squares don't tell what clicks would have done.) It needs no weights, so an interaction that
gradients find only after long training, such as a product of three fields without any effect of two of them, is as
visible as any other.

What is found is chosen one by one: after each choice the residuals lose what its cells explain, so that the next one
has to add something, and choosing ends where nothing is left that is more than chance. Places that are left go to pairs
of fields in the same way, with the residuals of a model that has single fields alone: the base explains such pairs, and
a larger product may hold one among more, but a model that is given their own products learns them sooner.
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
#: Cells of a candidate of two fields or more; where it has more combinations than that, they are hashed into so many.
MOST_CELLS = 1 << 20
#: Effects of all fields are taken out so many times, since those of one change those of others.
_ROUNDS = 3
#: Effects of a field's ids are estimated as if they had so many more rows without any; in the logistic model, a Newton
#: step of one is no longer than that: where clicks are rare, whole steps overshoot.
_PRIOR_ROWS, _LONGEST_STEP = 20, 1.5
#: The fewest and the most rows without effect that a cell's mean is drawn to 0 by.
_PRIORS = 1e-3, 1e9
_ODD = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(65 - MOST_CELLS.bit_length())
_READ = 16_384

Interaction = tuple[int, ...]


class Crosses:
    """Scores candidates on rows as they are stored.

    Args: ``values`` of each field, integers [R], in training rows first, then in validation rows; ``sizes``, how many
    different ones a field has, below which its values lie (None: any 64-bit numbers); ``residual`` float [R] of the base
    model; ``training``, how many of the rows are training rows; ``label`` float [R] in [0, 1].

    Raises ``InputError`` for a residual that is not finite: the base model's training diverged.
    """

    def __init__(self, values: Sequence[np.ndarray], sizes: Sequence[int | None], residual: np.ndarray, training: int,
                 label: np.ndarray):
        if not np.isfinite(residual).all():
            raise InputError("the base model of step 2 predicts numbers that are not finite; a smaller learning_rate may help")
        self.values, self.sizes, self.label, self._residual = list(values), list(sizes), label, residual
        for f, (column, size) in enumerate(zip(values, sizes, strict=True)):
            if size is None or size > MOST_CELLS:  # there are no more than rows
                known, self.values[f] = np.unique(column, return_inverse=True)
                self.sizes[f] = len(known)
        self._parts = slice(0, training), slice(training, None)
        self._left = self._without_fields(lambda part: self._without_effects(residual, part))

    @classmethod
    def of(cls, context: Context) -> Crosses:
        """With the residuals of step 2's base as it is trained."""
        data, net, schema = context.task.data, context.net, context.space.schema
        rows = {split: min(MOST_ROWS, data.size(split)) for split in ("train", "valid")}
        total, done = sum(rows.values()), 0
        values = [np.empty(total, np.uint64 if f in schema.multi_fields else np.int32) for f in range(schema.num_fields)]
        residual, label = np.empty(total), np.empty(total)
        net.eval()
        with torch.no_grad():
            for split, limit in rows.items():
                for batch in data.batches(split, _READ, limit=limit, device=context.task.device):
                    part = slice(done, done + batch.label.shape[0])
                    label[part] = batch.label.cpu()
                    residual[part] = (batch.label - torch.sigmoid(net.interaction_logit(batch, None))).cpu()
                    for column, found in zip(values, _values(schema, batch), strict=True):
                        column[part] = found
                    done = part.stop
        sizes = [None if f in schema.multi_fields else schema.size(field.vocabulary)
                 for f, field in enumerate(schema.fields)]
        return cls(values, sizes, residual, rows["train"], label)

    def score(self, fields: Interaction) -> float:
        """z of one candidate; 0 where a part has no residual at all."""
        return self._score(fields, self._left)

    def choose(self, candidates: Sequence[Interaction], most: int, progress: Callable[[int], None] = lambda done: None,
               larger: Sequence[Interaction] = ()) -> list[tuple[Interaction, float]]:
        """At most so many candidates, then pairs, that each add to those before, with the score that they were chosen by:
        the best one, then the best one given its cells, as long as one has ``SIGNIFICANT`` or more. Of ``larger`` ones
        those become candidates that contain a chosen one and say more: before, they would have scored by what it says."""
        chosen: list[tuple[Interaction, float]] = []
        self._add(chosen, list(candidates), self._left, most, progress, larger)
        if len(chosen) < most:
            left = self._without_fields(self._without_effects_in_logits)
            for fields, _ in chosen:
                if len(fields) == 2:
                    left = self._without_cells(fields, left)
            pairs = [pair for pair in itertools.combinations(range(len(self.values)), 2) if pair not in dict(chosen)]
            pairs.sort(key=lambda pair: -self._score(pair, left))
            self._add(chosen, pairs[:PAIRS], left, most, progress)
        return chosen

    def _add(self, chosen: list, pool: list[Interaction], left: np.ndarray, most: int, progress: Callable[[int], None],
             larger: Sequence[Interaction] = ()) -> None:
        while pool and len(chosen) < most:
            scores = [self._score(c, left) for c in pool]
            best = int(np.argmax(scores))
            if scores[best] < SIGNIFICANT:
                break
            fields = pool.pop(best)
            chosen.append((fields, scores[best]))
            left = self._without_cells(fields, left)
            known = {*pool, *dict(chosen)}
            pool += [c for c in self._add_to(fields, larger) if c not in known]
            progress(len(chosen))

    def _score(self, fields: Interaction, left: np.ndarray) -> float:
        cell, count = self._cells(fields)
        first, second = self._parts
        # Sums over cells, taken row by row of the validation part: it has fewer rows than a candidate may have cells.
        sums, square = np.bincount(cell[first], left[first], count)[cell[second]], np.square(left[second])
        weight = np.square(sums)
        spread = max(weight @ square, square.mean() * weight.sum()) if square.size else 0.0
        return float(sums @ left[second] / math.sqrt(spread)) if spread else 0.0

    def _without_fields(self, left_of: Callable[[slice], np.ndarray]) -> np.ndarray:
        """Both parts' residuals, without what single fields explain of them, as ``left_of`` gives it, and then without what
        the parts still agree on: means of few rows are drawn to 0, and what is left of rare ids would pass for interactions
        with any other field."""
        left = np.concatenate([left_of(part) for part in self._parts])
        for _ in range(_ROUNDS):
            for f in range(len(self.values)):
                left = self._without_cells((f,), left)
        return left

    def _without_effects(self, residual: np.ndarray, part: slice) -> np.ndarray:
        """The residuals of one part without their mean and the mean of each field's ids (backfitting)."""
        left = residual[part] - (residual[part].mean() if residual[part].size else 0)
        for _ in range(_ROUNDS):
            for f in range(len(self.values)):
                cell, count = self._cells((f,))
                cell = cell[part]
                left -= (np.bincount(cell, left, count) / (np.bincount(cell, minlength=count) + _PRIOR_ROWS))[cell]
        return left

    def _without_effects_in_logits(self, part: slice) -> np.ndarray:
        """The residuals of a logistic model with an effect of each field's ids, of one part's rows."""
        share = float(np.clip(self.label[part].mean(), 1e-6, 1 - 1e-6)) if self.label[part].size else 0.5
        return self._beyond(part, np.full(self.label[part].shape, math.log(share / (1 - share))), [(f,) for f in range(len(self.values))])

    def _beyond(self, part: slice, logit: np.ndarray, effects: Sequence[Interaction]) -> np.ndarray:
        """The residuals of these logits with effects of cells added (Newton's steps, one candidate's cells after another)."""
        label = self.label[part]
        prior = _PRIOR_ROWS * max(float(label.mean() * (1 - label.mean())), 1e-6) if label.size else 1.0
        for _ in range(_ROUNDS):
            for fields in effects:
                cell, count = self._cells(fields)
                cell, p = cell[part], 1 / (1 + np.exp(-logit))
                step = np.bincount(cell, label - p, count) / (np.bincount(cell, p * (1 - p), count) + prior)
                logit = logit + np.clip(step, -_LONGEST_STEP, _LONGEST_STEP)[cell]
        return label - 1 / (1 + np.exp(-logit))

    def _add_to(self, fields: Interaction, larger: Sequence[Interaction]) -> list[Interaction]:
        """Of the larger candidates those that contain these fields and say more than they do where effects add up as
        logits, too: beside a strong third field, what a product says of probabilities is not the same everywhere."""
        inside = [c for c in larger if set(fields) < set(c)]
        if not inside:
            return []
        p = np.clip(self.label - self._residual, 1e-6, 1 - 1e-6)
        beyond = self._beyond(slice(None), np.log(p / (1 - p)), [fields])
        left = self._without_cells(fields, self._without_fields(lambda part: self._without_effects(beyond, part)))
        return [c for c in inside if self._score(c, left) >= SIGNIFICANT]

    def _without_cells(self, fields: Interaction, left: np.ndarray) -> np.ndarray:
        """The residuals without what a candidate's cells explain of them: means over both parts, drawn to 0 as if cells
        had so many more rows without any effect that afterwards the parts agree on nothing. With a fixed number, where
        cells hold few rows, most of a strong effect would stay, and pass for one of finer cells."""
        cell, count = self._cells(fields)
        sums, rows = zip(*((np.bincount(cell[part], left[part], count), np.bincount(cell[part], minlength=count))
                           for part in self._parts), strict=True)
        shared = np.flatnonzero((rows[0] > 0) & (rows[1] > 0))
        (a, b), (n, m) = (s[shared] for s in sums), (r[shared] for r in rows)

        def agreement(prior: float) -> float:
            effect = (a + b) / (n + m + prior)
            return float((a - n * effect) @ (b - m * effect))

        low, high = _PRIORS
        if agreement(high) <= 0:
            return left
        while high > 1.01 * low:  # without a prior it is a negative sum of squares
            middle = math.sqrt(low * high)
            low, high = (low, middle) if agreement(middle) > 0 else (middle, high)
        effect = (sums[0] + sums[1]) / (rows[0] + rows[1] + high)
        return left - effect[cell]

    def _cells(self, fields: Interaction) -> tuple[np.ndarray, int]:
        """Each row's cell, and how many cells there are."""
        if len(fields) == 1:
            return self.values[fields[0]], self.sizes[fields[0]]
        sizes = [self.sizes[f] for f in fields]
        exact = math.prod(sizes) <= MOST_CELLS
        cell = np.zeros(self.values[0].shape[0], np.int64 if exact else np.uint64)
        for f, size in zip(fields, sizes, strict=True):
            cell *= size if exact else _ODD
            cell += self.values[f].astype(cell.dtype)
        if exact:
            return cell, math.prod(sizes)
        return ((cell ^ (cell >> np.uint64(32))) * _ODD >> _SHIFT).astype(np.int64), MOST_CELLS


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
