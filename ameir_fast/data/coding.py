"""Columns as their distinct values and small integers: everything that counts or encodes goes through here."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import polars as pl

from ..distinct import distinct
from . import lists

_CODES = (np.uint8, np.uint16, np.uint32)


@dataclass(frozen=True)
class Coded:
    """A column of some rows: element e has the value ``values[codes[e]]``.

    ``values`` are distinct and in order of first appearance, a missing value among them. ``lengths`` int32 [rows] of
    a column of lists, whose elements lie one after another; a missing list is an empty one.
    """

    codes: np.ndarray
    values: pl.Series
    lengths: np.ndarray | None = None

    def mapped(self, values: pl.Series) -> Coded:
        """The same elements with other values, one for each of ``values``; some may have become equal."""
        again = code(values)
        if len(again.values) == len(values):
            return replace(self, values=values)
        return replace(self, codes=again.codes[self.codes], values=again.values)

    def rows(self) -> pl.Series:
        """The values row by row, of a column that has no lists."""
        return self.values.gather(pl.Series(self.codes))

    def without_missing(self) -> Coded:
        """The same lists without their missing elements."""
        missing = self.values.is_null().arg_true()
        if not len(missing):
            return self
        there = self.codes != missing[0]
        before = np.append(0, np.cumsum(there))
        ends = np.cumsum(self.lengths, dtype=np.int64)
        lengths = (before[ends] - before[ends - self.lengths]).astype(np.int32)
        return Coded(self.codes[there], self.values, lengths)


@dataclass(frozen=True)
class CodedRows:
    """Some rows by their coded columns."""

    columns: dict[str, Coded]
    height: int


def code(column: pl.Series) -> Coded:
    """Tells the distinct values of a column, or of the elements of its lists, apart."""
    lengths = lists.lengths(column) if lists.is_list(column) else None
    column = lists.flat(column)
    if column.dtype in (pl.Categorical, pl.Enum):
        column = column.cast(pl.String)
    codes, values = _by_key(column) or _by_value(column)
    dtype = next(t for t in _CODES if len(values) <= 1 << 8 * np.dtype(t).itemsize)
    return Coded(codes.astype(dtype, copy=False), values, lengths)


def _by_key(column: pl.Series) -> tuple[np.ndarray, pl.Series] | None:
    """uint32 codes and values, or ``None`` where 64 bits don't tell the values apart."""
    physical = column.to_physical()
    missing = column.is_null().to_numpy() if column.null_count() else None
    text = physical.dtype == pl.String
    if text:
        keys = physical.hash().to_numpy()
    elif physical.dtype in (pl.Int128, pl.UInt128) or not (physical.dtype.is_numeric() or physical.dtype == pl.Boolean):
        return None
    else:
        whole = pl.UInt64 if physical.dtype == pl.UInt64 else pl.Float64 if physical.dtype.is_float() else pl.Int64
        keys = physical.cast(whole).fill_null(0).to_numpy().view(np.uint64)
    codes, first = distinct(np.ascontiguousarray(keys), missing)
    values = column.gather(pl.Series(first))
    # Two texts may have one hash.
    if text and not values.gather(pl.Series(codes)).eq_missing(column).all():
        return None
    return codes, values


def _by_value(column: pl.Series) -> tuple[np.ndarray, pl.Series]:
    values = column.unique(maintain_order=True)
    numbers = pl.Series(np.arange(len(values), dtype=np.uint32))
    if not len(values):
        return numbers.to_numpy(), values
    return column.replace_strict(values, numbers, return_dtype=pl.UInt32).to_numpy(), values
