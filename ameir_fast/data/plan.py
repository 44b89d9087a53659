"""What the columns of a table mean: which become fields, how histories and splits are made.

A :class:`TablePlan` is what ``table_schema.py`` reads from JSON and what ``movielens.py`` states itself;
``build.py`` carries it out.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from ..errors import InputError
from ..schema import BehaviorField, FeatureSchema, Field, Vocabulary
from .files import SPLITS

#: Shares of the rows for train, valid and test where nothing else is asked for.
PARTS = (0.8, 0.1, 0.1)


@dataclass(frozen=True)
class FieldPlan:
    """A stored field. ``default``: whether it belongs to the default view."""

    name: str
    column: str
    vocabulary: str
    kind: str = "categorical"
    separator: str | None = None  # of a multi-categorical column that holds text
    default: bool = True


@dataclass(frozen=True)
class HistoryPlan:
    """A behaviour field: built from ``column`` of the user's earlier rows or of the earlier events in the source's
    log, or read from the lists of ``column``.
    """

    name: str
    column: str
    vocabulary: str
    ready: bool = False  # column holds the row's own list, oldest first
    separator: str | None = None  # of such a column that holds text
    logged: bool = False  # column of ``Source.events``, a table of its own with the same columns of user and time


@dataclass(frozen=True)
class VocabularyPlan:
    """Where ids come from: learnt from the training rows (values seen ``min_count`` times there); listed in
    ``values`` (value i has id i+1, kept only if seen in the training rows); or the column holds ids below
    ``size`` already; or numbers are cut at quantiles of the training rows into at most ``bins`` ranges. ``all_rows``: learnt from all rows, which tells the training part what comes later.
    """

    min_count: int = 1
    values: tuple | None = None
    size: int | None = None
    on_unknown: str = "raise"  # "map": an id outside 0..size-1 becomes 0
    all_rows: bool = False
    bins: int | None = None


@dataclass(frozen=True)
class SplitPlan:
    """``by``: time, order (of the input, which is that of time), random, leave_one_out or column; ``parts``: of the
    rows, for train, valid and test. ``test_from``: by time, rows from here on are for test, and the first two parts
    are those of the rows before. Raises ``InputError`` for parts that are not three positive numbers with the sum 1.
    """

    by: str = "time"
    parts: tuple[float, float, float] = PARTS
    seed: int = 0
    column: str | None = None
    test_from: float | None = None

    def __post_init__(self):
        parts = self.parts
        if len(parts) != len(SPLITS) or min(parts) <= 0 or not abs(sum(parts) - 1) <= 1e-9:
            raise InputError(f"split parts {list(parts)} are not three positive numbers with the sum 1")


def split_plan(by: str, parts: Sequence[float] | None, seed: int | None = None, **more: object) -> SplitPlan:
    """A split with the ``parts`` and ``seed`` that were asked for, or ``PARTS`` and 0; ``more`` as for ``SplitPlan``.

    Raises ``InputError`` where ``parts`` or a ``seed`` are given for a split that has none.
    """
    if seed is not None and by != "random":
        raise InputError(f"seed belongs to a split at random, not by {by}")
    more["seed"] = seed or 0
    if parts is None:
        return SplitPlan(by, **more)
    if by in ("leave_one_out", "column"):
        raise InputError(f"parts belong to splits by time, order or random, not by {by}")
    return SplitPlan(by, tuple(parts), **more)


def finite(name: str, value: float | None) -> float | None:
    """The value of an option as a float, so that 4 and 4.0 are one. Raises ``InputError`` for NaN and infinities."""
    if value is not None and not math.isfinite(value):
        raise InputError(f"{name} {value} is not a finite number")
    return None if value is None else float(value)


def parts_given(parts: Sequence[float] | None) -> dict:
    """What ``options`` say of ``parts``: nothing where they are ``PARTS``, asked for or not."""
    return {} if parts is None or tuple(parts) == PARTS else {"parts": list(parts)}


@dataclass(frozen=True)
class TablePlan:
    """A whole table; ``None`` for what it has not."""

    task: str
    fields: tuple[FieldPlan, ...]
    label: str | None = None
    user: str | None = None
    time: str | None = None
    item: str | None = None  # retrieval: the column of the item to find
    item_vocabulary: str | None = None
    history: tuple[HistoryPlan, ...] = ()
    max_history: int = 0
    min_history: int = 0  # rows with a shorter one are left out (their events stay in later histories)
    target: tuple[str, ...] = ()
    vocabularies: dict[str, VocabularyPlan] = field(default_factory=dict)
    split: SplitPlan = SplitPlan()

    def __post_init__(self):
        if self.task not in ("ctr", "retrieval"):
            raise InputError(f"task {self.task!r} is neither 'ctr' nor 'retrieval'")
        if self.task == "ctr" and self.label is None:
            raise InputError('the ctr task needs "label"')
        if self.task == "retrieval" and (self.item is None or not self.history):
            raise InputError('the retrieval task needs "item" and "history"')
        if self.task == "ctr" and self.item is not None:
            raise InputError('"item" belongs to the retrieval task; the ctr task names the item in "target"')
        if self.task == "retrieval" and self.label is not None:
            raise InputError('"label" belongs to the ctr task; retrieval predicts "item"')
        if self.task == "ctr" and not self.fields and not self.history:
            raise InputError('neither "fields" nor "history" name anything')
        ready = {h.ready for h in self.history}
        if len(ready) > 1 or len({h.logged for h in self.history}) > 1:
            raise InputError('history fields are either all built from "column" or all read from "list"')
        if ready == {False} and (self.user is None or self.time is None):
            raise InputError('histories built from "column" need "user" and "time"')
        if self.history and self.max_history < 1:
            raise InputError('"max_history" must be at least 1')
        self._check_split()
        self._check_answers()
        for name, plan in self.vocabularies.items():
            if name not in self.vocabulary_names:
                raise InputError(f"vocabulary {name!r} is used by no field")
            ways = {"values": plan.values, "size": plan.size, "bins": plan.bins}
            if len(given := [f'"{way}"' for way, value in ways.items() if value is not None]) > 1:
                raise InputError(f"vocabulary {name!r} has both {' and '.join(given)}")
            if plan.bins is not None and not 2 <= plan.bins < 2**31:
                raise InputError(f'vocabulary {name!r}: "bins" is {plan.bins}, not at least 2')
            if plan.bins is not None and plan.min_count != 1:
                raise InputError(f'vocabulary {name!r}: "min_count" does not go with "bins"')
        self.schemas(dict.fromkeys(self.vocabulary_names, 1))  # names, kinds and the target fit together

    def _check_split(self) -> None:
        split = self.split
        if split.by not in ("time", "order", "random", "leave_one_out", "column"):
            raise InputError(f"split by {split.by!r} is none of time, order, random, leave_one_out, column")
        if split.by == "time" and self.time is None:
            raise InputError('a split by time needs "time"')
        if split.by == "leave_one_out" and (self.time is None or self.user is None):
            raise InputError('a split by leave_one_out needs "user" and "time"')
        if split.by == "column" and split.column is None:
            raise InputError('a split by column needs "column"')

    def _check_answers(self) -> None:
        """What a row is to predict may describe the user's earlier rows, never the row itself."""
        answer, what = (self.label, "label") if self.task == "ctr" else (self.item, "item to find")
        for f in self.fields:
            if f.column == answer:
                raise InputError(
                    f"field {f.name!r} reads the column {answer!r}, the {what}: it would give the answer away"
                )

    @property
    def vocabulary_names(self) -> tuple[str, ...]:
        """Vocabularies in the order of their first use: that of the rows of the embedding matrix."""
        names = [f.vocabulary for f in self.fields] + [h.vocabulary for h in self.history]
        names += [self.item_vocabulary] if self.item_vocabulary else []
        return tuple(dict.fromkeys(names))

    def schemas(self, sizes: dict[str, int]) -> tuple[FeatureSchema, FeatureSchema]:
        """The schema with every stored field, and that of the default view, for vocabularies of these sizes.
        """
        full = FeatureSchema(
            task=self.task,
            max_history=self.max_history if self.history else 0,
            vocabularies=tuple(Vocabulary(name, sizes[name]) for name in self.vocabulary_names),
            fields=tuple(Field(f.name, f.kind, f.vocabulary) for f in self.fields),
            behavior=tuple(BehaviorField(h.name, h.vocabulary) for h in self.history),
            target=self.target,
            item=self.item_vocabulary if self.task == "retrieval" else None,
        )
        return full, full.select([f.name for f in self.fields if f.default])

    def vocabulary(self, name: str) -> VocabularyPlan:
        return self.vocabularies.get(name, VocabularyPlan())

    @property
    def logged(self) -> bool:
        """Whether histories come from the source's log."""
        return any(h.logged for h in self.history)

    def columns_of(self, vocabulary: str) -> tuple[str, ...]:
        """The distinct columns of the rows whose values a vocabulary covers."""
        names = [f.column for f in self.fields if f.vocabulary == vocabulary]
        names += [h.column for h in self.history if h.vocabulary == vocabulary and not h.logged]
        names += [self.item] if self.item and self.item_vocabulary == vocabulary else []
        return tuple(dict.fromkeys(names))
