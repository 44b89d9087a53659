"""Work on the host that is not tensors: rows of columnar storage as a jagged batch. Negative items: negatives.py.

Each function runs in ``_driver`` (C++, the interpreter lock released) where that is built, and otherwise in
NumPy, with identical results and identical errors. Arrays are C-contiguous; memory-mapped ones are read in
place.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from . import native
from .errors import InputError

Bag = tuple[np.ndarray, np.ndarray]
Assembled = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]


class Storage:
    """Columns of R rows and E events, checked once, from which batches are assembled.

    Args:
        columns: one int32 [R] per field; ``None`` stands for a multi-categorical field and is filled with 0.
        bags: per multi-categorical field ``(ids int32 [*], offsets int64 [R+1])``.
        events: one int32 [E] per behaviour field; row r's history is ``events[j][begin[r]:end[r]]``, oldest
            first.
        begin, end: int64 [R].

    Raises:
        TypeError: an array of another type or number of dimensions, or not C-contiguous.
        InputError: lengths that don't belong together.
    """

    def __init__(
        self,
        columns: Sequence[np.ndarray | None],
        bags: Sequence[Bag],
        events: Sequence[np.ndarray],
        begin: np.ndarray,
        end: np.ndarray,
    ):
        check_array("begin", begin, np.int64)
        check_array("end", end, np.int64)
        for j, column in enumerate(columns):
            if column is not None:
                check_array(f"columns[{j}]", column, np.int32)
        for j, (ids, offsets) in enumerate(bags):
            check_array(f"bags[{j}] ids", ids, np.int32)
            check_array(f"bags[{j}] offsets", offsets, np.int64)
        for j, column in enumerate(events):
            check_array(f"events[{j}]", column, np.int32)
        self._parts = list(columns), list(bags), list(events), begin, end
        with input_errors():
            _check_lengths(*self._parts)
        self._native = None

    def assemble(self, rows: np.ndarray, max_history: int) -> Assembled:
        """Rows as the parts of a jagged batch.

        Args:
            rows: int64 [B], the rows wanted, in this order, repetitions allowed.
            max_history: the newest that many events are taken.

        Returns:
            ``fields`` int32 [B, len(columns)], ``bag_ids`` int32 [*], ``bag_offsets`` int64 [B·len(bags)+1]
            (row-major over rows and bags), ``history`` int32 [ΣT, len(events)], ``history_offsets`` int64 [B+1].

        Raises:
            InputError: a row outside the storage, or offsets that leave it; the message names the row.
            TypeError: ``rows`` is no such array.
        """
        check_array("rows", rows, np.int64)
        driver = native.driver()
        with input_errors():
            if driver is None:
                return _assemble_numpy(rows, *self._parts, max_history)
            if self._native is None:
                self._native = driver.Storage(*self._parts)
            return self._native.assemble(rows, max_history)


def assemble(
    rows: np.ndarray,
    columns: Sequence[np.ndarray | None],
    bags: Sequence[Bag],
    events: Sequence[np.ndarray],
    begin: np.ndarray,
    end: np.ndarray,
    max_history: int,
) -> Assembled:
    """``Storage(columns, bags, events, begin, end).assemble(rows, max_history)``, for one batch."""
    return Storage(columns, bags, events, begin, end).assemble(rows, max_history)


def read_ahead(columns: Sequence[np.ndarray], first: np.ndarray, last: np.ndarray) -> None:
    """Tells the operating system that ``column[first[k]:last[k]]`` of memory-mapped columns will be read soon.

    A hint that changes no result, and does nothing without the native module or where the system takes no hints.

    Args:
        columns: one-dimensional, of any type.
        first, last: int64 [n], ranges of their elements.

    Raises:
        InputError: a range outside a column, or ranges of different number.
        TypeError: ranges of another type or number of dimensions, or a column that is not contiguous.
    """
    check_array("first", first, np.int64)
    check_array("last", last, np.int64)
    for j, column in enumerate(columns):
        check_array(f"columns[{j}]", column, column.dtype)
    if first.shape != last.shape:
        raise InputError(f"there are {first.size} first and {last.size} last ends of ranges")
    size = min((column.size for column in columns), default=0)
    for k in np.flatnonzero((first < 0) | (first > last) | (last > size))[:1]:
        raise InputError(f"range [{first[k]}, {last[k]}) leaves a column of {size}")
    driver = native.driver()
    if driver is not None:
        driver.read_ahead(list(columns), first, last)


class input_errors:
    """A ValueError of the implementation is bad input, and becomes the exception that says so."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ValueError) and not isinstance(error, InputError):
            raise InputError(str(error)) from None


def check_array(name: str, value: np.ndarray, dtype: type) -> None:
    """Raise TypeError unless it is a contiguous one-dimensional array of that type."""
    if (
        not isinstance(value, np.ndarray)
        or value.dtype != dtype
        or value.ndim != 1
        or not value.flags.c_contiguous
    ):
        what = (
            f"{value.dtype} of shape {value.shape}" if isinstance(value, np.ndarray) else type(value).__name__
        )
        raise TypeError(f"{name} must be a contiguous one-dimensional {np.dtype(dtype)} array, not {what}")


# ---- NumPy -----------------------------------------------------------------------------------------


def _check_lengths(columns, bags, events, begin, end) -> None:
    num_rows = begin.shape[0]
    need(end.shape[0] == num_rows, "begin and end differ in length")
    need(all(c is None or c.shape[0] == num_rows for c in columns), "a column and begin differ in length")
    need(
        all(o.shape[0] == num_rows + 1 for _, o in bags),
        "offsets of a bag must have one entry more than begin",
    )
    need(all(e.shape == events[0].shape for e in events), "behaviour columns differ in length")


def _assemble_numpy(rows, columns, bags, events, begin, end, max_history) -> Assembled:
    num_rows, batch = begin.shape[0], rows.shape[0]
    need(max_history >= 0, "max_history is negative")
    for position in np.flatnonzero((rows < 0) | (rows >= num_rows))[:1]:
        raise InputError(f"row {rows[position]} at position {position} is outside 0..{num_rows - 1}")

    fields = np.zeros((batch, len(columns)), np.int32)
    for j, column in enumerate(columns):
        if column is not None:
            fields[:, j] = column[rows]

    if events:
        first, last = begin[rows], end[rows]
        _check_ranges(first, last, events[0].shape[0], lambda k: f"history of row {rows[k]}", "events")
        first = np.maximum(first, last - max_history)
        history_offsets = running_sums(last - first)
        where = positions(first, history_offsets)
        history = np.stack([column[where] for column in events], axis=1)
    else:
        history_offsets = np.zeros(batch + 1, np.int64)
        history = np.zeros((0, 0), np.int32)

    count = len(bags)
    first = np.empty((batch, count), np.int64)
    last = np.empty((batch, count), np.int64)
    for j, (_, offsets) in enumerate(bags):
        first[:, j], last[:, j] = offsets[rows], offsets[rows + 1]
    sizes = np.array([ids.shape[0] for ids, _ in bags] * batch, np.int64)
    _check_ranges(
        first.ravel(), last.ravel(), sizes, lambda k: f"bag {k % count} of row {rows[k // count]}", "ids"
    )
    bag_offsets = running_sums((last - first).ravel())
    bag_ids = np.empty(bag_offsets[-1], np.int32)
    for j, (ids, _) in enumerate(bags):
        lengths = running_sums(last[:, j] - first[:, j])
        bag_ids[positions(bag_offsets[:-1][j::count], lengths)] = ids[positions(first[:, j], lengths)]
    return fields, bag_ids, bag_offsets, history, history_offsets


def need(condition: bool, message: str) -> None:
    """Raise InputError with the message of the C++ code unless the condition holds."""
    if not condition:
        raise InputError(message)


def _check_ranges(first: np.ndarray, last: np.ndarray, size, name, unit: str) -> None:
    for k in np.flatnonzero((first < 0) | (first > last) | (last > size))[:1]:
        limit = size if np.ndim(size) == 0 else size[k]
        raise InputError(f"{name(k)} is [{first[k]}, {last[k]}) of {limit} {unit}")


def running_sums(lengths: np.ndarray) -> np.ndarray:
    """0, and the sums of the first 1, 2, … of them, int64: offsets of ranges of these lengths."""
    offsets = np.zeros(lengths.shape[0] + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def positions(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Positions start, start+1, … of all ranges, one after another; the lengths are the differences of
    ``offsets``."""
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))
