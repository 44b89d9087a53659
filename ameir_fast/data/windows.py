"""Windows of item sequences: ``([items], [unix times])`` a line, without users, cut from them so that they overlap."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from . import split
from .blocks import BLOCK, Reading, blocks
from .literal import LiteralError, parse_literal
from .plan import PARTS

#: Windows with so many items in common, one right after another, are taken to be one user's.
RUN = 6


class Windows:
    """Rows ``item`` (Int64, the window's last), ``time`` (Float64, its time) and ``history`` (the items before it).

    The rows are split by time into ``shares``. Windows that share a run of ``RUN`` items form a group, and so do those
    that are linked by others; where a group reaches into several parts, only its rows in the latest part are kept,
    so that no part holds a piece of another's sequences. A shorter window links no others, since a few items in a row
    are many users': it is left out where a later part has a window that holds it whole. (If both are of one user, the
    window that holds the other doesn't end earlier, so nothing else can be in a later part.) Reading takes the items of
    all windows into memory once, to find the runs.

    ``ties``: ``apart`` keeps those items of a history whose times are below the last one's, ``file`` keeps all.
    """

    def __init__(
        self, files: Sequence[Path], ties: str = "apart", size: int = BLOCK, shares: tuple[float, ...] = PARTS
    ):
        self.files, self.ties, self._size, self.shares = tuple(files), ties, size, shares
        self._left_out: dict[str, int] = {}
        self._keep: np.ndarray | None = None
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share / 2 + (0 if self._keep is None else 0.5)

    @property
    def dropped(self) -> dict[str, int]:
        return dict(self._left_out)

    def parts(self) -> np.ndarray:
        """int8, for each row that ``chunks`` gives: 0 train, 1 valid, 2 test. Reads the files once."""
        items: list[list[int]] = []
        last: list[float] = []
        for _, (window, times) in self._windows():
            items.append(window)
            last.append(times[-1])
        if not items:
            raise InputError(f"{self.files[0]}: holds only blank lines")
        part = np.zeros(len(last), np.int8)
        split.by_time(part, self.shares, np.array(last, np.float64))
        keep = part == _latest(items, part)
        self._left_out["overlaps a window of a later part"] = int((~keep).sum())
        self._keep = keep
        return part[keep]

    def chunks(self) -> Iterator[pl.DataFrame]:
        if self._keep is None:
            self.parts()
        rows: dict[str, list] = {"item": [], "time": [], "history": []}
        schema = {"item": pl.Int64, "time": pl.Float64, "history": pl.List(pl.Int64)}
        block, at = None, 0
        for of, (window, times) in self._windows():
            if of is not block and rows["item"]:
                yield pl.DataFrame(rows, schema=schema)
                rows = {name: [] for name in rows}
            block = of
            if at < self._keep.shape[0] and self._keep[at]:
                rows["item"].append(window[-1])
                rows["time"].append(times[-1])
                before = zip(window[:-1], times[:-1], strict=True)
                rows["history"].append([i for i, t in before if self.ties == "file" or t < times[-1]])
            at += 1
        if rows["item"]:
            yield pl.DataFrame(rows, schema=schema)
        if at != self._keep.shape[0]:
            raise InputError(f"{self.files[0]}: changed while it was read")

    def _windows(self) -> Iterator[tuple[int, tuple[list[int], list[float]]]]:
        """Number of the block, and the window."""
        self._reading = Reading(self.files)
        for number, block in enumerate(blocks(self.files, size=self._size, reading=self._reading)):
            for index, line in enumerate(block.data.decode().split("\n")[:-1]):
                if not line.strip():
                    continue
                try:
                    yield number, _window(line)
                except LiteralError as error:
                    block.refuse(index, f"is no window: it {error}")


def _window(line: str) -> tuple[list[int], list[float]]:
    """Items and times of a line; ``LiteralError`` says what is wrong."""
    found = parse_literal(line.rstrip())
    if not (isinstance(found, tuple) and len(found) == 2 and all(isinstance(part, list) for part in found)):
        raise LiteralError("is not of the form ([items], [times])")
    items, times = found
    if len(items) != len(times):
        raise LiteralError(f"has {len(items)} items and {len(times)} times")
    if len(items) < 2:
        raise LiteralError(f"has {len(items)} items; at least 2 are needed, a history and the item to find")
    for item in items:
        if type(item) is not int or not 0 <= item < 2**63:
            raise LiteralError(f"has the item {item!r}, not a number from 0 on")
    for time in times:
        if type(time) not in (int, float) or not abs(time) < 2**53:
            raise LiteralError(f"has the time {time!r}, not a number of seconds")
    for before, after in pairwise(times):
        if after < before:
            raise LiteralError(f"has the time {after!r} after {before!r}: they must ascend")
    return items, times


def _latest(windows: list[list[int]], part: np.ndarray) -> np.ndarray:
    """int8 [W]: the latest part of each window's group, or, of a window shorter than ``RUN``, of those that hold it."""
    lengths = np.array([len(w) for w in windows])
    flat = np.concatenate([np.array(w, np.int64) for w in windows])
    owner = np.repeat(np.arange(len(windows)), lengths)
    latest, group = part.copy(), _groups(_runs(flat, owner, RUN), len(windows))
    np.maximum.at(latest, group, part)
    latest = latest[group]
    # The longest first: what holds a window may be held by another itself.
    for length in sorted({n for n in lengths.tolist() if n < RUN}, reverse=True):
        runs, whole = _runs(flat, owner, length), [f"{k}" for k in range(length)]
        short = runs.filter(pl.col("window").is_in(np.flatnonzero(lengths == length)))
        held = runs.with_columns(latest=latest[runs["window"]]).join(short.select(whole).unique(), on=whole, how="semi")
        found = short.join(held.group_by(whole).agg(pl.col("latest").max()), on=whole)
        latest[found["window"]] = found["latest"]
    return latest


def _runs(flat: np.ndarray, owner: np.ndarray, length: int) -> pl.DataFrame:
    """Every run of ``length`` items that lies within one window: ``"0"``, ``"1"``, … and ``window``."""
    start = np.arange(max(0, flat.shape[0] - length + 1))
    start = start[owner[start] == owner[start + length - 1]]
    return pl.DataFrame({f"{k}": flat[start + k] for k in range(length)} | {"window": owner[start]})


def _groups(runs: pl.DataFrame, windows: int) -> np.ndarray:
    """int64 [W]: for each window the first one of its group."""
    same = runs.with_columns(first=pl.col("window").first().over([c for c in runs.columns if c != "window"]))
    linked = same.filter(pl.col("window") != pl.col("first")).select("window", "first").unique(maintain_order=True)
    parent = np.arange(windows).tolist()

    def top(window: int) -> int:
        while parent[window] != window:
            parent[window] = parent[parent[window]]
            window = parent[window]
        return window

    for window, first in linked.iter_rows():
        a, b = sorted((top(window), top(first)))
        parent[b] = a
    return np.array([top(window) for window in range(windows)], np.int64)
