"""Sources: rows to prepare, in chunks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import polars as pl

from ..errors import InputError
from .coding import CodedRows

_KNOWN = "\0known"


class Source(Protocol):
    """What a reader hands to ``build``.

    Where the plan's histories are ``logged``, it also has ``events()``, frames like those of ``chunks()`` with the
    columns of user, time and histories, ``log``, the file that they come from, and may have ``dropped_events``,
    complete once they are exhausted. Where rows are joined with what is known of users or items it has
    ``without_attributes``, like ``dropped`` (see ``with_attributes``); these rows are not left out.

    Attributes:
        files: what is read, in order.
        dropped: reason → rows left out; complete once ``chunks`` is exhausted.
        done: the share of the input that has been read, 0 to 1.
    """

    files: tuple[Path, ...]
    dropped: dict[str, int]

    @property
    def done(self) -> float: ...

    def chunks(self) -> Iterator[pl.DataFrame | CodedRows]:
        """Frames with the same columns and types, rows in the order of the input; each call begins anew.

        Rows that are coded already make pieces as they are, so there should be many of them at a time.

        Raises ``InputError`` that names file and line for what cannot be read.
        """
        ...


def with_attributes(
    frame: pl.DataFrame, attributes: pl.DataFrame, key: str, without: dict[str, int], what: str
) -> pl.DataFrame:
    """``frame`` and the columns of ``attributes``, one row there for each value of ``key``, null for a value that it
    has not; such rows of ``frame`` are added to ``without[what]``.
    """
    joined = frame.join(attributes.with_columns(pl.lit(True).alias(_KNOWN)), on=key, how="left", maintain_order="left")
    without[what] = without.get(what, 0) + joined[_KNOWN].null_count()
    return joined.drop(_KNOWN)


def named(source: Source) -> str:
    """The beginning of an error that concerns all of a source: its first file."""
    return f"{source.files[0]}{' and others' if len(source.files) > 1 else ''}: " if source.files else ""


def left_out(dropped: dict[str, int]) -> str:
    """The end of an error for which it matters what was left out before, by reason; nothing where nothing was."""
    return f"; left out before: {found}" if (found := {why: count for why, count in dropped.items() if count}) else ""


def no_rows_left(source: Source, what: str = "row") -> InputError:
    """The error for a source without rows: names its first file and how many rows were left out, by reason."""
    dropped = {reason: count for reason, count in source.dropped.items() if count}
    return InputError(named(source) + (f"no {what} is left: {dropped}" if dropped else f"there are no {what}s"))


class FrameSource:
    """One frame that is in memory already."""

    def __init__(self, frame: pl.DataFrame, files: tuple[Path, ...] = (), dropped: dict[str, int] | None = None):
        self.frame, self.files, self.dropped, self.done = frame, files, dict(dropped or {}), 1.0

    def chunks(self) -> Iterator[pl.DataFrame]:
        yield self.frame
