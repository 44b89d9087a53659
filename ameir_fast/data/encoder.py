"""From values to local ids, by a vocabulary that is known."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from . import files
from .coding import Coded, code

#: What fits into 64 bits with a sign; larger ones (hashes, mostly) are taken as text.
INTEGERS = (pl.Int8, pl.Int16, pl.Int32, pl.Int64, pl.UInt8, pl.UInt16, pl.UInt32)


@dataclass(frozen=True)
class Encoder:
    """Values of one vocabulary: ``tokens[i]`` has id ``ids[i]``, everything else (and a missing value) id 0.

    Numbers cut into ranges have ``edges`` float64, ascending, instead: id 1 lies below the first one, id i from edge
    i-1 (of 1, 2, …) on. Where columns hold ids already there is neither.
    """

    size: int
    tokens: pl.Series | None = None
    ids: pl.Series | None = None
    edges: np.ndarray | None = None

    def encode(self, values: pl.Series) -> np.ndarray:
        """int32, one id for each of ``values``."""
        if self.edges is not None:
            return self._ranges(values)
        if self.tokens is None:
            inside = (values >= 0) & (values < self.size)
            known = pl.select(pl.when(inside).then(values.cast(pl.Int64)).otherwise(0)).to_series()
            return known.cast(pl.Int32).to_numpy()
        dtype = self.tokens.dtype if values.dtype in INTEGERS else pl.String
        # The tokens are distinct, so they are the first codes; whatever has a later one is none of them.
        both = [self.tokens.cast(dtype).rename(""), plain(values, dtype).rename("")]
        codes = code(pl.concat(both)).codes
        ids = np.zeros(len(codes) + 1, np.int32)
        ids[: len(self.tokens)] = self.ids.to_numpy()
        return np.take(ids, codes[len(self.tokens) :])

    def _ranges(self, values: pl.Series) -> np.ndarray:
        if self.size == 1:  # training rows had no number
            return np.zeros(len(values), np.int32)
        found = numbers(values)
        ids = np.searchsorted(self.edges, found.fill_null(0).to_numpy(), "right").astype(np.int32) + 1
        return np.where(found.is_null().to_numpy(), np.int32(0), ids)

    def apply(self, column: Coded) -> np.ndarray:
        """int32, one id for each element of a column."""
        return np.take(self.encode(column.values), column.codes)

    def save(self, path: Path, shown: Path) -> None:
        """Writes what ``load`` reads; an error of the disk names ``shown``."""
        columns = {"token": self.tokens, "id": self.ids, "edge": self.edges}
        packed = io.BytesIO()
        pl.DataFrame({k: v for k, v in columns.items() if v is not None}).write_ipc(packed, compression="uncompressed")
        with files.shown_as(shown), open(path, "xb") as file:
            files.write(file, packed.getbuffer())

    @classmethod
    def load(cls, path: Path, size: int) -> Encoder:
        found = pl.read_ipc(path)
        if "edge" in found.columns:
            return cls(size, edges=found["edge"].to_numpy())
        return cls(size, found["token"], found["id"]) if found.width else cls(size)

    def to_json(self) -> list | dict | None:
        """What is stored of a vocabulary: the value of every id, ``None`` for id 0 and for ids without one; or
        ``{"edges": […]}``; nothing where columns hold ids already.
        """
        if self.edges is not None:
            return {"edges": self.edges.tolist()}
        if self.tokens is None:
            return None
        found: list = [None] * self.size
        for token, i in zip(self.tokens.to_list(), self.ids.to_list(), strict=True):
            found[i] = token
        return found

    @classmethod
    def from_json(cls, stored: list | dict | None, size: int) -> Encoder:
        """The encoder of a vocabulary of ``size`` ids that ``to_json`` wrote."""
        if stored is None:
            return cls(size)
        if isinstance(stored, dict):
            return cls(size, edges=np.array(stored["edges"], np.float64))
        dtype = pl.Int64 if all(isinstance(v, int) for v in stored if v is not None) else pl.String
        found = pl.DataFrame({"token": pl.Series(stored, dtype=dtype), "id": np.arange(len(stored), dtype=np.int32)})
        found = found.drop_nulls()
        return cls(size, found["token"], found["id"])


def plain(values: pl.Series, dtype: pl.DataType) -> pl.Series:
    """``values`` as ``dtype``; the empty text is a missing value."""
    values = values.cast(dtype)
    return values.set(values == "", None) if dtype == pl.String else values


def numbers(values: pl.Series) -> pl.Series:
    """``values`` as Float64; what is empty, infinite or not a number is missing.

    Raises ``InputError`` for a text that is no number.
    """
    texts = plain(values, pl.String) if not values.dtype.is_numeric() else values
    found = texts.cast(pl.Float64, strict=False)
    if len(wrong := (found.is_null() & texts.is_not_null()).arg_true()):
        raise InputError(f"{texts[wrong[0]]!r} in a column to be cut into ranges is not a number")
    return found.set(~found.is_finite(), None)


def names(stored: list | dict) -> list:
    """What to call each id of a vocabulary that ``to_json`` wrote: its value, or its range."""
    if isinstance(stored, list):
        return stored
    edges = [repr(edge).removesuffix(".0") for edge in stored["edges"]]
    inner = [f"[{low}, {high})" for low, high in zip(edges, edges[1:], strict=False)]
    return [None, f"[-inf, {edges[0]})", *inner, f"[{edges[-1]}, inf)"] if edges else [None, "[-inf, inf)"]
