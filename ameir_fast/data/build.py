"""From a checked table to a prepared directory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ..atomic import check_output_dir, new_dir
from ..errors import InputError
from . import order, split, vocabulary
from .files import SPLITS, VERSION, DirectoryWriter, file_name
from .plan import TablePlan
from .source import Source

Progress = Callable[[str], None]


def build(
    source: Source,
    plan: TablePlan,
    output: str | Path,
    *,
    kind: str,
    options: dict,
    named_split: np.ndarray | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Writes the prepared directory ``output`` and returns its statistics.

    ``source``'s chunks have the columns that ``plan`` names, checked: a label of 0 and 1, a time without gaps, lists
    where the plan wants lists. Its row order breaks ties between equal times. ``options`` goes into ``dataset.json``. The directory appears whole or
    not at all.

    Raises ``InputError`` when the output is in use or a split has no rows, ``OSError`` when the disk is full.
    """
    say = on_progress or (lambda text: None)
    output = Path(output)
    check_output_dir(output, overwrite)
    frame = pl.concat(source.chunks())
    with new_dir(output, overwrite) as directory:
        writer = DirectoryWriter(directory, output)
        rows = _Rows(frame, plan, named_split, dict(source.dropped))
        say(f"{frame.height} rows; learning vocabularies from {int((rows.part == 0).sum())} training rows")
        encoders = vocabulary.learn(frame, rows.part == 0, plan)
        rows.settle(encoders)
        say("writing columns")
        lengths = _write_columns(writer, rows, encoders)
        schema, default = plan.schemas({name: e.size for name, e in encoders.items()})
        statistics = _statistics(rows, encoders, lengths)
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
        self.part = split.assign(plan.split, self.user, self.time, named_split, frame.height)
        self.events = self.begin = self.end = None
        if plan.history and not plan.history[0].ready:
            self.events, self.begin, self.end = order.timeline(self.user, self.time)

    def settle(self, encoders: dict[str, vocabulary.Encoder]) -> None:
        """Leaves out rows that cannot serve and fixes the stored order; ``kept`` int64 holds input positions.
        """
        plan, keep = self.plan, np.ones(self.frame.height, bool)
        if plan.history and plan.history[0].ready:
            ends = vocabulary.offsets(self.frame[plan.history[0].column])
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
    writer: DirectoryWriter, rows: _Rows, encoders: dict[str, vocabulary.Encoder]
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
            writer.column(f"{name}.ids", ids[order.ranges(first, last)])
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


def _statistics(rows: _Rows, encoders: dict[str, vocabulary.Encoder], lengths: np.ndarray | None) -> dict:
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
