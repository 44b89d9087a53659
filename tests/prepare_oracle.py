"""``build`` as it would be with everything in memory: a reference that the streaming one must equal byte for byte.

Nothing of ``ameir_fast.data`` is used here but plans, names of files and the random permutation.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ameir_fast.data.files import SPLITS, VERSION, file_name
from ameir_fast.data.order import permutation
from ameir_fast.data.plan import SplitPlan, TablePlan, VocabularyPlan
from ameir_fast.errors import InputError


class Writer:
    def __init__(self, directory: Path):
        self.directory, self.checksums = directory, {}
        (directory / "columns").mkdir(parents=True)
        (directory / "vocabularies").mkdir()

    def column(self, name: str, values: np.ndarray) -> None:
        path = self.directory / "columns" / f"{name}.npy"
        np.save(path, np.ascontiguousarray(values), allow_pickle=False)
        self._hash(f"columns/{name}.npy")

    def json(self, name: str, value) -> None:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        (self.directory / name).write_text(text, encoding="utf-8")
        self._hash(name)

    def _hash(self, name: str) -> None:
        self.checksums[name] = hashlib.sha256((self.directory / name).read_bytes()).hexdigest()


def build(frame: pl.DataFrame, plan: TablePlan, directory: Path, *, kind: str, options: dict, named_split=None,
          dropped: dict | None = None) -> dict:
    writer = Writer(directory)
    rows = _Rows(frame, plan, named_split, dict(dropped or {}))
    encoders = learn(frame, rows.part == 0, plan)
    rows.settle(encoders)
    lengths = _write_columns(writer, rows, encoders)
    schema, default = plan.schemas({name: e.size for name, e in encoders.items()})
    statistics = _statistics(rows, encoders, lengths)
    if plan.task == "ctr":
        for name, (first, last) in rows.splits.items():
            statistics["splits"][name]["unknown_share"] = {
                f.name: float(np.mean(np.load(directory / "columns" / f"field.{file_name(f.name)}.npy")[first:last] == 0))
                for f in plan.fields if f.kind == "categorical" and getattr(plan.vocabularies.get(f.vocabulary), "size", None) is None}
    if plan.split.by == "order" and plan.time is not None:
        earlier = sum(b < a for a, b in itertools.pairwise(frame[plan.time].to_list()))
        statistics |= {"out_of_order": earlier} if earlier else {}
    for name, encoder in encoders.items():
        if (tokens := encoder.values()) is not None:
            writer.json(f"vocabularies/{file_name(name)}.json", tokens)
    writer.json("schema.json", default.to_dict())
    writer.json("statistics.json", statistics)
    about = schema.to_dict()
    checksums = dict(sorted(writer.checksums.items()))
    writer.json(
        "dataset.json",
        {
            "version": VERSION,
            "kind": kind,
            "task": plan.task,
            "rows": rows.count,
            "splits": {name: [int(a), int(b)] for name, (a, b) in rows.splits.items()},
            "all_fields": about["fields"],
            "vocabularies": about["vocabularies"],
            "options": options,
            "checksums": checksums,
        },
    )
    return statistics


class _Rows:
    """The rows of a table in their stored order: by split, then time, then position in the input."""

    def __init__(
        self, frame: pl.DataFrame, plan: TablePlan, named_split: np.ndarray | None, dropped: dict[str, int]
    ):
        self.frame, self.plan, self.dropped = frame, plan, dropped
        if frame.is_empty():
            raise InputError("there are no rows")
        self.time = None if plan.time is None else frame[plan.time].to_numpy()
        self.user = None if plan.user is None else _dense(frame[plan.user])
        self.part = assign(plan.split, self.user, self.time, named_split, frame.height)
        self.events = self.begin = self.end = None
        if plan.history and not plan.history[0].ready:
            self.events, self.begin, self.end = timeline(self.user, self.time)

    def settle(self, encoders: dict[str, Encoder]) -> None:
        """Leaves out rows that cannot serve and fixes the stored order; ``kept`` int64 holds input positions.
        """
        plan, keep = self.plan, np.ones(self.frame.height, bool)
        if plan.history and plan.history[0].ready:
            ends = offsets(self.frame[plan.history[0].column])
            self.begin, self.end = ends[:-1], ends[1:]
        if plan.min_history:
            long_enough = self.end - self.begin >= plan.min_history
            self.drop(keep, long_enough, f"history shorter than {plan.min_history}")
        if plan.task == "retrieval":
            # An item that training never saw cannot be ranked, nor learnt as an answer.
            known = encoders[plan.item_vocabulary].encode(self.frame[plan.item]) > 0
            self.drop(keep, known, "unknown item")
        by = (
            np.lexsort((self.time, self.part))
            if self.time is not None
            else np.argsort(self.part, kind="stable")
        )
        self.kept = by[keep[by]]
        ends = np.searchsorted(self.part[self.kept], np.arange(len(SPLITS) + 1))
        self.splits = dict(zip(SPLITS, zip(ends, ends[1:], strict=False), strict=True))
        for name, (first, last) in self.splits.items():
            if first == last:
                raise InputError(f"the {name} split is empty after leaving out rows: {self.dropped}")

    def drop(self, keep: np.ndarray, good: np.ndarray, reason: str) -> None:
        self.dropped[reason] = int((keep & ~good).sum())
        keep &= good

    @property
    def count(self) -> int:
        return self.kept.shape[0]


def _dense(values: pl.Series) -> np.ndarray:
    """int32 numbers from 0, by first appearance."""
    distinct = values.unique(maintain_order=True)
    return values.replace_strict(
        distinct, pl.Series(range(len(distinct)), dtype=pl.Int32), return_dtype=pl.Int32
    ).to_numpy()


def _write_columns(
    writer: Writer, rows: _Rows, encoders: dict[str, Encoder]
) -> np.ndarray | None:
    """Returns the length of each stored row's whole history."""
    plan, frame, kept = rows.plan, rows.frame, rows.kept
    for f in plan.fields:
        name, encoder = f"field.{file_name(f.name)}", encoders[f.vocabulary]
        if f.kind == "categorical":
            writer.column(name, encoder.encode(frame[f.column])[kept])
        else:
            ids, offsets = encoder.encode_lists(frame[f.column])
            first, last = offsets[:-1][kept], offsets[1:][kept]
            writer.column(f"{name}.ids", ids[ranges(first, last)])
            writer.column(f"{name}.offsets", np.concatenate([[0], np.cumsum(last - first)]).astype(np.int64))
    if plan.task == "ctr":
        writer.column("label", frame[plan.label].cast(pl.Float32).to_numpy()[kept])
    else:
        writer.column("items", encoders[plan.item_vocabulary].encode(frame[plan.item])[kept])
    # Without users every row is somebody of its own.
    writer.column("row_user", np.arange(rows.count, dtype=np.int32) if rows.user is None else rows.user[kept])
    for h in plan.history:
        encoder = encoders[h.vocabulary]
        column = frame[h.column]
        ids = (
            encoder.encode_lists(column, missing=True)[0] if h.ready else encoder.encode(column)[rows.events]
        )
        writer.column(f"events.{file_name(h.name)}", ids)
    if not plan.history:
        return None
    begin, end = rows.begin[kept], rows.end[kept]
    writer.column("history_begin", begin)
    writer.column("history_end", end)
    return end - begin


def _statistics(rows: _Rows, encoders: dict[str, Encoder], lengths: np.ndarray | None) -> dict:
    plan, frame = rows.plan, rows.frame
    label = frame[plan.label].cast(pl.Float64).to_numpy()[rows.kept] if plan.task == "ctr" else None
    item = plan.item or next((f.column for f in plan.fields if f.name in plan.target), None)
    found = {
        "rows": rows.count,
        "label_rate": None if label is None else float(label.mean()),
        "users": None if rows.user is None else int(rows.user.max()) + 1,
        "items": None if item is None else frame[item].drop_nulls().n_unique(),
        "dropped": rows.dropped,
        "vocabularies": {name: e.size for name, e in encoders.items()},
        "history": None if lengths is None else _lengths(lengths, plan.max_history),
        "splits": {},
    }
    users = None if rows.user is None else rows.user[rows.kept]
    time = None if rows.time is None else rows.time[rows.kept]
    first, last = rows.splits["train"]
    known = None if users is None else np.bincount(users[first:last], minlength=int(rows.user.max()) + 1) > 0
    for name, (first, last) in rows.splits.items():
        part = slice(first, last)
        found["splits"][name] = {
            "rows": int(last - first),
            "label_rate": None if label is None else float(label[part].mean()),
            "users": None if users is None else int(np.count_nonzero(np.bincount(users[part]))),
            # Of the rows: how many have a user without a training row.
            "new_user_share": None if users is None else float(1 - known[users[part]].mean()),
            "first_time": None if time is None else time[part].min().item(),
            "last_time": None if time is None else time[part].max().item(),
            "history": None if lengths is None else _lengths(lengths[part], plan.max_history),
        }
    return found


def _lengths(lengths: np.ndarray, limit: int) -> dict:
    """Of the whole histories, and ``mean_used`` of what is left of them at ``limit`` events."""
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "max": int(lengths.max()),
        "mean_used": float(np.minimum(lengths, limit).mean()),
        "empty_share": float((lengths == 0).mean()),
    }


@dataclass(frozen=True)
class Encoder:
    """Values of one vocabulary: ``tokens[i]`` has id ``ids[i]``, everything else (and a missing value) id 0.

    ``tokens`` is ``None`` where columns hold ids already.
    """

    size: int
    tokens: pl.Series | None = None
    ids: pl.Series | None = None

    def encode(self, values: pl.Series) -> np.ndarray:
        """int32, one id for each of ``values``."""
        if self.tokens is None:
            inside = (values >= 0) & (values < self.size)
            known = pl.select(pl.when(inside).then(values.cast(pl.Int64)).otherwise(0)).to_series()
            return known.cast(pl.Int32).to_numpy()
        if self.tokens.is_empty():
            return np.zeros(len(values), np.int32)
        values = _plain(values, self.tokens.dtype)
        return (
            values.replace_strict(self.tokens, self.ids, default=0, return_dtype=pl.Int32)
            .fill_null(0)
            .to_numpy()
        )

    def encode_lists(self, lists: pl.Series, missing: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``ids`` int32 and ``offsets`` int64 [R+1] of lists. Missing elements are left out, or with
        ``missing`` keep their place as id 0.
        """
        if not missing:
            lists = lists.list.drop_nulls()
        return self.encode(flat(lists)), offsets(lists)

    def values(self) -> list | None:
        """Value of every id, ``None`` for id 0 and for ids without one."""
        if self.tokens is None:
            return None
        found: list = [None] * self.size
        for token, i in zip(self.tokens.to_list(), self.ids.to_list(), strict=True):
            found[i] = token
        return found


def learn(frame: pl.DataFrame, training: np.ndarray, plan: TablePlan) -> dict[str, Encoder]:
    """An encoder for each vocabulary of ``plan``. Nothing outside the rows ``training`` (bool [R]) is looked
    at.
    """
    seen = frame.filter(pl.Series(training))
    return {
        name: _learn([seen[c] for c in plan.columns_of(name)], plan.vocabulary(name))
        for name in plan.vocabulary_names
    }


def _learn(columns: list[pl.Series], plan: VocabularyPlan) -> Encoder:
    if plan.size is not None:
        return Encoder(plan.size)
    columns = [flat(c) for c in columns]
    # One type for all columns of a vocabulary: numbers stay numbers where every column has them.
    whole = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
    dtype = pl.Int64 if all(c.dtype in whole for c in columns) else pl.String
    values = pl.concat([_plain(c, dtype).rename("value") for c in columns])
    counts = values.drop_nulls().value_counts(name="count")
    if plan.values is not None:
        listed = pl.Series("value", [str(v) if dtype == pl.String else v for v in plan.values], dtype=dtype)
        kept = pl.DataFrame({"id": np.arange(1, len(listed) + 1, dtype=np.int32), "value": listed}).join(
            counts, on="value", how="semi", maintain_order="left"
        )
        return Encoder(len(listed) + 1, kept["value"], kept["id"])
    # Frequent values first, so that the rows used most lie together; equal counts by value.
    kept = counts.filter(pl.col("count") >= plan.min_count).sort("count", "value", descending=[True, False])
    return Encoder(kept.height + 1, kept["value"], pl.Series(np.arange(1, kept.height + 1, dtype=np.int32)))


def _plain(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """``values`` as ``dtype``; the empty text is a missing value."""
    values = values.cast(dtype)
    return values.set(values == "", None) if dtype == pl.String else values


def is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List)


def flat(column: pl.Series) -> pl.Series:
    """The elements of a column of lists, or the column itself."""
    # An empty list is dropped first: exploded, it would become a missing element.
    return column.filter((column.list.len() > 0).fill_null(False)).explode() if is_list(column) else column


def offsets(lists: pl.Series) -> np.ndarray:
    """int64 [R+1], where the elements of each list begin and end in ``flat``. A missing list is an empty one.
    """
    lengths = lists.list.len().fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)


def boundaries(time: np.ndarray, parts: tuple[float, ...]) -> list[int]:
    """Where the parts of rows ascending in ``time`` end, rows of equal time never being parted.

    A boundary that falls among equal times moves to the nearer end of them, to the earlier one if both are as
    near.
    """
    rows = time.shape[0]
    ends = []
    for share in np.cumsum(parts)[:-1]:
        at = int(round(share * rows))
        if 0 < at < rows and time[at - 1] == time[at]:
            first = int(np.searchsorted(time, time[at], "left"))
            last = int(np.searchsorted(time, time[at], "right"))
            at = first if at - first <= last - at else last
        ends.append(at)
    return [*ends, rows]


def assign(
    plan: SplitPlan, user: np.ndarray | None, time: np.ndarray | None, named: np.ndarray | None, rows: int
) -> np.ndarray:
    """int8 [R]: 0 train, 1 valid, 2 test. ``named``: the same from a column, for ``by="column"``.

    Raises ``InputError`` when a split gets no row.
    """
    part = np.zeros(rows, np.int8)
    if plan.by == "column":
        part = named
    elif plan.by == "leave_one_out":
        # Each user's last row is for test, the one before for validation, where at least one is left to train
        # on.
        events, begin, _ = timeline(user, time)
        begin = begin[events]
        last = np.append(np.flatnonzero(np.diff(begin)), rows - 1) if rows else np.zeros(0, np.int64)
        last = last[last - begin[last] >= 2]
        part[events[last]], part[events[last - 1]] = 2, 1
    else:
        if plan.by == "time":
            sequence = np.argsort(time, kind="stable")
            ends = boundaries(time[sequence], plan.parts)
        else:
            sequence = permutation(rows, "split", plan.seed)
            ends = [int(round(share * rows)) for share in np.cumsum(plan.parts)]
        for i, (first, last) in enumerate(zip(ends, ends[1:], strict=False), start=1):
            part[sequence[first:last]] = i
    for i, name in enumerate(SPLITS):
        if not (part == i).any():
            raise InputError(f"the {name} split is empty: {rows} rows, split by {plan.by}")
    return part


def timeline(user: np.ndarray, time: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Every row's strictly earlier rows of the same user, as a range of one order of all rows.

    Args: ``user`` integers [R]; ``time`` [R], comparable and without NaN.

    Returns: ``events`` int64 [R], the rows grouped by user and ascending in time (equal times in row order),
    and ``begin``, ``end`` int64 [R]: the history of row r is ``events[begin[r]:end[r]]``. It ends before the
    first row of the same user and the same time, so neither the row itself nor anything simultaneous is in
    it.
    """
    rows = user.shape[0]
    events = np.lexsort((time, user))
    place = np.arange(rows)
    user, time = user[events], time[events]
    new_user = np.ones(rows, bool)
    new_user[1:] = user[1:] != user[:-1]
    new_time = new_user.copy()
    new_time[1:] |= time[1:] != time[:-1]
    begin, end = np.empty(rows, np.int64), np.empty(rows, np.int64)
    begin[events] = np.maximum.accumulate(np.where(new_user, place, 0))
    end[events] = np.maximum.accumulate(np.where(new_time, place, 0))
    return events, begin, end


def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """first, first+1, …, last-1 of all ranges, one after another, int64."""
    lengths = last - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)
