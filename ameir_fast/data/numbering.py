"""Distinct values numbered from 0 in the order in which they first appear."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import polars as pl

from . import files


class Numbering:
    """The values so far are ``values``, value i having the number i. A missing value is one like any other."""

    def __init__(self, values: pl.Series):
        """``values`` are distinct."""
        self._known = pl.DataFrame({"value": values, "number": pl.Series(np.arange(len(values), dtype=np.int32))})

    def __len__(self) -> int:
        return self._known.height

    @property
    def values(self) -> pl.Series:
        return self._known["value"]

    def find(self, values: pl.Series) -> np.ndarray:
        """int32, the number of each of ``values``, -1 for an unknown one."""
        wanted = values.rename("value").to_frame()
        found = wanted.join(self._known, on="value", how="left", nulls_equal=True, maintain_order="left")
        return found["number"].fill_null(-1).to_numpy()

    def add(self, values: pl.Series) -> np.ndarray:
        """The same for distinct ``values``, of which unknown ones get the next numbers."""
        numbers = self.find(values).copy()
        new = numbers < 0
        numbers[new] = np.arange(len(self), len(self) + np.count_nonzero(new))
        more = pl.DataFrame({"value": values.filter(pl.Series(new)), "number": pl.Series(numbers[new])})
        self._known = self._known.vstack(more)
        return numbers

    def save(self, path: Path, shown: Path, **columns: np.ndarray) -> None:
        """Writes the values, and ``columns`` of as many numbers; an error of the disk names ``shown``."""
        packed = io.BytesIO()
        pl.DataFrame({"value": self.values, **columns}).write_ipc(packed, compression="uncompressed")
        with files.shown_as(shown), open(path, "xb") as file:
            files.write(file, packed.getbuffer())
