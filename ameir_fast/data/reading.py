"""Tables from csv and parquet files, with errors that name file, column and row."""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path

import polars as pl

from ..errors import InputError

_TEXT = (".csv", ".tsv", ".txt", ".inter", ".item", ".user", ".csv.gz", ".tsv.gz")
_PARQUET = (".parquet", ".pq")
_TABS = (".tsv", ".tsv.gz", ".inter", ".item", ".user")


@dataclass(frozen=True)
class Table:
    """Rows of one or several files; ``heights`` says how many of each."""

    frame: pl.DataFrame
    files: tuple[Path, ...]
    heights: tuple[int, ...]

    def where(self, row: int) -> str:
        """File and row (from 1, a header not counted) of the row at position ``row``."""
        ends = list(accumulate(self.heights))
        k = bisect_right(ends, row)
        return f"{self.files[k]}: row {row - (ends[k] - self.heights[k]) + 1}"

    def refuse(self, wrong: pl.Series, column: str, what) -> None:
        """Raises ``InputError`` for the first row where ``wrong`` holds; ``what(value)`` says what its value
        is.
        """
        rows = wrong.fill_null(True).arg_true()
        if len(rows):
            value = self.frame[column][rows[0]]
            raise InputError(f"{self.where(rows[0])}: column {column!r} {what(value)}")

    def number(self, column: str) -> pl.Series:
        """A column as Float64; a missing value, NaN or a text that is no number is an error."""
        values = self.frame[column]
        if values.dtype not in (pl.String, pl.Boolean) and not values.dtype.is_numeric():
            raise InputError(f"{self.files[0]}: column {column!r} holds {values.dtype}, not numbers")
        found = values.cast(pl.Float64, strict=False)
        self.refuse(found.is_null() | found.is_nan(), column, lambda v: f"is {_shown(v)}, not a number")
        return found


def _shown(value: object) -> str:
    return "missing" if value is None else repr(value)


def data_files(paths: Sequence[str | Path]) -> list[Path]:
    """The files named, and for a directory its csv and parquet files in the order of their names."""
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
    return found


def read_tables(
    paths: Sequence[Path], columns: Sequence[str], separator: str | None = None, quotes: bool = True
) -> Table:
    """The named columns of files with the same columns, one after another. Columns of text files stay text.
    """
    frames = [_read(Path(p), Path(p), columns, separator, quotes) for p in paths]
    for path, frame in zip(paths, frames, strict=True):
        for name in columns:
            if frame[name].dtype != frames[0][name].dtype:
                raise InputError(
                    f"{path}: column {name!r} holds {frame[name].dtype}, but {frames[0][name].dtype} in "
                    f"{paths[0]}"
                )
    return Table(pl.concat(frames), tuple(paths), tuple(f.height for f in frames))


def read_text(shown: Path, columns: Sequence[str], content: bytes | None = None) -> Table:
    """A tab-separated file without quotes (RecBole's form), or such ``content`` that came from ``shown``."""
    frame = _read(shown, shown if content is None else io.BytesIO(content), columns, "\t", False)
    return Table(frame, (shown,), (frame.height,))


def _read(
    shown: Path, source: Path | io.BytesIO, columns: Sequence[str], separator: str | None, quotes: bool
) -> pl.DataFrame:
    columns = list(columns)
    name = shown.name
    try:
        if name.endswith(_PARQUET):
            present = list(pl.read_parquet_schema(source))
            _need(shown, columns, present)
            return pl.read_parquet(source, columns=columns, glob=False).select(columns)
        if not name.endswith(_TEXT):
            raise InputError(f"{shown}: the name ends in none of {', '.join((*_TEXT, *_PARQUET))}")
        options = {
            "separator": separator or ("\t" if name.endswith(_TABS) else ","),
            "infer_schema": False,
            "quote_char": '"' if quotes else None,
        }
        if isinstance(source, Path):
            options["glob"] = False
        present = pl.read_csv(source, n_rows=0, **options).columns
        _need(shown, columns, present)
        if isinstance(source, io.BytesIO):
            source.seek(0)
        return pl.read_csv(source, columns=columns, **options).select(columns)
    except (pl.exceptions.PolarsError, OSError, EOFError, UnicodeDecodeError) as error:
        lines = str(error).strip().splitlines()
        raise InputError(f"{shown}: cannot be read ({lines[0] if lines else type(error).__name__})") from None


def _need(shown: Path, columns: Sequence[str], present: Sequence[str]) -> None:
    for column in columns:
        if column not in present:
            raise InputError(f"{shown}: column {column!r} is missing; it has {', '.join(map(str, present))}")
