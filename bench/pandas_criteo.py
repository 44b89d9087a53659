"""What ``prepare criteo`` does, in pandas: the baseline of the ``prepare`` bench.

    python pandas_criteo.py FILE DIRECTORY

Reads FILE (Criteo's train.txt), divides counts into ranges, learns the values seen ten times in the first 80% of the
rows, and writes each column's ids and the label to DIRECTORY. A script of its own: nothing of the package is imported,
whose start would count as well.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

COUNTS = [f"I{i}" for i in range(1, 14)]
HASHED = [f"C{i}" for i in range(1, 27)]
MIN_COUNT = 10
MISSING = -(2**31)


def main(path: str, directory: str) -> None:
    table = pd.read_csv(path, sep="\t", header=None, names=["label", *COUNTS, *HASHED], dtype=dict.fromkeys(HASHED, str))
    train = round(0.8 * len(table))
    np.save(Path(directory) / "label.npy", table["label"].to_numpy(np.float32))
    for name in COUNTS:
        values = table[name].to_numpy(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            tokens = np.where(values > 2, 2 + np.floor(np.log(values) ** 2), values)
        table[name] = np.where(np.isnan(values), MISSING, tokens).astype(np.int64)
    for name in (*COUNTS, *HASHED):
        # One pass over the texts: the number of each one's first appearance; the rest is arithmetic on numbers.
        codes, values = pd.factorize(table[name])
        seen = np.bincount(codes[:train][codes[:train] >= 0], minlength=len(values))
        kept = np.flatnonzero(seen >= MIN_COUNT)
        tokens = np.asarray(values[kept])
        tokens = tokens if tokens.dtype == np.int64 else tokens.astype("S")
        ids = np.zeros(len(values) + 1, np.int32)  # the last one is that of a missing value, code -1
        ids[kept[np.lexsort((tokens, -seen[kept]))]] = np.arange(1, len(kept) + 1)
        np.save(Path(directory) / f"{name}.npy", ids[codes])


if __name__ == "__main__":
    main(*sys.argv[1:])
