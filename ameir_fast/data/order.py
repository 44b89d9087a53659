"""Orders, ranges and sets over rows, without a Python step per row."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np


def mixed(*parts: object) -> int:
    """63 bits that are a function of ``parts``, the same on every machine."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def permutation(count: int, *where: object) -> np.ndarray:
    """A permutation of 0..count-1 (int32 where that suffices) that is a function of (count, where)."""
    dtype = np.int32 if count < 2**31 else np.int64
    return np.random.Generator(np.random.PCG64(mixed("permutation", *where))).permutation(
        np.arange(count, dtype=dtype)
    )


def subset(count: int, limit: int, name: str) -> np.ndarray:
    """``limit`` of 0..count-1, ascending, int64: a function of its arguments, nested in every larger
    ``limit``.
    """
    return np.sort(permutation(count, "subset", name)[:limit]).astype(np.int64)


def timeline(
    user: np.ndarray, time: np.ndarray, event: np.ndarray, begin: np.ndarray, end: np.ndarray, block: int = 1 << 20
) -> None:
    """Every row's strictly earlier rows of the same user, as a range of one order of all rows.

    That order of rows is: grouped by user and ascending in time, equal times in row order.

    Args: ``user`` integers [R]; ``time`` [R], comparable and without NaN. Filled are ``event`` [R], the place of row
    r in that order, and ``begin``, ``end`` [R]: the history of row r is at the places ``begin[r]`` to ``end[r]``. It
    ends before the first row of the same user and the same time, so neither the row itself nor anything simultaneous
    is in it. All may be memory-mapped; apart from the order (8 bytes a row) only ``block`` rows are held at a time.
    """
    rows = np.lexsort((time, user))
    last = first_of_user = first_of_time = -1
    for start in range(0, rows.shape[0], block):
        here = rows[start : start + block]
        place = np.arange(start, start + here.shape[0])
        before = np.append(last if start else here[0], here[:-1])
        new_user = user[here] != user[before]
        new_user[0] |= start == 0
        new_time = new_user | (time[here] != time[before])
        begins = np.maximum.accumulate(np.append(first_of_user, np.where(new_user, place, 0)))[1:]
        ends = np.maximum.accumulate(np.append(first_of_time, np.where(new_time, place, 0)))[1:]
        event[here], begin[here], end[here] = place, begins, ends
        last, first_of_user, first_of_time = here[-1], begins[-1], ends[-1]


def ranges(first: np.ndarray, last: np.ndarray) -> np.ndarray:
    """first, first+1, …, last-1 of all ranges, one after another, int64."""
    lengths = last - first
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    return np.arange(offsets[-1]) + np.repeat(first - offsets[:-1], lengths)


def user_items(
    row_user: np.ndarray,
    rows: slice,
    own: Sequence[np.ndarray],
    events: Sequence[np.ndarray],
    begin: np.ndarray,
    end: np.ndarray,
    num_items: int,
) -> tuple[np.ndarray, np.ndarray]:
    """The distinct items (id 0 left out) of each user: those of the rows themselves and of their histories.

    Args: ``row_user`` int32 [R], users from 0; ``rows`` which of them count; ``own`` columns [R] and
    ``events`` columns [E] of item ids below ``num_items``; ``begin``, ``end`` int64 [R] of the histories.

    Returns ``offsets`` int64 [U+1] with U the number of users of all rows, ``items`` int32, ascending within
    a user.
    """
    users = int(row_user.max()) + 1 if row_user.size else 0
    user = row_user[rows].astype(np.int64)
    pairs = [user * num_items + column[rows] for column in own]
    if events:
        owner, first, last = _merged(user, begin[rows], end[rows])
        where, owner = ranges(first, last), np.repeat(owner, last - first)
        pairs += [owner * num_items + column[where] for column in events]
    found = np.concatenate(pairs) if pairs else np.zeros(0, np.int64)
    found = np.sort(found[found % num_items > 0])  # tens of times faster than np.unique, which hashes
    found = found[np.append(True, found[1:] != found[:-1])] if found.size else found
    offsets = np.searchsorted(found, np.arange(users + 1) * num_items)
    return offsets.astype(np.int64), (found % num_items).astype(np.int32)


def _merged(
    user: np.ndarray, begin: np.ndarray, end: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overlapping ranges of the same user made one: a user's histories are mostly prefixes of the longest."""
    if not user.size:
        return user, begin, end
    by_user = np.lexsort((begin, user))
    user, begin, end = user[by_user], begin[by_user], end[by_user]
    # One running maximum for all users: the next user's ends lie above all of this one's.
    step = int(end.max()) + 1
    reach = np.maximum.accumulate(user * step + end)
    starts = np.ones(user.shape[0], bool)
    starts[1:] = user[1:] * step + begin[1:] > reach[:-1]
    at = np.flatnonzero(starts)
    last = np.append(at[1:], user.shape[0]) - 1
    return user[at], begin[at], reach[last] - user[at] * step
