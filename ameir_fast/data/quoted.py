"""Which lines belong to which row, in text whose values may stand in double quotes."""

from __future__ import annotations

import numpy as np

_QUOTE, _NEWLINE = 34, 10


def layout(data: bytes, separator: bytes) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """The line in which each row begins, from 0, its number of columns and of bytes; ``data`` ends with a newline.

    ``None`` where quotes stand elsewhere than around whole values (doubled within one), or a line is blank: that takes
    a parser to sort out.
    """
    text = np.frombuffer(data, np.uint8)
    at = np.flatnonzero(text == _QUOTE)
    if len(at) % 2:
        return None
    opening, closing = at[::2], at[1::2]
    around = np.array([separator[0], _NEWLINE, _QUOTE], np.uint8)
    if not (np.isin(text[opening[opening > 0] - 1], around).all() and np.isin(text[closing + 1], around).all()):
        return None
    newlines = np.flatnonzero(text == _NEWLINE)
    ends = _outside(newlines, at)
    starts = np.append(0, ends[:-1] + 1)
    if (starts == ends).any():
        return None
    separators = np.searchsorted(_outside(np.flatnonzero(text == separator[0]), at), np.append(0, ends))
    return np.searchsorted(newlines, starts), np.diff(separators) + 1, ends - starts


def _outside(places: np.ndarray, quotes: np.ndarray) -> np.ndarray:
    """Those of ``places`` that no pair of ``quotes`` encloses."""
    return places[np.searchsorted(quotes, places) % 2 == 0]
