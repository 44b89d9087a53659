"""Which rows are for training, validation and test."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from . import order
from .arrays import blocks
from .files import SPLITS
from .plan import SplitPlan


def by_order(part: np.ndarray, parts: tuple[float, ...]) -> None:
    """Fills ``part`` int8 [R] by position, for rows that are in the order of time."""
    for i, (first, last) in enumerate(_ends(part.shape[0], parts), start=1):
        part[first:last] = i


def at_random(part: np.ndarray, parts: tuple[float, ...], seed: int) -> None:
    sequence = order.permutation(part.shape[0], "split", seed)
    for i, (first, last) in enumerate(_ends(part.shape[0], parts), start=1):
        part[sequence[first:last]] = i


def by_time(part: np.ndarray, parts: tuple[float, ...], time: np.ndarray) -> None:
    """Rows of equal time are never parted: a boundary that falls among them moves to the nearer end of them, to the
    earlier one if both are as near.
    """
    rows = part.shape[0]
    ends = [first for first, _ in _ends(rows, parts)]
    places = sorted({p for at in ends if 0 < at < rows for p in (at - 1, at)})
    ascending = dict(zip(places, np.partition(time, places)[places] if places else (), strict=True))
    for at in ends:
        if at <= 0:
            part += 1
        elif at < rows:
            bound, from_bound_on = ascending[at], True
            if ascending[at - 1] == bound:
                first = sum(int(np.count_nonzero(time[b] < bound)) for b in blocks(rows))
                last = sum(int(np.count_nonzero(time[b] <= bound)) for b in blocks(rows))
                from_bound_on = at - first <= last - at
            for b in blocks(rows):
                part[b] += time[b] >= bound if from_bound_on else time[b] > bound


def before_and_after(part: np.ndarray, parts: tuple[float, ...], time: np.ndarray, test_from: float) -> None:
    """Rows from the time ``test_from`` on are for test, the earlier ones are parted by time."""
    earlier = time < test_from
    found = np.zeros(int(np.count_nonzero(earlier)), part.dtype)
    by_time(found, tuple(share / sum(parts[:2]) for share in parts[:2]), time[earlier])
    part[~earlier] = SPLITS.index("test")
    part[earlier] = found


def leave_one_out(part: np.ndarray, user: np.ndarray, event: np.ndarray, begin: np.ndarray, users: int) -> None:
    """Each user's last row is for test, the one before for validation, where at least one is left to train on.

    ``event`` and ``begin`` [R]: the place of each row, and of its user's first one, in ``order.timeline``; ``user``
    is numbered below ``users``.
    """
    rows = part.shape[0]
    count = np.zeros(users, np.int64)
    for b in blocks(rows):
        count += np.bincount(user[b], minlength=users)
    for b in blocks(rows):
        own = count[user[b]]
        after = own - 1 - (event[b] - begin[b])  # rows of the user that come later
        part[b] = np.where(own < 3, 0, np.where(after == 0, 2, after == 1))


def check(part: np.ndarray, plan: SplitPlan, named: str = "", left_out: str = "") -> None:
    """Raises ``InputError`` when a split gets no row; it begins with ``named`` and ends with ``left_out``."""
    rows = part.shape[0]
    counts = sum(np.bincount(part[b], minlength=len(SPLITS)) for b in blocks(rows))
    for name, count in zip(SPLITS, counts, strict=True):
        if not count:
            why = ", and rows of one time stay together; another --split may do" if plan.by == "time" else ""
            if plan.test_from is not None:
                later = int(counts[SPLITS.index("test")])
                why = f": {later} from {plan.test_from} on are for test, those before are parted by time"
            raise InputError(f"{named}the {name} split is empty: {rows} rows, split by {plan.by}{why}{left_out}")


def _ends(rows: int, parts: tuple[float, ...]) -> list[tuple[int, int]]:
    """First and last row (exclusive) of every part but the first."""
    ends = [int(round(share * rows)) for share in np.cumsum(parts)]
    return list(zip(ends, [*ends[1:-1], rows], strict=False))
