"""Vocabularies: from values to local ids, learnt from the training rows alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl

from .plan import TablePlan, VocabularyPlan

#: What fits into 64 bits with a sign; larger ones (hashes, mostly) are taken as text.
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


@dataclass(frozen=True)
class Encoder:
    """Values of one vocabulary: ``tokens[i]`` has id ``ids[i]``, everything else (and a missing value) id 0.

    ``tokens`` is ``None`` where columns hold ids already.
    """

    size: int
    tokens: pl.Series | None = None
    ids: pl.Series | None = None

    def encode(self, values: pl.Series) -> np.ndarray:
        """int32, one id for each of ``values``."""
        if self.tokens is None:
            inside = (values >= 0) & (values < self.size)
            known = pl.select(pl.when(inside).then(values.cast(pl.Int64)).otherwise(0)).to_series()
            return known.cast(pl.Int32).to_numpy()
        if self.tokens.is_empty():
            return np.zeros(len(values), np.int32)
        values = _plain(values, self.tokens.dtype)
        return (
            values.replace_strict(self.tokens, self.ids, default=0, return_dtype=pl.Int32)
            .fill_null(0)
            .to_numpy()
        )

    def encode_lists(self, lists: pl.Series, missing: bool = False) -> tuple[np.ndarray, np.ndarray]:
        """``ids`` int32 and ``offsets`` int64 [R+1] of lists. Missing elements are left out, or with
        ``missing`` keep their place as id 0.
        """
        if not missing:
            lists = lists.list.drop_nulls()
        return self.encode(flat(lists)), offsets(lists)

    def values(self) -> list | None:
        """Value of every id, ``None`` for id 0 and for ids without one."""
        if self.tokens is None:
            return None
        found: list = [None] * self.size
        for token, i in zip(self.tokens.to_list(), self.ids.to_list(), strict=True):
            found[i] = token
        return found


def learn(frame: pl.DataFrame, training: np.ndarray, plan: TablePlan) -> dict[str, Encoder]:
    """An encoder for each vocabulary of ``plan``. Nothing outside the rows ``training`` (bool [R]) is looked
    at.
    """
    seen = frame.filter(pl.Series(training))
    return {
        name: _learn([seen[c] for c in plan.columns_of(name)], plan.vocabulary(name))
        for name in plan.vocabulary_names
    }


def _learn(columns: list[pl.Series], plan: VocabularyPlan) -> Encoder:
    if plan.size is not None:
        return Encoder(plan.size)
    columns = [flat(c) for c in columns]
    # One type for all columns of a vocabulary: numbers stay numbers where every column has them.
    dtype = pl.Int64 if all(c.dtype in _INTEGERS for c in columns) else pl.String
    values = pl.concat([_plain(c, dtype).rename("value") for c in columns])
    counts = values.drop_nulls().value_counts(name="count")
    if plan.values is not None:
        listed = pl.Series("value", [str(v) if dtype == pl.String else v for v in plan.values], dtype=dtype)
        kept = pl.DataFrame({"id": np.arange(1, len(listed) + 1, dtype=np.int32), "value": listed}).join(
            counts, on="value", how="semi", maintain_order="left"
        )
        return Encoder(len(listed) + 1, kept["value"], kept["id"])
    # Frequent values first, so that the rows used most lie together; equal counts by value.
    kept = counts.filter(pl.col("count") >= plan.min_count).sort("count", "value", descending=[True, False])
    return Encoder(kept.height + 1, kept["value"], pl.Series(np.arange(1, kept.height + 1, dtype=np.int32)))


def _plain(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """``values`` as ``dtype``; the empty text is a missing value."""
    values = values.cast(dtype)
    return values.set(values == "", None) if dtype == pl.String else values


def is_list(column: pl.Series) -> bool:
    return isinstance(column.dtype, pl.List)


def flat(column: pl.Series) -> pl.Series:
    """The elements of a column of lists, or the column itself."""
    # An empty list is dropped first: exploded, it would become a missing element.
    return column.filter((column.list.len() > 0).fill_null(False)).explode() if is_list(column) else column


def offsets(lists: pl.Series) -> np.ndarray:
    """int64 [R+1], where the elements of each list begin and end in ``flat``. A missing list is an empty one.
    """
    lengths = lists.list.len().fill_null(0).to_numpy()
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]).astype(np.int64)
