"""One-dimensional ``.npy`` files of known length that need not fit into memory."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import BinaryIO

import numpy as np

from . import files

_ZEROS = 4 << 20


def index_type(count: int) -> np.dtype:
    """int32 where that can number ``count`` things and say -1, otherwise int64."""
    return np.dtype(np.int32 if count < 2**31 else np.int64)


def blocks(length: int, block: int = 1 << 20) -> list[slice]:
    """0..length-1 in slices of bounded size."""
    return [slice(start, min(length, start + block)) for start in range(0, length, block)]


class ArrayFile:
    """A file of ``length`` numbers, filled in any order, read in slices.

    The file is mapped only while something is scattered into it, and slices are copies: pages that stay mapped would
    count as this process's memory, as many as the file has. All blocks of the file are taken from the disk when it is
    made, since a full disk met through a mapping would kill the process. Errors name ``shown``.
    """

    def __init__(self, path: Path, dtype: np.dtype | type, length: int, shown: Path | None = None):
        self.path, self.dtype, self.length = path, np.dtype(dtype), length
        with files.shown_as(shown or path), open(path, "xb") as file:
            header = {"descr": np.lib.format.dtype_to_descr(self.dtype), "fortran_order": False, "shape": (length,)}
            np.lib.format.write_array_header_1_0(_Checked(file), header)
            self._start = file.tell()
            _allocate(file, self._start, length * self.dtype.itemsize)

    @classmethod
    def open(cls, path: Path) -> ArrayFile:
        """A file that was made before."""
        self = cls.__new__(cls)
        with open(path, "rb") as file:
            np.lib.format.read_magic(file)
            (length,), _, dtype = np.lib.format.read_array_header_1_0(file)
            self.path, self.dtype, self.length, self._start = path, dtype, length, file.tell()
        return self

    def read(self, start: int, stop: int) -> np.ndarray:
        """A copy of the numbers ``start`` to ``stop``."""
        return np.fromfile(self.path, self.dtype, stop - start, offset=self._start + start * self.dtype.itemsize)

    def map(self, writable: bool = False) -> np.ndarray:
        """The whole file in place, for work that jumps about in it."""
        if not self.length:  # which cannot be mapped
            return np.zeros(0, self.dtype)
        return np.memmap(self.path, self.dtype, "r+" if writable else "r", self._start, (self.length,))

    def put(self, places: np.ndarray | slice, values: np.ndarray) -> None:
        """``self[places] = values``."""
        if len(values):
            self.map(writable=True)[places] = values

    def add_up(self) -> None:
        """Replaces every number by the sum of all up to it."""
        before = 0
        for block in blocks(self.length):
            sums = before + np.cumsum(self.read(block.start, block.stop))
            self.put(block, sums)
            before = sums[-1]


class _Checked:
    """A file whose writes go through ``files.write``, like everything that is written."""

    def __init__(self, file: BinaryIO):
        self.file = file

    def write(self, data: bytes) -> int:
        files.write(self.file, data)
        return len(data)


def _allocate(file: BinaryIO, start: int, size: int) -> None:
    if size and hasattr(os, "posix_fallocate"):
        file.flush()
        try:
            os.posix_fallocate(file.fileno(), start, size)
            return
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):
                raise
    for at in range(0, size, _ZEROS):
        files.write(file, bytes(min(_ZEROS, size - at)))
