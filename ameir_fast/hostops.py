"""Work on the host that is not tensors: rows of columnar storage as a jagged batch, negative items.

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

_U64 = np.uint64
_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def assemble(
    rows: np.ndarray,
    columns: Sequence[np.ndarray | None],
    bags: Sequence[Bag],
    events: Sequence[np.ndarray],
    begin: np.ndarray,
    end: np.ndarray,
    max_history: int,
) -> Assembled:
    """Rows of columnar storage (R rows, E events) as the parts of a jagged batch.

    Args:
        rows: int64 [B], the rows wanted, in this order, repetitions allowed.
        columns: one int32 [R] per field; ``None`` stands for a multi-categorical field and is filled with 0.
        bags: per multi-categorical field ``(ids int32 [*], offsets int64 [R+1])``.
        events: one int32 [E] per behaviour field; row r's history is ``events[j][begin[r]:end[r]]``, oldest
            first.
        begin, end: int64 [R].
        max_history: the newest that many events are taken.

    Returns:
        ``fields`` int32 [B, len(columns)], ``bag_ids`` int32 [*], ``bag_offsets`` int64 [B·len(bags)+1]
        (row-major over rows and bags), ``history`` int32 [ΣT, len(events)], ``history_offsets`` int64 [B+1].

    Raises:
        InputError: a row outside the storage, or offsets that leave it; the message names the row.
        TypeError: an array of another type or number of dimensions, or not C-contiguous.
        ValueError: lengths that don't belong together.
    """
    _array("rows", rows, np.int64)
    _array("begin", begin, np.int64)
    _array("end", end, np.int64)
    for j, column in enumerate(columns):
        if column is not None:
            _array(f"columns[{j}]", column, np.int32)
    for j, (ids, offsets) in enumerate(bags):
        _array(f"bags[{j}] ids", ids, np.int32)
        _array(f"bags[{j}] offsets", offsets, np.int64)
    for j, column in enumerate(events):
        _array(f"events[{j}]", column, np.int32)
    driver = native.driver()
    function = _assemble_numpy if driver is None else driver.assemble
    with _input_errors():
        return function(rows, list(columns), list(bags), list(events), begin, end, max_history)


def sample_negatives(
    users: np.ndarray,
    user_offsets: np.ndarray,
    user_items: np.ndarray,
    num_items: int,
    n: int,
    seed: int,
    positives: np.ndarray,
) -> np.ndarray:
    """n items per row, drawn uniformly and independently from those that are neither the user's own nor the
    positive.

    Args:
        users: int64 [B], users in 0..U-1.
        user_offsets: int64 [U+1]; user u's own items are ``user_items[user_offsets[u]:user_offsets[u+1]]``.
        user_items: int32 [*], ascending and distinct within a user, each in 0..num_items-1.
        num_items: size of the vocabulary, id 0 included; items drawn are in 1..num_items-1.
        n: items per row.
        seed: any integer, taken modulo 2^64. Draws are a pure function of (seed, row, slot): SplitMix64 as a
            counter-based generator (Steele, Lea, Flood, OOPSLA 2014).
        positives: int32 [B], the row's own target in 0..num_items-1 (0, unknown, excludes nothing).

    Returns:
        int32 [B, n]. The same item may appear twice in a row.

    Raises:
        InputError: a user or an item outside its range, own items out of order, or a user whose own items
            leave nothing to draw; the message names the user.
        TypeError: an array of another type or number of dimensions, or not C-contiguous.
    """
    _array("users", users, np.int64)
    _array("user_offsets", user_offsets, np.int64)
    _array("user_items", user_items, np.int32)
    _array("positives", positives, np.int32)
    driver = native.driver()
    function = _sample_negatives_numpy if driver is None else driver.sample_negatives
    with _input_errors():
        return function(users, user_offsets, user_items, int(num_items), int(n), int(seed) & _MASK, positives)


class _input_errors:
    """A ValueError of the implementation is bad input, and becomes the exception that says so."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind, error, traceback) -> None:
        if isinstance(error, ValueError) and not isinstance(error, InputError):
            raise InputError(str(error)) from None


def _array(name: str, value: np.ndarray, dtype: type) -> None:
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


def _assemble_numpy(rows, columns, bags, events, begin, end, max_history) -> Assembled:
    num_rows, batch = begin.shape[0], rows.shape[0]
    _need(max_history >= 0, "max_history is negative")
    _need(end.shape[0] == num_rows, "begin and end differ in length")
    _need(all(c is None or c.shape[0] == num_rows for c in columns), "a column and begin differ in length")
    _need(
        all(o.shape[0] == num_rows + 1 for _, o in bags),
        "offsets of a bag must have one entry more than begin",
    )
    _need(all(e.shape == events[0].shape for e in events), "behaviour columns differ in length")
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
        history_offsets = _offsets(last - first)
        where = _ranges(first, history_offsets)
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
    bag_offsets = _offsets((last - first).ravel())
    bag_ids = np.empty(bag_offsets[-1], np.int32)
    for j, (ids, _) in enumerate(bags):
        lengths = _offsets(last[:, j] - first[:, j])
        bag_ids[_ranges(bag_offsets[:-1][j::count], lengths)] = ids[_ranges(first[:, j], lengths)]
    return fields, bag_ids, bag_offsets, history, history_offsets


def _need(condition: bool, message: str) -> None:
    if not condition:
        raise InputError(message)


def _check_ranges(first: np.ndarray, last: np.ndarray, size, name, unit: str) -> None:
    for k in np.flatnonzero((first < 0) | (first > last) | (last > size))[:1]:
        limit = size if np.ndim(size) == 0 else size[k]
        raise InputError(f"{name(k)} is [{first[k]}, {last[k]}) of {limit} {unit}")


def _offsets(lengths: np.ndarray) -> np.ndarray:
    offsets = np.zeros(lengths.shape[0] + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _ranges(starts: np.ndarray, offsets: np.ndarray) -> np.ndarray:
    """Positions start, start+1, … of all ranges, one after another; the lengths are the differences of
    ``offsets``."""
    return np.arange(offsets[-1]) + np.repeat(starts - offsets[:-1], np.diff(offsets))


def _sample_negatives_numpy(users, user_offsets, user_items, num_items, n, seed, positives) -> np.ndarray:
    _need(n >= 0, "the number of negatives is negative")
    _need(user_offsets.shape[0] >= 1, "user_offsets is empty")
    _need(1 <= num_items <= 2**31, "num_items is outside 1..2147483648")
    _need(positives.shape[0] == users.shape[0], "positives and users differ in length")
    begin, end, extra, below, allowed = _allowed(users, user_offsets, user_items, num_items, positives)
    rank = _below(_random(seed, users.shape[0], n), allowed[:, None].astype(_U64)).astype(np.int64)
    positive_rank = positives.astype(np.int64) - 1 - below
    rank += extra[:, None] & (rank >= positive_rank[:, None])
    # csrc/data/negatives.cpp says why: the smallest j with own[j] - 1 - j > rank is how many own items the
    # draw passes.
    start = np.broadcast_to(begin[:, None], rank.shape)
    passed = _bisect(
        lambda at: user_items[at] - 1 - (at - start) <= rank, start, np.broadcast_to(end[:, None], rank.shape)
    )
    return (rank + 1 + passed - start).astype(np.int32)


def _allowed(users, user_offsets, user_items, num_items, positives):
    """Per row: range of the user's own items above id 0, whether the positive is a further exclusion, the
    number of own items below it, and how many items are left. The checks go row by row in the order of the
    C++ code."""
    num_users = user_offsets.shape[0] - 1
    batch = users.shape[0]
    user_ok = (users >= 0) & (users < num_users)
    known = np.where(user_ok, users, 0) if num_users else np.zeros(batch, np.int64)
    padded = user_offsets if num_users else np.zeros(2, np.int64)
    begin, end = padded[known], padded[known + 1]
    inside = (begin >= 0) & (begin <= end) & (end <= user_items.shape[0])
    lengths = _offsets(np.where(inside, end - begin, 0))
    own = user_items[_ranges(np.where(inside, begin, 0), lengths)]
    # A pair of neighbours counts when both belong to one row.
    wrong = np.zeros(own.shape[0], bool)
    wrong[1:] = own[:-1] >= own[1:]
    wrong[lengths[:-1][np.diff(lengths) > 0]] = False
    wrong |= (own < 0) | (own >= num_items)
    disorder = np.diff(_offsets(wrong.astype(np.int64))[lengths]) > 0
    filled = inside & (begin < end)
    begin = begin + (filled & (user_items[np.where(filled, begin, 0)] == 0) if user_items.size else 0)
    target = positives.astype(np.int64)
    valid = user_ok & (target >= 0) & (target < num_items) & inside & ~disorder
    low, high = np.where(valid, begin, 0), np.where(valid, end, 0)
    at = _bisect(lambda k: user_items[k] < target, low, high)
    hit = at < high
    hit[hit] = user_items[at[hit]] == target[hit]
    extra = (target > 0) & ~hit
    allowed = num_items - 1 - (high - low) - extra
    for k in np.flatnonzero(~valid | (allowed <= 0))[:1]:
        last = num_items - 1
        if not user_ok[k]:
            raise InputError(f"user {users[k]} of row {k} is outside 0..{num_users - 1}")
        if not 0 <= target[k] < num_items:
            raise InputError(f"positive item {target[k]} of row {k} is outside 0..{last}")
        if not valid[k]:
            raise InputError(f"user {users[k]}: its own items are not ascending and distinct in 0..{last}")
        raise InputError(f"user {users[k]}: its own items leave none of {last} items to draw from")
    return low, high, extra, at - low, allowed


def _bisect(before, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Per element, the first position in [low, high) where ``before(position)`` is false; it must be true
    only up to there."""
    low, high = low.copy(), high.copy()
    while True:
        active = low < high
        if not active.any():
            return low
        middle = (low + high) // 2
        right = active & before(np.where(active, middle, 0))
        low = np.where(right, middle + 1, low)
        high = np.where(active & ~right, middle, high)


def _mix(z: np.ndarray) -> np.ndarray:
    """Finalizer of SplitMix64, modulo 2^64."""
    z = (z ^ (z >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> _U64(27))) * _U64(0x94D049BB133111EB)
    return z ^ (z >> _U64(31))


def _random(seed: int, rows: int, slots: int) -> np.ndarray:
    """uint64 [rows, slots], a pure function of (seed, row, slot)."""
    stream = _mix(np.array([(seed + _GAMMA) & _MASK], _U64))
    row_stream = _mix(stream + np.arange(rows, dtype=_U64) * _U64(_GAMMA))
    return _mix(row_stream[:, None] + np.arange(1, slots + 1, dtype=_U64) * _U64(_GAMMA))


def _below(random: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """floor(random · bound / 2^64), for bounds below 2^32."""
    low = (random & _U64(0xFFFFFFFF)) * bound >> _U64(32)
    return ((random >> _U64(32)) * bound + low) >> _U64(32)
