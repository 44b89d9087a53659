"""Vocabularies: from values to local ids, learnt from the training rows alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import polars as pl

from ..errors import InputError
from .arrays import ArrayFile
from .coding import code
from .encoder import INTEGERS, Encoder, numbers, plain
from .pieces import Pieces
from .plan import TablePlan, VocabularyPlan

#: Counts of so many values are kept apart before equal values are added up.
_APART = 1 << 20



def learn(
    name: str, plan: TablePlan, pieces: Pieces, part: ArrayFile, moved: Callable[[int], None],
    logged: Sequence[pl.DataFrame] = (),
) -> Encoder:
    """The encoder of the vocabulary ``name``. Nothing outside the training rows (0 in ``part``) is looked at,
    unless the plan says ``all_rows``.

    ``moved`` is told the rows of each piece that has been counted. ``logged``: ``value`` and ``count`` of what their
    histories hold besides, where those come from a log.
    """
    vocabulary, columns = plan.vocabulary(name), plan.columns_of(name)
    if vocabulary.size is not None:
        moved(pieces.rows)
        return Encoder(vocabulary.size)
    # One type for all columns of a vocabulary: numbers stay numbers where every column has them.
    dtypes = [*(pieces.values(0, c).dtype for c in columns), *(frame["value"].dtype for frame in logged)]
    dtype = pl.Int64 if all(d in INTEGERS for d in dtypes) else pl.String
    if vocabulary.bins is not None:
        dtype = pl.Float64
    more = (_seen(frame["value"], frame["count"].to_numpy(), dtype) for frame in logged)
    seen = _counts(pieces, columns, None if vocabulary.all_rows else part, dtype, moved)
    counts = _added(itertools.chain(more, seen), dtype)
    if vocabulary.bins is not None:
        return _cut(vocabulary.bins, counts)
    return _listed(vocabulary, counts, dtype) if vocabulary.values is not None else _frequent(vocabulary, counts)


def _counts(
    pieces: Pieces, columns: Sequence[str], part: ArrayFile | None, dtype: pl.DataType, moved: Callable[[int], None]
) -> Iterator[pl.DataFrame]:
    """``value`` and ``count`` of every value in the training rows (all rows without ``part``), piece by piece and
    column by column.
    """
    for piece, (start, stop) in enumerate(pieces.bounds):
        training = np.ones(stop - start, bool) if part is None else part.read(start, stop) == 0
        for name in columns if training.any() else ():
            column = pieces.coded(piece, name)
            of_elements = training if column.lengths is None else np.repeat(training, column.lengths)
            codes = column.codes if of_elements.all() else column.codes[of_elements]
            counts = np.bincount(codes, minlength=len(column.values))
            yield _seen(column.values, counts, dtype)
        moved(stop - start)


def _seen(values: pl.Series, counts: np.ndarray, dtype: pl.DataType) -> pl.DataFrame:
    values = numbers(values) if dtype == pl.Float64 else plain(values, dtype)
    found = pl.DataFrame({"value": values.rename("value"), "count": counts})
    return found.filter((pl.col("count") > 0) & pl.col("value").is_not_null())


def _added(counts: Iterator[pl.DataFrame], dtype: pl.DataType) -> pl.DataFrame:
    """The counts of equal values added up; never many more at a time than there are values."""
    empty = pl.DataFrame(schema={"value": dtype, "count": pl.Int64})
    apart, height, limit = [empty], 0, _APART
    for found in counts:
        apart.append(found)
        height += found.height
        if height > limit:
            apart = [_sums(apart)]
            height = apart[0].height
            limit = max(_APART, 2 * height)
    return _sums(apart)


def _sums(apart: list[pl.DataFrame]) -> pl.DataFrame:
    found = pl.concat(apart)
    coded = code(found["value"])
    counts = np.bincount(coded.codes, found["count"].to_numpy(), len(coded.values))  # exact below 2^53
    return pl.DataFrame({"value": coded.values, "count": counts.astype(np.int64)})


def _listed(plan: VocabularyPlan, counts: pl.DataFrame, dtype: pl.DataType) -> Encoder:
    listed = pl.Series("value", [str(v) if dtype == pl.String else v for v in plan.values], dtype=dtype)
    kept = pl.DataFrame({"id": np.arange(1, len(listed) + 1, dtype=np.int32), "value": listed}).join(
        counts, on="value", how="semi", maintain_order="left"
    )
    return Encoder(len(listed) + 1, kept["value"], kept["id"])


def _frequent(plan: VocabularyPlan, counts: pl.DataFrame) -> Encoder:
    # Frequent values first, so that the rows used most lie together; equal counts by value.
    kept = counts.filter(pl.col("count") >= plan.min_count).sort("count", "value", descending=[True, False])
    if kept.height >= 2**31 - 1:
        raise InputError(f"a vocabulary has {kept.height} values, more than ids of 32 bits can number")
    return Encoder(kept.height + 1, kept["value"], pl.Series(np.arange(1, kept.height + 1, dtype=np.int32)))


def _cut(bins: int, counts: pl.DataFrame) -> Encoder:
    """Ranges of as nearly equal numbers of training values as can be: edge k is the one at position ⌊k·n/bins⌋ of n
    sorted values. Equal values are never parted, so there may be fewer ranges.
    """
    counts = counts.sort("value")
    values, ends = counts["value"].to_numpy(), np.cumsum(counts["count"].to_numpy())
    if not len(values):
        return Encoder(1, edges=values)
    places = np.arange(1, bins, dtype=np.int64) * int(ends[-1]) // bins
    edges = np.unique(values[np.searchsorted(ends, places, "right")])
    edges = edges[edges > values[0]]
    return Encoder(len(edges) + 2, edges=edges)
