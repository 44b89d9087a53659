"""What the retrieval data sets share: the plan, the choices, and reviews as events without repeats, k-cored."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .blocks import Block, each_once
from .core import first_of_each, k_core
from .delimited import shown
from .plan import HistoryPlan, SplitPlan, TablePlan, VocabularyPlan
from .source import Source, no_rows_left

MAX_HISTORY = 50
SPLITS = ("leave_one_out", "time")
REPEATS = ("distinct", "first", "all")
TIES = ("apart", "file")


def check_choice(name: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise InputError(f"{name} {value!r} is none of {', '.join(choices)}")


def input_files(paths: str | Path | Sequence[str | Path]) -> tuple[Path, ...]:
    """The files named, each once, and for a directory all files in it in the order of their names (none beginning with a
    dot)."""
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.is_file() and not p.name.startswith("."))
            if not inside:
                raise InputError(f"{path}: holds no file")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or directory")
        else:
            found.append(path)
    if not found:
        raise InputError("no input file")
    return each_once(found)


def retrieval_plan(
    split: SplitPlan, max_history: int, all_items: bool, min_count: int = 1, ready: bool = False
) -> TablePlan:
    """Each event is a row: find its item, given the items of the user's earlier events.

    The columns are ``user``, ``item`` and ``time``, or with ``ready`` ``history``, ``item`` and ``time``. Rows without
    a history are left out, since nothing is known there (their items stay in later histories). With ``all_items``
    the vocabulary holds the items of all rows, not of the training rows alone; an item that these rows hold less than
    ``min_count`` times has no id.
    """
    for name, value in (("max_history", max_history), ("min_count", min_count)):
        if value < 1:
            raise InputError(f"{name} {value} is not at least 1")
    return TablePlan(
        task="retrieval",
        fields=(),
        user=None if ready else "user",
        time="time",
        item="item",
        item_vocabulary="item",
        history=(HistoryPlan("history_item", "history" if ready else "item", "item", ready=ready),),
        max_history=max_history,
        min_history=1,
        vocabularies={"item": VocabularyPlan(min_count, all_rows=all_items)},
        split=split,
    )


def check_review_choices(split: str, core: int, repeats: str, ties: str) -> None:
    """Raises ``InputError`` for choices of ``Reviews`` and of the split that there are not, or that don't fit."""
    check_choice("split", split, SPLITS)
    check_choice("repeats", repeats, REPEATS)
    check_choice("ties", ties, TIES)
    check_core(core)
    if ties == "file" and split == "time":
        raise InputError("ties 'file' would part what is of one time, which a split by time must not: "
                         "use it with leave_one_out")


def check_core(core: int) -> None:
    if core < 0:
        raise InputError(f"core {core} is negative")


class Reviews:
    """The events of ``source`` (columns user, item: text; time: Int64; none missing) that are to be kept.

    ``repeats``: ``distinct`` leaves out an event that comes again with the same user, item and time, ``first`` keeps
    a user's earliest event with an item, ``all`` keeps all. ``core``: then only the k-core is kept (0: everything).
    ``ties``: with ``file`` the time becomes the event's place in the order by time and, for equal times, by line, so
    that no two events are of one time.

    Anything but ``core=0, repeats="all", ties="apart"`` reads the source twice. The first time takes some 80 bytes of
    memory an event (64-bit hashes of user and item, the time, and what counting needs), of which 1 (with ``file`` 9)
    stay. Two of n ids share a hash with a probability below n²/2^65, 10^-5 for twenty million.
    """

    def __init__(self, source: Source, core: int = 0, repeats: str = "distinct", ties: str = "apart"):
        self.source, self.core, self.repeats, self.ties = source, core, repeats, ties
        self.files = source.files
        self._keep: np.ndarray | None = None
        self._place: np.ndarray | None = None
        self._left_out: dict[str, int] = {}
        self._twice = core > 1 or repeats != "all" or ties == "file"

    @property
    def done(self) -> float:
        if not self._twice:
            return self.source.done
        return self.source.done / 2 + (0 if self._keep is None else 0.5)

    @property
    def dropped(self) -> dict[str, int]:
        return {**self.source.dropped, **self._left_out}

    def chunks(self) -> Iterator[pl.DataFrame]:
        if not self._twice:
            empty = True
            for frame in self.source.chunks():
                empty = False
                yield frame
            if empty:
                raise no_rows_left(self, "event")
            return
        if self._keep is None:
            self._decide()
        at = 0
        for frame in self.source.chunks():
            keep = self._keep[at : at + frame.height]
            place = None if self._place is None else self._place[at : at + frame.height]
            at += frame.height
            if at <= self._keep.shape[0] and keep.any():
                if place is not None:
                    frame = frame.with_columns(time=pl.Series(place))
                yield frame if keep.all() else frame.filter(pl.Series(keep))
        if at != self._keep.shape[0]:
            raise InputError(f"{self.files[0]}: changed while it was read")

    def _decide(self) -> None:
        """The first reading: which events are kept, and their places."""
        parts: list[tuple[np.ndarray, ...]] = []
        for frame in self.source.chunks():
            parts.append((frame["user"].hash().to_numpy(), frame["item"].hash().to_numpy(), frame["time"].to_numpy()))
        if not parts:
            raise no_rows_left(self, "event")
        user, item, time = (np.concatenate(column) for column in zip(*parts, strict=True))
        del parts
        keep = np.ones(user.shape[0], bool)
        if self.repeats != "all":
            keep = first_of_each(user, item, time, self.repeats == "first")
            self._left_out["repeated"] = int((~keep).sum())
        if self.core > 1:
            at = np.flatnonzero(keep)
            stays = k_core(_numbered(user[at]), _numbered(item[at]), self.core)
            keep[at[~stays]] = False
            self._left_out[f"user or item with fewer than {self.core} events"] = int((~stays).sum())
        if not keep.any():
            raise no_rows_left(self, "event")
        if self.ties == "file":
            place = np.empty(keep.shape[0], np.int64)
            place[np.argsort(time, kind="stable")] = np.arange(keep.shape[0])
            self._place = place
        self._keep = keep


def _numbered(values: np.ndarray) -> np.ndarray:
    """The same values numbered from 0."""
    return pl.Series(values).rank("dense").to_numpy() - 1


def present(frame: pl.DataFrame, dropped: dict[str, int], unwanted: pl.Series | None, why: str) -> pl.DataFrame:
    """The rows where user, item and time are all there and that are not ``unwanted``; the others are added to
    ``dropped``, each once.
    """
    keep = pl.repeat(True, frame.height, eager=True)
    reasons = [(f"missing {name}", frame[name].is_null()) for name in ("user", "item", "time")]
    for reason, bad in [*reasons, *([] if unwanted is None else [(why, unwanted)])]:
        dropped[reason] = dropped.get(reason, 0) + int((keep & bad).sum())
        keep &= ~bad
    return frame.filter(keep)


def append_texts(block: Block, index: int, review: object, names: dict[str, str], columns: dict[str, list]) -> None:
    """Adds to each of ``columns`` the text of the review's field ``names[column]``, ``None`` where it is missing or
    empty. Raises ``InputError`` for a review (line ``index`` of ``block``) that is no dictionary, or a field that is
    neither text nor number.
    """
    if not isinstance(review, dict):
        block.refuse(index, f"is {shown(review)}, not a review with named fields")
    for column, values in columns.items():
        value = review.get(names[column])
        if value is not None and type(value) not in (str, int, float):
            block.refuse(index, f"has the {names[column]} {shown(value)}, neither a text nor a number")
        text = "" if value is None else str(value)
        if not text.isascii():
            # Python 2 may have written a character beyond U+FFFF as two halves; a half alone stays an escape.
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "backslashreplace")
        values.append(text or None)
