"""The rows of a source on disk, in pieces of bounded size, every column coded.

Counting and encoding then look at each distinct value of a piece once, and at its rows only as small integers.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import polars as pl

from . import files
from .coding import Coded, CodedRows, code

#: A piece has at most that many rows, and hardly more bytes than that before it is coded.
ROWS = 1 << 20
BYTES = 192 << 20


def regrouped(frames: Iterable[pl.DataFrame | CodedRows]) -> Iterator[pl.DataFrame | CodedRows]:
    """The same rows in frames that are neither tiny nor larger than a piece may be; coded ones stay as they are."""
    held: list[pl.DataFrame] = []
    rows = size = 0
    for frame in frames:
        if not frame.height:
            continue
        if isinstance(frame, CodedRows):
            if held:
                yield pl.concat(held)
                held, rows, size = [], 0, 0
            yield frame
            continue
        step = max(1, min(ROWS, BYTES * frame.height // (frame.estimated_size() + 1)))
        for part in frame.iter_slices(step):
            weight = part.estimated_size()
            if held and (rows + part.height > ROWS or size + weight > BYTES):
                yield pl.concat(held)
                held, rows, size = [], 0, 0
            held.append(part)
            rows, size = rows + part.height, size + weight
    if held:
        yield pl.concat(held)


class Pieces:
    """Coded columns ``coded`` and plain columns ``plain`` of all rows; ``bounds`` are the rows of each piece."""

    def __init__(self, directory: Path, coded: Sequence[str], plain: Sequence[str], heights: Sequence[int] = ()):
        self.directory, self.columns, self.plain_names = directory, tuple(coded), tuple(plain)
        ends = np.cumsum([0, *heights]).tolist()
        self.bounds = list(zip(ends, ends[1:], strict=False))
        self.rows: int = ends[-1]

    def __len__(self) -> int:
        return len(self.bounds)

    def add(self, frame: pl.DataFrame | CodedRows, pool: Executor, shown: Path) -> None:
        """Writes one more piece; an error of the disk names ``shown``."""
        if isinstance(frame, CodedRows):
            coded: Iterable[Coded] = [frame.columns[name] for name in self.columns]
            plain = {name: frame.columns[name].rows() for name in self.plain_names}
        else:
            coded = pool.map(code, [frame[name] for name in self.columns])
            plain = {name: frame[name] for name in self.plain_names}
        parts = {}
        for i, column in enumerate(coded):
            parts[f"codes {i}"], parts[f"values {i}"] = pl.Series(column.codes), column.values
            if column.lengths is not None:
                parts[f"lengths {i}"] = pl.Series(column.lengths)
        parts |= {f"plain {i}": plain[name] for i, name in enumerate(self.plain_names)}
        # Columns of different lengths fit into one file as a row of lists.
        packed = io.BytesIO()
        row = pl.DataFrame({name: part.implode() for name, part in parts.items()})
        row.write_ipc(packed, compression="uncompressed")
        with files.shown_as(shown), open(self._path(len(self)), "xb") as file:
            files.write(file, packed.getbuffer())
        self.bounds.append((self.rows, self.rows + frame.height))
        self.rows += frame.height

    def coded(self, piece: int, column: str) -> Coded:
        i = self.columns.index(column)
        path = self._path(piece)
        parts = [f"codes {i}", f"values {i}"]
        if f"lengths {i}" in pl.read_ipc_schema(path):
            parts.append(f"lengths {i}")
        found = pl.read_ipc(path, columns=parts)
        lengths = found[f"lengths {i}"][0].to_numpy() if len(parts) > 2 else None
        return Coded(found[f"codes {i}"][0].to_numpy(), found[f"values {i}"][0], lengths)

    def values(self, piece: int, column: str) -> pl.Series:
        """The distinct values of a column in a piece."""
        name = f"values {self.columns.index(column)}"
        return pl.read_ipc(self._path(piece), columns=[name])[name][0]

    def plain(self, piece: int, column: str) -> np.ndarray:
        name = f"plain {self.plain_names.index(column)}"
        return pl.read_ipc(self._path(piece), columns=[name])[name][0].to_numpy()

    def _path(self, piece: int) -> Path:
        return self.directory / f"{piece:06}.arrow"
