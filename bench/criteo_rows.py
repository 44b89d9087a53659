"""Rows in the form of Criteo's train.txt, as many as one wants: skewed categories, missing cells, counts of a wide range.

Shares of missing cells and sizes of vocabularies are about those of the original (the sizes as DLRM's authors list
them), the latter up to 100,000; labels are independent of everything else.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from ..data.criteo import COUNTS, HASHED, LABEL

LARGEST = 100_000
CHUNK = 1 << 18
#: Of I1 to I13: the median, and the share of missing cells.
_MEDIANS = (1, 3, 8, 5, 2200, 38, 3, 8, 40, 0.5, 1, 0.3, 5)
_MISSING_COUNTS = (0.45, 0, 0.21, 0.22, 0.03, 0.22, 0.04, 0, 0.04, 0.45, 0.04, 0.77, 0.22)
#: Of C1 to C26: the distinct values, and the share of missing cells.
_SIZES = (1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194, 27, 14992, 5461306, 10,
          5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572)
_MISSING_HASHED = (0, 0, 0.03, 0.03, 0, 0.12, 0, 0, 0, 0, 0, 0.03, 0, 0, 0, 0.03, 0, 0, 0.44, 0.44, 0.03, 0.76, 0, 0.03,
                   0.44, 0.44)


def write(path: Path, rows: int, seed: int = 0, moved: Callable[[int], None] = lambda rows: None) -> None:
    """Writes ``rows`` rows to ``path``, the same ones for the same seed; ``moved`` is told how many are written."""
    texts = _texts(np.random.default_rng(seed))
    with open(path, "wb") as file:
        for number, first in enumerate(range(0, rows, CHUNK)):
            count = min(CHUNK, rows - first)
            _rows(np.random.default_rng([seed, number]), count, texts).write_csv(
                file, separator="\t", include_header=False, quote_style="never")
            moved(first + count)


def _texts(random: np.random.Generator) -> list[pl.Series]:
    """For each category column its values: distinct texts of eight hexadecimal digits."""
    found = []
    for size in _SIZES:
        numbers = np.unique(random.integers(0, 1 << 32, min(size, LARGEST), dtype=np.uint32))
        random.shuffle(numbers)
        found.append(pl.Series([f"{n:08x}" for n in numbers.tolist()]))
    return found


def _rows(random: np.random.Generator, rows: int, texts: list[pl.Series]) -> pl.DataFrame:
    columns = {LABEL: pl.Series((random.random(rows, np.float32) < 0.25).astype(np.uint8))}
    for name, median, share in zip(COUNTS, _MEDIANS, _MISSING_COUNTS, strict=True):
        # Half of the values below the median, a tail of some thousand times it, and one column with negative ones.
        values = np.exp(2 * random.standard_normal(rows, np.float32)) * median
        counts = pl.Series(values.astype(np.int32) - 2 * (name == "I2"))
        columns[name] = _with_gaps(random, counts, share)
    for name, values, share in zip(HASHED, texts, _MISSING_HASHED, strict=True):
        # Zipf's law with exponent 1: the logarithm of the rank is uniform.
        ranks = np.exp(random.random(rows, np.float32) * np.log(len(values) + 1)).astype(np.uint32) - 1
        columns[name] = _with_gaps(random, values.gather(np.minimum(ranks, len(values) - 1)), share)
    return pl.DataFrame(columns)


def _with_gaps(random: np.random.Generator, values: pl.Series, share: float) -> pl.Series:
    return values.set(pl.Series(random.random(len(values), np.float32) < share), None) if share else values
