"""Synthetic data: rows from ``planted.py`` as a source, and what the best possible model would reach on them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from .build import Progress, build
from .files import SPLITS
from .plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan
from .planted import BLOCK, Block, Planted, SyntheticOptions

ITEM = 0  # the field that histories are made of, and the target


def prepare_synthetic(
    options: SyntheticOptions,
    output_dir: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Draws and prepares synthetic data and returns the statistics, the planted truth under ``truth``.

    Raises ``InputError`` when ``output_dir`` is in use, ``OSError`` when the disk is full; it is then as it was.
    """
    source = SyntheticSource(options)
    return build(
        source,
        plan(options),
        output_dir,
        kind="synthetic",
        options=asdict(options),
        more_statistics=lambda: {"truth": source.truth()},
        overwrite=overwrite,
        on_progress=on_progress,
    )


def field_name(number: int) -> str:
    return "item" if number == ITEM else f"field_{number}"


def plan(options: SyntheticOptions) -> TablePlan:
    """Fields hold ids; with a history, that of the user's earlier items, and the item is the target. A row's time is
    its number, and the split goes by it."""
    names = [field_name(f) for f in range(options.fields)]
    history = options.history_mean > 0
    return TablePlan(
        task="ctr",
        label="label",
        user="user" if history else None,
        time="time" if history else None,
        fields=tuple(FieldPlan(name, name, name) for name in names),
        history=(HistoryPlan("history_item", names[ITEM], names[ITEM]),) if history else (),
        max_history=options.max_history if history else 0,
        target=(names[ITEM],) if history else (),
        vocabularies={name: VocabularyPlan(size=options.size(f) + 1) for f, name in enumerate(names)},
        split=SplitPlan("order", options.parts),
    )


class SyntheticSource:
    """``options.rows`` rows, drawn block by block as they are asked for."""

    files: tuple[Path, ...] = ()

    def __init__(self, options: SyntheticOptions):
        self.options, self.planted = options, Planted(options)
        self.dropped: dict[str, int] = {}
        self.done = 0.0
        self._begin_anew()

    def chunks(self) -> Iterator[pl.DataFrame]:
        self._begin_anew()
        for number in range(self.planted.blocks):
            block = self.planted.block(number)
            first = number * BLOCK
            self._note(first, block)
            columns = {field_name(f): ids for f, ids in enumerate(block.ids)}
            if block.user is not None:
                columns["user"] = block.user
                columns["time"] = np.arange(first, first + block.label.size)
            columns["label"] = block.label.astype(np.float32)
            self.done = (first + block.label.size) / self.options.rows
            yield pl.DataFrame(columns)

    def truth(self) -> dict:
        """What was planted, and the AUC of the true logits in each split, against the labels as they were drawn
        (``drawn``) and in expectation over draws of the labels (``expected``); complete once ``chunks`` is."""
        options = self.options
        return {
            "interactions": [
                {"fields": sorted(i.fields), "names": [field_name(f) for f in sorted(i.fields)], "strength": i.strength}
                for i in options.interactions
            ],
            "heredity": options.heredity,
            "behavior": list(options.behavior),
            "behavior_strength": options.behavior_strength if options.behavior else 0.0,
            "main": options.main,
            "noise": options.noise,
            "intercept": self.planted.intercept,
            "bayes_auc": {name: curve.result() for name, curve in self._curves.items()},
        }

    def _begin_anew(self) -> None:
        self._curves = {name: BayesAuc() for name in SPLITS}

    def _note(self, first: int, block: Block) -> None:
        rows, start = self.options.rows, 0
        for name, share in zip(SPLITS, np.cumsum(self.options.parts), strict=True):
            end = min(block.label.size, max(start, round(share * rows) - first))
            part = slice(start, end)
            self._curves[name].add(block.logit[part], block.probability[part], block.label[part])
            start = end


class BayesAuc:
    """AUC of true logits, from counts in narrow bins: it needs no rows, and pairs within a bin count one half each,
    which they do on the whole anyway (the error is below 1e-6)."""

    BINS, LIMIT = 1 << 16, 32.0

    def __init__(self):
        # Weight of positives and negatives, in expectation and as drawn, and of a row with itself.
        self.weights = np.zeros((2, 2, self.BINS))
        self.own = 0.0

    def add(self, logit: np.ndarray, probability: np.ndarray, label: np.ndarray) -> None:
        place = np.clip((logit + self.LIMIT) * (self.BINS / (2 * self.LIMIT)), 0, self.BINS - 1).astype(np.int64)
        for kind, positive in enumerate((probability, label.astype(np.float64))):
            for sign, weight in enumerate((positive, 1 - positive)):
                self.weights[kind, sign] += np.bincount(place, weight, self.BINS)
        self.own += float(probability @ (1 - probability))

    def result(self) -> dict[str, float | None]:
        return {"expected": self._auc(0, self.own), "drawn": self._auc(1, 0.0)}

    def _auc(self, kind: int, own: float) -> float | None:
        positive, negative = self.weights[kind]
        below = np.cumsum(negative) - negative
        pairs = positive.sum() * negative.sum() - own
        return float((positive @ (below + negative / 2) - own / 2) / pairs) if pairs > 0 else None
