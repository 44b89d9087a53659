"""Tables from csv and parquet files in pieces, with errors that name file, column and line (of parquet the row)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .blocks import Reading, each_once
from .delimited import Rows, read_delimited, read_header
from .parquet import parquet_columns, parquet_height, read_parquet

_PACKED = ("", ".gz", ".zst")
_TABS = tuple(f".tsv{end}" for end in _PACKED)
_TEXT = (*(f".csv{end}" for end in _PACKED), *_TABS, ".txt", ".inter", ".item", ".user")
_PARQUET = (".parquet", ".pq")
_TAB_SEPARATED = (*_TABS, ".inter", ".item", ".user")


@dataclass(frozen=True)
class Table:
    """Some rows of a file, and the number of each one's line (from 1), or of what ``unit`` names."""

    frame: pl.DataFrame
    path: Path
    lines: Sequence[int] | np.ndarray
    unit: str = "line"

    def where(self, row: int) -> str:
        """File and line of the row at position ``row``."""
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def refuse(self, wrong: pl.Series, column: str, what: Callable[[object], str]) -> None:
        """Raises ``InputError`` for the first row where ``wrong`` holds; ``what(value)`` says what its value
        is.
        """
        rows = wrong.fill_null(True).arg_true()
        if len(rows):
            value = self.frame[column][rows[0]]
            raise InputError(f"{self.where(rows[0])}: column {column!r} {what(value)}")

    def number(self, column: str, optional: bool = False) -> pl.Series:
        """A column as Float64; a text that is no number is an error, and unless ``optional`` so is a missing value or
        NaN.
        """
        values = self.frame[column]
        if values.dtype not in (pl.String, pl.Boolean) and not values.dtype.is_numeric():
            raise InputError(f"{self.path}: column {column!r} holds {values.dtype}, not numbers")
        found = values.cast(pl.Float64, strict=False)
        found = found.fill_nan(None)
        there = ~missing(values) if optional else True
        self.refuse(found.is_null() & there, column, lambda v: "is missing" if v is None else f"is {v!r}, not a number")
        return found


def missing(values: pl.Series) -> pl.Series:
    """Null, NaN, and the empty text."""
    wrong = values.is_null()
    if values.dtype == pl.String:
        wrong |= (values == "").fill_null(True)
    return wrong | values.is_nan().fill_null(True) if values.dtype.is_float() else wrong


def data_files(paths: Sequence[str | Path]) -> tuple[Path, ...]:
    """The files named, each once, and for a directory its csv and parquet files in the order of their names."""
    found: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.name.endswith((*_TEXT, *_PARQUET)) and p.is_file())
            if not inside:
                raise InputError(f"{path}: holds no csv or parquet file")
            found += inside
        elif not path.exists():
            raise InputError(f"{path}: no such file or directory")
        else:
            found.append(path)
    if not found:
        raise InputError("no input file")
    return each_once(found)


class TableReader:
    """The named columns of files, one file after another. Columns of text files stay text.

    Raises ``InputError`` for a column that a file lacks, or that has another type there than in the first one.
    """

    def __init__(
        self, paths: Sequence[Path], columns: Sequence[str], separator: str | None = None, optional: str | None = None
    ):
        """``optional``: a column that is left out where the first file lacks it."""
        self.paths, self.columns, self.separator = tuple(paths), list(columns), separator
        if optional is not None and optional not in self._present(self.paths[0]):
            self.columns.remove(optional)
        self.types = self._check(self.paths[0])
        for path in self.paths[1:]:
            for name, kind in self._check(path).items():
                if kind != self.types[name]:
                    raise InputError(
                        f"{path}: column {name!r} holds {kind}, but {self.types[name]} in {self.paths[0]}"
                    )
        self._sizes = [path.stat().st_size for path in self.paths]
        self._at, self._share = 0, 0.0

    @property
    def done(self) -> float:
        """The share of the input that has been read."""
        read = sum(self._sizes[: self._at]) + sum(self._sizes[self._at : self._at + 1]) * self._share
        return read / max(sum(self._sizes), 1)

    def pieces(self) -> Iterator[Table]:
        """All rows, a bounded number at a time."""
        for at, path in enumerate(self.paths):
            self._at, self._share = at, 0.0
            for rows in self._parquet(path) if path.name.endswith(_PARQUET) else self._text(path):
                yield Table(rows.frame.select(self.columns), path, rows.lines, rows.unit)
        self._at = len(self.paths)

    def _text(self, path: Path) -> Iterator[Rows]:
        reading = Reading([path])
        for rows in read_delimited([path], self._separator(path), quoted=True, empty=True, reading=reading):
            self._share = reading.share
            yield rows

    def _parquet(self, path: Path) -> Iterator[Rows]:
        height, done = parquet_height(path), 0
        for rows in read_parquet(path, self.columns):
            done += rows.frame.height
            self._share = done / max(height, 1)
            yield rows

    def _present(self, path: Path) -> dict[str, pl.DataType]:
        if path.name.endswith(_PARQUET):
            return parquet_columns(path)
        if path.name.endswith(_TEXT):
            return dict.fromkeys(read_header(path, self._separator(path), quoted=True), pl.String)
        raise InputError(f"{path}: the name ends in none of {', '.join((*_TEXT, *_PARQUET))}")

    def _check(self, path: Path) -> dict[str, pl.DataType]:
        present = self._present(path)
        for column in self.columns:
            if column not in present:
                raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(present)}")
        return {column: present[column] for column in self.columns}

    def _separator(self, path: Path) -> str:
        return self.separator or ("\t" if path.name.endswith(_TAB_SEPARATED) else ",")
