"""Sources: rows to prepare, in chunks of bounded size."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import polars as pl

from .coding import CodedRows


class Source(Protocol):
    """What a reader hands to ``build``.

    Where the plan's histories are ``logged``, it also has ``events()``, frames like those of ``chunks()`` with the
    columns of user, time and histories, and may have ``dropped_events``, complete once they are exhausted.

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


class FrameSource:
    """One frame that is in memory already."""

    def __init__(self, frame: pl.DataFrame, files: tuple[Path, ...] = (), dropped: dict[str, int] | None = None):
        self.frame, self.files, self.dropped, self.done = frame, files, dict(dropped or {}), 1.0

    def chunks(self) -> Iterator[pl.DataFrame]:
        yield self.frame
