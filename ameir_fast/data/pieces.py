"""The rows of a source on disk, in pieces of bounded size, every column coded.

Counting and encoding then look at each distinct value of a piece once, and at its rows only as small integers.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from ..schema import read_json
from . import files
from .coding import Coded, CodedRows, code

#: How pieces lie on the disk, and what is noted of their reading; work of another layout begins anew.
LAYOUT = 3
#: A piece made of frames has at most that many rows, and hardly more bytes than that before it is coded.
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
    """Coded columns ``coded`` and plain columns ``plain`` of all rows; ``bounds`` are the rows of each piece.

    A piece is a file of arrays, one after another, and another one (JSON) that says where each of them lies.
    """

    def __init__(self, directory: Path, coded: Sequence[str], plain: Sequence[str], heights: Sequence[int] = ()):
        self.directory, self.columns, self.plain_names = directory, tuple(coded), tuple(plain)
        ends = np.cumsum([0, *heights]).tolist()
        self.bounds = list(zip(ends, ends[1:], strict=False))
        self.rows: int = ends[-1]
        self._index = functools.lru_cache(maxsize=64)(lambda piece: read_json(self._path(piece, "json")))

    def __len__(self) -> int:
        return len(self.bounds)

    def add(self, frame: pl.DataFrame | CodedRows, pool: Executor, shown: Path) -> None:
        """Writes one more piece; an error of the disk names ``shown``."""
        if isinstance(frame, CodedRows):
            coded: Iterable[Coded] = [frame.columns[name] for name in self.columns]
            plain = [frame.columns[name].rows() for name in self.plain_names]
        else:
            coded = pool.map(code, [frame[name] for name in self.columns])
            plain = [frame[name] for name in self.plain_names]
        piece, index = len(self), {}
        with files.shown_as(shown), open(self._path(piece, "bin"), "xb") as file:

            def put(name: str, values: np.ndarray | pl.Series) -> None:
                start = file.tell()
                if isinstance(values, np.ndarray):
                    files.write(file, memoryview(np.ascontiguousarray(values)).cast("B") if len(values) else b"")
                    index[name] = [start, len(values), values.dtype.str]
                else:
                    packed = io.BytesIO()
                    pl.DataFrame({"": values}).write_ipc_stream(packed, compression="uncompressed")
                    files.write(file, packed.getbuffer())
                    index[name] = [start, packed.tell(), None]

            for i, column in enumerate(coded):
                put(f"codes {i}", column.codes)
                put(f"values {i}", column.values)
                if column.lengths is not None:
                    put(f"lengths {i}", column.lengths)
            for i, values in enumerate(plain):
                put(f"plain {i}", values)
        with files.shown_as(shown), open(self._path(piece, "json"), "xb") as file:
            files.write(file, json.dumps(index).encode())
        self.bounds.append((self.rows, self.rows + frame.height))
        self.rows += frame.height

    def coded(self, piece: int, column: str) -> Coded:
        i = self.columns.index(column)
        lengths = self._get(piece, f"lengths {i}") if f"lengths {i}" in self._index(piece) else None
        return Coded(self._get(piece, f"codes {i}"), self._get(piece, f"values {i}"), lengths)

    def values(self, piece: int, column: str) -> pl.Series:
        """The distinct values of a column in a piece."""
        return self._get(piece, f"values {self.columns.index(column)}")

    def plain(self, piece: int, column: str) -> np.ndarray:
        return self._get(piece, f"plain {self.plain_names.index(column)}").to_numpy()

    def _get(self, piece: int, name: str) -> np.ndarray | pl.Series:
        start, length, dtype = self._index(piece)[name]
        path = self._path(piece, "bin")
        found = np.fromfile(path, dtype or np.uint8, length, offset=start)
        if len(found) != length:
            raise InputError(f"{path}: is cut off; remove {self.directory.parent} and prepare again")
        return found if dtype is not None else pl.read_ipc_stream(io.BytesIO(found)).to_series()

    def _path(self, piece: int, kind: str) -> Path:
        return self.directory / f"{piece:06}.{kind}"
