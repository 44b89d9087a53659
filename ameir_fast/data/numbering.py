"""Distinct values numbered from 0 in the order in which they first appear."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from . import files
from .coding import Coded, code


class Numbering:
    """The values so far are ``values``, value i having the number i. A missing value is one like any other."""

    def __init__(self, values: pl.Series):
        """``values`` are distinct."""
        self.values = values.rename("value")

    def __len__(self) -> int:
        return len(self.values)

    def find(self, values: pl.Series) -> np.ndarray:
        """int32, the number of each of ``values``, -1 for an unknown one."""
        numbers = self._coded(values).codes[len(self) :].astype(np.int64)
        return np.where(numbers < len(self), numbers, -1).astype(np.int32)

    def add(self, values: pl.Series) -> np.ndarray:
        """The same for distinct ``values``, of which unknown ones get the next numbers."""
        coded = self._coded(values)
        numbers = coded.codes[len(self) :].astype(np.int32)
        self.values = coded.values
        return numbers

    def _coded(self, values: pl.Series) -> Coded:
        # Those known are distinct, so their codes are their numbers.
        return code(pl.concat([self.values, values.rename("value")]))

    def save(self, path: Path, shown: Path, **columns: np.ndarray) -> None:
        """Writes the values, and ``columns`` of as many numbers; an error of the disk names ``shown``."""
        packed = io.BytesIO()
        pl.DataFrame({"value": self.values, **columns}).write_ipc(packed, compression="uncompressed")
        with files.shown_as(shown), open(path, "xb") as file:
            files.write(file, packed.getbuffer())
