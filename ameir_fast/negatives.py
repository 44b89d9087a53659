"""Negative items: drawn natively in ``_driver`` (C++, the interpreter lock released) where that is built, otherwise in
NumPy, with identical results and identical errors."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import native
from .errors import InputError
from .hostops import check_array, input_errors, need, positions, running_sums

_U64 = np.uint64
_GAMMA = 0x9E3779B97F4A7C15
_MASK = 2**64 - 1


def sample_negatives(
    users: np.ndarray,
    user_offsets: np.ndarray,
    user_items: np.ndarray,
    num_items: int,
    n: int,
    seed: int,
    positives: np.ndarray,
    *,
    rows: np.ndarray | None = None,
    starts: np.ndarray | None = None,
    may_be_none: bool = False,
) -> np.ndarray:
    """n items per row, drawn independently from those that are neither the user's own nor the positive: uniformly, or
    in proportion to weights.

    Args:
        users: int64 [B], users in 0..U-1.
        user_offsets: int64 [U+1]; user u's own items are ``user_items[user_offsets[u]:user_offsets[u+1]]``.
        user_items: int32 [*], ascending and distinct within a user, each in 0..num_items-1.
        num_items: size of the vocabulary, id 0 included; items drawn are in 1..num_items-1.
        n: items per row.
        seed: any integer, taken modulo 2^64. Draws are a pure function of (seed, row, slot): SplitMix64 as a
            counter-based generator (Steele, Lea, Flood, OOPSLA 2014).
        positives: int32 [B], the row's own target in 0..num_items-1 (0, unknown, excludes nothing).
        rows: int64 [B], what draws take as a row's number; its place in the batch without.
        starts: int64 [num_items+1], running sums of integer weights (:func:`item_starts`); uniform without.
        may_be_none: a row whose own items leave nothing to draw gets zeros.

    Returns:
        int32 [B, n]. The same item may appear twice in a row.

    Raises:
        InputError: a user or an item outside its range, own items out of order, or a user whose own items
            leave nothing to draw; the message names the user. Or ``starts`` that are no running sums.
        TypeError: an array of another type or number of dimensions, or not C-contiguous.
    """
    check_array("users", users, np.int64)
    check_array("user_offsets", user_offsets, np.int64)
    check_array("user_items", user_items, np.int32)
    check_array("positives", positives, np.int32)
    if rows is not None:
        check_array("rows", rows, np.int64)
    if starts is not None:
        check_array("starts", starts, np.int64)
        if starts.size and (starts[:2].any() or starts[-1] >= 2**32 or (np.diff(starts) < 0).any()):
            raise InputError("starts do not rise from 0 for ids 0 and 1 to less than 2^32")
    driver = native.driver()
    function = _sample_negatives_numpy if driver is None else driver.sample_negatives
    with input_errors():
        return function(users, user_offsets, user_items, int(num_items), int(n), int(seed) & _MASK, positives, rows,
                        starts, bool(may_be_none))


def item_starts(weights: np.ndarray) -> np.ndarray:
    """``starts`` of :func:`sample_negatives` for integer weights [num_items]; that of id 0 does not count."""
    starts = running_sums(np.asarray(weights, np.int64))
    starts[1:] -= weights[0] if len(weights) else 0
    return starts


# ---- NumPy -----------------------------------------------------------------------------------------


def _sample_negatives_numpy(
    users, user_offsets, user_items, num_items, n, seed, positives, rows, starts, may_be_none
) -> np.ndarray:
    need(n >= 0, "the number of negatives is negative")
    need(user_offsets.shape[0] >= 1, "user_offsets is empty")
    need(1 <= num_items <= 2**31, "num_items is outside 1..2147483648")
    need(positives.shape[0] == users.shape[0], "positives and users differ in length")
    need(rows is None or rows.shape[0] == users.shape[0], "rows and users differ in length")
    need(starts is None or starts.shape[0] == num_items + 1, "starts must have one entry more than there are items")
    start = (lambda item: item - 1) if starts is None else starts.__getitem__
    begin, end, problem = _own_ranges(users, user_offsets, user_items, num_items, positives)
    own = _Own(begin, end, user_items, start)
    target = np.clip(positives, 0, num_items - 1).astype(np.int64)
    below = _bisect(lambda j: own.item(j) < target, np.zeros_like(begin), end - begin)
    among = below < end - begin
    among[among] = own.item(below)[among] == target[among]
    positive_weight = np.where((target > 0) & ~among, start(target + 1) - start(target), 0)
    positive_place = np.where(target > 0, start(target) - own.weight(below), 0)
    allowed = start(num_items) - own.weight(end - begin) - positive_weight
    for k in np.flatnonzero((problem != _FINE) | ((allowed <= 0) & (not may_be_none)))[:1]:
        raise InputError(_complaint(int(problem[k]), k, users, positives, user_offsets.shape[0] - 1, num_items - 1))
    random = _random(seed, np.arange(users.shape[0]) if rows is None else rows, n)
    place = _below(random, np.maximum(allowed, 1)[:, None].astype(_U64)).astype(np.int64)
    place += np.where(place >= positive_place[:, None], positive_weight[:, None], 0)
    # csrc/data/negatives.cpp says why: the smallest j with start(own[j]) less the weight below it above the place is
    # how many own items the draw passes.
    passed = _bisect(
        lambda j: own.place(j) <= place, np.zeros_like(place), np.broadcast_to((end - begin)[:, None], place.shape)
    )
    place += own.weight(passed)
    item = place + 1 if starts is None else np.searchsorted(starts[:-1], place, side="right") - 1
    return np.where(allowed[:, None] > 0, item, 0).astype(np.int32)


class _Own:
    """The own items of each row by number (j of shape [B] or [B, n]), their weights and their places."""

    def __init__(self, begin: np.ndarray, end: np.ndarray, items: np.ndarray, start: Callable):
        offsets = running_sums(end - begin)
        own = items[positions(begin, offsets)].astype(np.int64)
        self._first = offsets[:-1]
        self._weight = running_sums(start(own + 1) - start(own))
        # One more of each, never used, for rows whose j is beyond their last item.
        self._item, self._start = np.append(own, 0), np.append(start(own), 0)

    def _at(self, j: np.ndarray) -> np.ndarray:
        return (self._first if np.ndim(j) == 1 else self._first[:, None]) + j

    def item(self, j: np.ndarray) -> np.ndarray:
        return self._item[self._at(j)]

    def weight(self, j: np.ndarray) -> np.ndarray:
        """Of the first j together."""
        return self._weight[self._at(j)] - self._weight[self._at(np.zeros_like(j))]

    def place(self, j: np.ndarray) -> np.ndarray:
        """Of item j on the line of those that are not own."""
        return self._start[self._at(j)] - self.weight(j)


_FINE, _USER, _POSITIVE, _ORDER = range(4)


def _own_ranges(users, user_offsets, user_items, num_items, positives):
    """Per row the range of the user's own items above id 0, empty where something is wrong, and what that is."""
    num_users = user_offsets.shape[0] - 1
    batch = users.shape[0]
    user_ok = (users >= 0) & (users < num_users)
    known = np.where(user_ok, users, 0) if num_users else np.zeros(batch, np.int64)
    padded = user_offsets if num_users else np.zeros(2, np.int64)
    begin, end = padded[known], padded[known + 1]
    inside = (begin >= 0) & (begin <= end) & (end <= user_items.shape[0])
    lengths = running_sums(np.where(inside, end - begin, 0))
    own = user_items[positions(np.where(inside, begin, 0), lengths)]
    # A pair of neighbours counts when both belong to one row.
    wrong = np.zeros(own.shape[0], bool)
    wrong[1:] = own[:-1] >= own[1:]
    wrong[lengths[:-1][np.diff(lengths) > 0]] = False
    wrong |= (own < 0) | (own >= num_items)
    disorder = np.diff(running_sums(wrong.astype(np.int64))[lengths]) > 0
    filled = inside & (begin < end)
    begin = begin + (filled & (user_items[np.where(filled, begin, 0)] == 0) if user_items.size else 0)
    problem = np.where(
        ~user_ok, _USER, np.where((positives < 0) | (positives >= num_items), _POSITIVE, np.where(
            ~inside | disorder, _ORDER, _FINE)))
    return np.where(problem == _FINE, begin, 0), np.where(problem == _FINE, end, 0), problem


def _complaint(problem: int, k: int, users, positives, num_users: int, last: int) -> str:
    """What the C++ code says of row k."""
    if problem == _USER:
        return f"user {users[k]} of row {k} is outside 0..{num_users - 1}"
    if problem == _POSITIVE:
        return f"positive item {positives[k]} of row {k} is outside 0..{last}"
    if problem == _ORDER:
        return f"user {users[k]}: its own items are not ascending and distinct in 0..{last}"
    return f"user {users[k]}: its own items leave none of {last} items to draw from"


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


def _random(seed: int, rows: np.ndarray, slots: int) -> np.ndarray:
    """uint64 [rows, slots], a pure function of (seed, row, slot)."""
    stream = _mix(np.array([(seed + _GAMMA) & _MASK], _U64))
    row_stream = _mix(stream + rows.astype(_U64) * _U64(_GAMMA))
    return _mix(row_stream[:, None] + np.arange(1, slots + 1, dtype=_U64) * _U64(_GAMMA))


def _below(random: np.ndarray, bound: np.ndarray) -> np.ndarray:
    """floor(random · bound / 2^64), for bounds below 2^32."""
    low = (random & _U64(0xFFFFFFFF)) * bound >> _U64(32)
    return ((random >> _U64(32)) * bound + low) >> _U64(32)
