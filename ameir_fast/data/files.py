"""Files of a prepared directory: one ``.npy`` file a column, written with its checksum, read in place.

The format is described in docs/data.md. Everything this package writes into a prepared directory goes through
:func:`write`, everything it reads through :func:`read_column` or :func:`checked`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, BinaryIO
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
    """The one place where bytes of a prepared directory reach the disk."""
    file.write(data)


class DirectoryWriter:
    """Writes the files of a prepared directory and keeps their checksums.

    ``directory`` is the temporary one of ``atomic.new_dir``; errors speak of ``destination``, where it will
    go.
    """

    def __init__(self, directory: Path, destination: Path):
        self.directory, self.destination = directory, destination
        self.checksums: dict[str, str] = {}
        (directory / "columns").mkdir()
        (directory / "vocabularies").mkdir()

    def column(self, name: str, values: np.ndarray) -> None:
        """``columns/{name}.npy``."""
        values = np.ascontiguousarray(values)
        self._write(
            f"columns/{name}.npy",
            lambda file: np.lib.format.write_array(file, values, version=(1, 0), allow_pickle=False),
        )

    def json(self, name: str, value: Any) -> None:
        """``{name}``, one JSON value."""
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
        self._write(name, lambda file: file.write(text.encode()))

    def _write(self, name: str, fill) -> None:
        try:
            with open(self.directory / name, "xb") as file:
                hashed = _HashedFile(file)
                fill(hashed)
        except OSError as error:
            # What failed is named by where it was to go; the temporary directory means nothing to the user.
            raise OSError(error.errno, error.strerror, str(self.destination / name)) from error
        self.checksums[name] = hashed.hash.hexdigest()


class _HashedFile:
    def __init__(self, file: BinaryIO):
        self.file, self.hash = file, hashlib.sha256()

    def write(self, data: bytes) -> int:
        self.hash.update(data)
        write(self.file, data)
        return len(data)


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
