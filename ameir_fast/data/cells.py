"""Columns of delimited text, coded while the text is read: no cell but the distinct ones ever becomes a string."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import polars as pl

from .. import native
from .blocks import Block
from .coding import Coded


def available() -> bool:
    """Whether the native code for it is there."""
    return native.driver() is not None


def code_cells(
    block: Block, separator: bytes, width: int, wanted: Sequence[int]
) -> list[tuple[Coded, np.ndarray]] | None:
    """The columns at the positions ``wanted`` of a block's lines of ``width`` cells, without quotes.

    An empty cell is a missing value. With each column comes int64, the row where each of its values appears first.
    ``None`` where a line is blank or has another number of cells.
    """
    found = native.driver().code_cells(block.data, separator.decode("latin-1"), width, list(wanted))
    if found is None:
        return None
    columns, text = found
    texts = pl.Series([text[:-1].decode()], dtype=pl.String).str.split("\n").explode()
    done, coded = 0, []
    for codes, first, missing in columns:
        count = len(first) - (missing >= 0)
        values = texts.slice(done, count)
        if missing >= 0:
            gap = pl.Series([None], dtype=pl.String)
            values = pl.concat([values.slice(0, missing), gap, values.slice(missing)], rechunk=True)
        coded.append((Coded(codes, values.alias("")), first))
        done += count
    return coded
