"""Writes the files of a prepared directory and keeps their checksums."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from . import files
from .arrays import ArrayFile


class DirectoryWriter:
    """``directory`` is a temporary one; errors speak of ``destination``, where it will go."""

    def __init__(self, directory: Path, destination: Path):
        self.directory, self.destination = directory, destination
        self.checksums: dict[str, str] = {}
        (directory / "columns").mkdir()
        (directory / "vocabularies").mkdir()

    @contextmanager
    def column(self, name: str, dtype: type, length: int) -> Iterator[ArrayFile]:
        """``columns/{name}.npy``, to be filled within the block."""
        name = f"columns/{name}.npy"
        yield ArrayFile(self.directory / name, dtype, length, self.destination / name)
        self.checksums[name] = files.sha256(self.directory / name)

    def json(self, name: str, value: Any) -> None:
        """``{name}``, one JSON value."""
        data = (json.dumps(value, ensure_ascii=False, allow_nan=False, indent=2) + "\n").encode()
        with files.shown_as(self.destination / name), open(self.directory / name, "xb") as file:
            files.write(file, data)
        self.checksums[name] = hashlib.sha256(data).hexdigest()
