"""Columns of lists."""

from __future__ import annotations

import numpy as np
import polars as pl


def is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List)


def flat(column: pl.Series) -> pl.Series:
    """The elements of a column of lists, or the column itself."""
    # An empty list is dropped first: exploded, it would become a missing element.
    return column.filter((column.list.len() > 0).fill_null(False)).explode() if is_list(column) else column


def offsets(lists: pl.Series) -> np.ndarray:
    """int64 [R+1], where the elements of each list begin and end in ``flat``. A missing list is an empty one."""
    return np.append(0, np.cumsum(lengths(lists), dtype=np.int64))


def lengths(lists: pl.Series) -> np.ndarray:
    """int32 [R]. A missing list is an empty one."""
    return lists.list.len().fill_null(0).cast(pl.Int32).to_numpy()
