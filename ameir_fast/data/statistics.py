"""What ``statistics.json`` says of the rows, counted block by block."""

from __future__ import annotations

import numpy as np
import polars as pl

from .arrays import ArrayFile
from .coding import code
from .files import SPLITS
from .pieces import Pieces
from .plan import TablePlan
from .rows import LABEL, Rows


def statistics(
    pieces: Pieces, plan: TablePlan, rows: Rows, places: ArrayFile, users: int | None, about: dict
) -> dict:
    """The content of ``statistics.json``. ``about`` holds ``splits``, ``dropped`` and ``vocabularies`` (sizes)."""
    counts = {name: _Counts(users) for name in SPLITS}
    for piece, (start, stop) in enumerate(pieces.bounds):
        stored, part = places.read(start, stop) >= 0, rows.part.read(start, stop)
        values = {
            "label": pieces.plain(piece, LABEL) if plan.task == "ctr" else None,
            "user": rows.user and rows.user.read(start, stop),
            "time": rows.time and rows.time.read(start, stop),
            "length": rows.end.read(start, stop) - rows.begin.read(start, stop) if plan.history else None,
        }
        for i, name in enumerate(SPLITS):
            mine = stored & (part == i)
            counts[name].add(**{k: None if v is None else v[mine] for k, v in values.items()})
    whole = sum(last - first for first, last in about["splits"].values())
    labels = sum(c.labels for c in counts.values())
    item = plan.item or next((f.column for f in plan.fields if f.name in plan.target), None)
    return {
        "rows": whole,
        "label_rate": _rate(labels, whole) if plan.task == "ctr" else None,
        "users": users,
        "items": None if item is None else _distinct(pieces, item),
        "dropped": about["dropped"],
        "vocabularies": about["vocabularies"],
        "history": _lengths(_total([c.lengths for c in counts.values()]), plan.max_history) if plan.history else None,
        "splits": {
            name: _of_split(c, last - first, counts["train"], plan)
            for (name, c), (first, last) in zip(counts.items(), about["splits"].values(), strict=True)
        },
    }


class _Counts:
    """Sums over the rows of one split."""

    def __init__(self, users: int | None):
        self.labels = 0.0
        self.of_user = None if users is None else np.zeros(users, np.int32)
        self.times: list = []
        self.lengths = np.zeros(0, np.int64)  # how many histories have each length

    def add(self, label, user, time, length) -> None:
        if label is not None:
            self.labels += label.sum(dtype=np.float64)
        if user is not None:
            np.add.at(self.of_user, user, 1)
        if time is not None and len(time):
            self.times = [min([*self.times[:1], time.min()]), max([*self.times[1:], time.max()])]
        if length is not None:
            self.lengths = _total([self.lengths, np.bincount(length)])


def _of_split(counts: _Counts, rows: int, training: _Counts, plan: TablePlan) -> dict:
    users = counts.of_user
    known = None if users is None else int(users[training.of_user > 0].sum(dtype=np.int64))
    first, last = counts.times or (None, None)
    return {
        "rows": rows,
        "label_rate": _rate(counts.labels, rows) if plan.task == "ctr" else None,
        "users": None if users is None else int(np.count_nonzero(users)),
        # Of the rows: how many have a user without a training row.
        "new_user_share": None if users is None or not rows else float(1 - known / rows),
        "first_time": None if first is None else first.item(),
        "last_time": None if last is None else last.item(),
        "history": _lengths(counts.lengths, plan.max_history) if plan.history else None,
    }


def _rate(labels: float, rows: int) -> float | None:
    """``None`` where there is no row, or one without a label."""
    return None if not rows or np.isnan(labels) else float(labels / rows)


def _total(counts: list[np.ndarray]) -> np.ndarray:
    found = np.zeros(max(map(len, counts)), np.int64)
    for each in counts:
        found[: len(each)] += each
    return found


def _lengths(counts: np.ndarray, limit: int) -> dict | None:
    """Of the whole histories, and ``mean_used`` of what is left of them at ``limit`` events; ``counts[n]`` is how
    many have n events.
    """
    rows = int(counts.sum())
    if not rows:
        return None
    length, ends = np.arange(len(counts)), np.cumsum(counts)
    middle = np.searchsorted(ends, [(rows - 1) // 2, rows // 2], "right")
    return {
        "mean": float((length * counts).sum() / rows),
        "median": float(middle.mean()),
        "max": len(counts) - 1,
        "mean_used": float((np.minimum(length, limit) * counts).sum() / rows),
        "empty_share": float(counts[0] / rows),
    }


def _distinct(pieces: Pieces, column: str) -> int:
    """How many values a column has, in all rows."""
    found = None
    for piece in range(len(pieces)):
        values = pieces.values(piece, column).drop_nulls()
        found = values if found is None else code(pl.concat([found, values])).values
    return len(found)
