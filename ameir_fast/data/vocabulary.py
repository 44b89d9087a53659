"""Vocabularies: from values to local ids, learnt from the training rows alone."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from . import files
from .arrays import ArrayFile
from .coding import Coded, code
from .pieces import Pieces
from .plan import TablePlan, VocabularyPlan

#: What fits into 64 bits with a sign; larger ones (hashes, mostly) are taken as text.
_INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)
#: Counts of so many values are kept apart before equal values are added up.
_APART = 1 << 20


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
        # The tokens are distinct, so they are the first codes; whatever has a later one is none of them.
        codes = code(pl.concat([self.tokens.rename(""), _plain(values, self.tokens.dtype).rename("")])).codes
        ids = np.zeros(len(codes) + 1, np.int32)
        ids[: len(self.tokens)] = self.ids.to_numpy()
        return np.take(ids, codes[len(self.tokens) :])

    def apply(self, column: Coded) -> np.ndarray:
        """int32, one id for each element of a column."""
        return np.take(self.encode(column.values), column.codes)

    def save(self, path: Path, shown: Path) -> None:
        """Writes what ``load`` reads; an error of the disk names ``shown``."""
        packed = io.BytesIO()
        if self.tokens is not None:
            pl.DataFrame({"token": self.tokens, "id": self.ids}).write_ipc(packed, compression="uncompressed")
        with files.shown_as(shown), open(path, "xb") as file:
            files.write(file, packed.getbuffer())

    @classmethod
    def load(cls, path: Path, size: int) -> Encoder:
        if not path.stat().st_size:
            return cls(size)
        found = pl.read_ipc(path)
        return cls(size, found["token"], found["id"])

    def values(self) -> list | None:
        """Value of every id, ``None`` for id 0 and for ids without one."""
        if self.tokens is None:
            return None
        found: list = [None] * self.size
        for token, i in zip(self.tokens.to_list(), self.ids.to_list(), strict=True):
            found[i] = token
        return found


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
    dtype = pl.Int64 if all(d in _INTEGERS for d in dtypes) else pl.String
    more = (_seen(frame["value"], frame["count"].to_numpy(), dtype) for frame in logged)
    seen = _counts(pieces, columns, None if vocabulary.all_rows else part, dtype, moved)
    counts = _added(itertools.chain(more, seen), dtype)
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
    found = pl.DataFrame({"value": _plain(values, dtype).rename("value"), "count": counts})
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


def _plain(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """``values`` as ``dtype``; the empty text is a missing value."""
    values = values.cast(dtype)
    return values.set(values == "", None) if dtype == pl.String else values
