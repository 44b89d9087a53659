"""Files of a prepared directory: one ``.npy`` file a column, written with its checksum, read in place.

The format is described in docs/data.md. Everything this package writes into a prepared directory goes through
:func:`write` or the mappings of ``arrays.ArrayFile``, everything it reads through :func:`read_column` or
:func:`checked`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote

import numpy as np

from ..errors import InputError

#: Of the directory format. Another version is refused.
VERSION = 1
SPLITS = ("train", "valid", "test")
_LONGEST_NAME = 100


def file_name(name: str) -> str:
    """``name`` as a part of a file name: distinct names stay distinct, and no name leaves its directory."""
    if len(name.encode()) > _LONGEST_NAME:
        raise InputError(f"name {name[:20] + '…'!r} has more than {_LONGEST_NAME} bytes")
    return quote(name, safe="").replace(".", "%2E")


def write(file: BinaryIO, data: bytes) -> None:
    """The one place where bytes of a prepared directory, and of the work on it, reach the disk."""
    file.write(data)


@contextmanager
def shown_as(path: Path) -> Iterator[None]:
    """What failed is named by where it was to go; a temporary directory means nothing to the user."""
    try:
        yield
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def read_column(directory: Path, name: str, dtype: type, length: int | None = None) -> np.ndarray:
    """``columns/{name}.npy`` as a read-only, memory-mapped array of one dimension.

    Raises ``InputError`` naming the file when it is missing, truncated, no array file, or of another type or
    length.
    """
    path = directory / "columns" / f"{name}.npy"
    try:
        values = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (ValueError, EOFError) as error:
        values = _load_empty(path)
        if values is None:
            raise InputError(f"{path}: damaged ({error})") from None
    if not isinstance(values, np.ndarray) or values.ndim != 1 or values.dtype != dtype:
        raise InputError(f"{path}: not a one-dimensional {np.dtype(dtype)} array")
    if length is not None and values.shape[0] != length:
        raise InputError(f"{path}: has {values.shape[0]} entries, not {length}")
    # A plain array on the same memory: every slice of a np.memmap pays for its bookkeeping.
    return np.asarray(values)


def _load_empty(path: Path) -> np.ndarray | None:
    """An array without elements, which some versions of NumPy refuse to map."""
    try:
        values = np.load(path, allow_pickle=False)
    except (ValueError, EOFError):
        return None
    return values if isinstance(values, np.ndarray) and values.size == 0 else None


def checked(directory: Path, name: str, checksums: dict) -> None:
    """Raises ``InputError`` naming the file ``name`` of ``directory`` when its content is not what was
    written.
    """
    path = directory / name
    if sha256(path) != checksums.get(name):
        raise InputError(
            f"{path}: its checksum is not the one in {directory / 'dataset.json'}; the file was changed "
            "or damaged, prepare the data again"
        )


def sha256(path: Path) -> str:
    """Hash of a file's content, in hexadecimal; ``InputError`` when it is missing."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a directory") from None
