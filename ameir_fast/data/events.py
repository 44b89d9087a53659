"""Histories from a log of their own: its events on disk, grouped by user and ascending in time.

The log is read once. Events go into one file for each of many ranges of users, and every such file, small enough to be
held, is then put in order: an external sort by user and time.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO

import numpy as np
import polars as pl

from ..errors import InputError
from . import files
from .arrays import ArrayFile, blocks
from .coding import code
from .numbering import Numbering
from .pieces import regrouped
from .plan import TablePlan
from .rows import Rows
from .source import Source

#: Ranges of users. Of a log of a billion events one range has some eight million.
PARTS = 128


class EventLog:
    """What is left of a log: ``count`` events, the values of a column as numbers, and how often training has each."""

    def __init__(self, directory: Path, plan: TablePlan):
        self.directory = directory
        self.columns = tuple(dict.fromkeys(h.column for h in plan.history))

    @property
    def count(self) -> int:
        return self.numbers(self.columns[0]).length

    def numbers(self, column: str) -> ArrayFile:
        """int32 [events]: places among ``values`` of the column."""
        return ArrayFile.open(self.directory / f"numbers {self.columns.index(column)}.npy")

    def values(self, column: str) -> pl.Series:
        return self._values(column)["value"]

    def counts(self, column: str) -> pl.DataFrame:
        """``value`` and ``count``: occurrences in events that some training row has in its whole history."""
        return self._values(column)

    def _values(self, column: str) -> pl.DataFrame:
        return pl.read_ipc(self.directory / f"values {self.columns.index(column)}.arrow")


def collect(
    source: Source, plan: TablePlan, rows: Rows, users: Numbering, directory: Path, shown: Path,
    moved: Callable[[int], None],
) -> dict:
    """Writes the files of ``EventLog`` and ``begin.npy`` and ``end.npy`` of the rows' histories into ``directory``.

    A row's history are the events of its user with a strictly smaller time. ``users``: those of the rows. ``moved`` is
    told how many events have been read. Returns ``dropped``, events left out by reason.

    Raises ``InputError`` when no event is left.
    """
    log = EventLog(directory, plan)
    last = _last_training_time(rows, len(users))
    layout = np.dtype([("user", np.int32), ("time", last.dtype), ("values", np.int32, (len(log.columns),))])
    names = [directory / f"part {p}" for p in range(PARTS)]
    numberings: list[Numbering] | None = None
    unknown = kept = 0
    with files.shown_as(shown), ExitStack() as stack:
        parts = [stack.enter_context(open(name, "xb")) for name in names]
        for frame in regrouped(source.events()):
            coded = code(frame[plan.user])
            user = users.find(coded.values)[coded.codes]
            there = user >= 0
            unknown += int(np.count_nonzero(~there))
            events = np.empty(int(np.count_nonzero(there)), layout)
            events["user"], events["time"] = user[there], frame[plan.time].to_numpy()[there]
            if numberings is None:
                numberings = [Numbering(frame[c].head(0)) for c in log.columns]
                counts = [np.zeros(0, np.int64) for _ in log.columns]
            training = events["time"] < last[events["user"]]
            for i, column in enumerate(log.columns):
                coded = code(frame[column])
                numbers = numberings[i].add(coded.values)[coded.codes][there]
                events["values"][:, i] = numbers
                found = np.bincount(numbers[training], minlength=len(numberings[i]))
                found[: len(counts[i])] += counts[i]
                counts[i] = found
            _deal(events, len(users), parts)
            kept += len(events)
            moved(kept)
    dropped = {**getattr(source, "dropped_events", {}), "event of a user without a row": unknown}
    if not kept:
        why = {reason: count for reason, count in dropped.items() if count}
        raise InputError(f"{source.log}: no event is left: {why}")
    for i, numbering in enumerate(numberings):
        numbering.save(directory / f"values {i}.arrow", shown, count=counts[i])
    _sort(log, rows, len(users), names, layout, kept, shown)
    return {"dropped": dropped}


def _last_training_time(rows: Rows, users: int) -> np.ndarray:
    """The time of every user's last training row; what is no later than any time for a user without one."""
    dtype = rows.time.dtype
    last = np.full(users, -np.inf if dtype.kind == "f" else np.iinfo(dtype).min, dtype)
    for block in blocks(rows.time.length):
        where = block.start, block.stop
        training = rows.part.read(*where) == 0
        np.maximum.at(last, rows.user.read(*where)[training], rows.time.read(*where)[training])
    return last


def _deal(events: np.ndarray, users: int, parts: list[BinaryIO]) -> None:
    """Appends every event to the file of its user's range, in the order in which they come."""
    part = events["user"].astype(np.int64) * PARTS // users
    order = np.argsort(part, kind="stable")
    events, ends = events[order], np.searchsorted(part[order], np.arange(PARTS + 1))
    for file, first, end in zip(parts, ends, ends[1:], strict=False):
        if end > first:
            files.write(file, events[first:end].tobytes())


def _sort(
    log: EventLog, rows: Rows, users: int, names: list[Path], layout: np.dtype, count: int, shown: Path
) -> None:
    columns = [
        ArrayFile(log.directory / f"numbers {i}.npy", np.int32, count, shown) for i in range(len(log.columns))
    ]
    begin, end = (
        ArrayFile(log.directory / f"{name}.npy", np.int64, rows.user.length, shown) for name in ("begin", "end")
    )
    row_user, row_time = rows.user.map(), rows.time.map()
    order = np.lexsort((row_time, row_user))  # by user and time
    at = 0
    for p, name in enumerate(names):
        events = np.fromfile(name, layout)
        name.unlink()
        events = events[np.lexsort((events["time"], events["user"]))]
        for i, column in enumerate(columns):
            column.put(slice(at, at + len(events)), np.ascontiguousarray(events["values"][:, i]))
        # The users u of this part have u * PARTS // users == p.
        bounds = [-(-k * users // PARTS) for k in (p, p + 1)]
        mine = order[slice(*np.searchsorted(row_user, bounds, sorter=order))]
        if len(mine):
            user, time = row_user[mine], row_time[mine]
            begin.put(mine, at + np.searchsorted(events["user"], user))
            end.put(mine, at + _earlier(events["user"], events["time"], user, time))
        at += len(events)


def _earlier(event_user: np.ndarray, event_time: np.ndarray, user: np.ndarray, time: np.ndarray) -> np.ndarray:
    """int64: how many events have a smaller (user, time) than each row. Both are ascending in it."""
    both = np.lexsort((
        np.repeat([0, 1], [len(user), len(event_user)]),  # a row comes before the events of its own time
        np.concatenate([time, event_time]),
        np.concatenate([user, event_user]),
    ))
    is_row = both < len(user)
    before = np.cumsum(~is_row)
    found = np.empty(len(user), np.int64)
    found[both[is_row]] = before[is_row]
    return found
