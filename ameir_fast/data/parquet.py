"""Parquet files in pieces of bounded size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ..errors import InputError
from .delimited import Rows

#: Rows of a piece.
PIECE = 1 << 18


def parquet_columns(path: Path) -> dict[str, pl.DataType]:
    """Names and types of the columns; ``InputError`` naming a file that is missing or damaged."""
    with _readable(path):
        return dict(pl.read_parquet_schema(path))


def parquet_height(path: Path) -> int:
    """The number of rows; otherwise like ``parquet_columns``."""
    with _readable(path):
        return pl.scan_parquet(path, glob=False).select(pl.len()).collect().item()


def read_parquet(path: Path, columns: Sequence[str]) -> Iterator[Rows]:
    """The named columns, ``PIECE`` rows at a time; errors name rows, from 1. Otherwise like ``parquet_columns``."""
    present = parquet_columns(path)
    for column in columns:
        if column not in present:
            raise InputError(f"{path}: column {column!r} is missing; it has {', '.join(present)}")
    for start in range(0, parquet_height(path), PIECE):
        with _readable(path):
            frame = pl.scan_parquet(path, glob=False).select(columns).slice(start, PIECE).collect()
        yield Rows(path, frame, range(start + 1, start + 1 + frame.height), "row")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except pl.exceptions.PanicException:  # some damaged files; it is no Exception and would pass every handler
        raise InputError(f"{path}: cannot be read (damaged, or of a form that polars doesn't know)") from None
    except (pl.exceptions.PolarsError, OSError) as error:
        lines = str(error).strip().splitlines()
        raise InputError(f"{path}: cannot be read ({lines[0] if lines else type(error).__name__})") from None
