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
    blocks: Sequence[Block], separator: bytes, width: int, wanted: Sequence[int]
) -> list[tuple[Coded, np.ndarray]] | None:
    """The columns at the positions ``wanted`` of blocks that follow each other: lines of ``width`` cells without quotes.

    An empty cell is a missing value. With each column comes int64, the row where each of its values appears first.
    ``None`` where a line is blank or has another number of cells, and for a single column, of which a blank line would
    be an empty cell.
    """
    if width == 1:
        return None
    coder = native.driver().CellCoder(separator.decode("latin-1"), width, list(wanted))
    if not all(coder.add(block.data) for block in blocks):
        return None
    return [(Coded(codes, _values(text, missing)), first) for codes, first, missing, text in coder.columns()]


def _values(text: bytes, missing: int) -> pl.Series:
    """The lines of ``text``, and a missing value at position ``missing`` unless that is negative."""
    values = pl.Series("", [text[:-1].decode()] if text else [], dtype=pl.String).str.split("\n").explode()
    if missing < 0:
        return values
    return pl.concat([values[:missing], pl.Series("", [None], dtype=pl.String), values[missing:]], rechunk=True)
