"""Which rows are for training, validation and test."""

from __future__ import annotations

import numpy as np

from ..errors import InputError
from . import order
from .files import SPLITS
from .plan import SplitPlan


def boundaries(time: np.ndarray, parts: tuple[float, ...]) -> list[int]:
    """Where the parts of rows ascending in ``time`` end, rows of equal time never being parted.

    A boundary that falls among equal times moves to the nearer end of them, to the earlier one if both are as
    near.
    """
    rows = time.shape[0]
    ends = []
    for share in np.cumsum(parts)[:-1]:
        at = int(round(share * rows))
        if 0 < at < rows and time[at - 1] == time[at]:
            first = int(np.searchsorted(time, time[at], "left"))
            last = int(np.searchsorted(time, time[at], "right"))
            at = first if at - first <= last - at else last
        ends.append(at)
    return [*ends, rows]


def assign(
    plan: SplitPlan, user: np.ndarray | None, time: np.ndarray | None, named: np.ndarray | None, rows: int
) -> np.ndarray:
    """int8 [R]: 0 train, 1 valid, 2 test. ``named``: the same from a column, for ``by="column"``.

    Raises ``InputError`` when a split gets no row.
    """
    part = np.zeros(rows, np.int8)
    if plan.by == "column":
        part = named
    elif plan.by == "leave_one_out":
        # Each user's last row is for test, the one before for validation, where at least one is left to train
        # on.
        events, begin, _ = order.timeline(user, time)
        begin = begin[events]
        last = np.append(np.flatnonzero(np.diff(begin)), rows - 1) if rows else np.zeros(0, np.int64)
        last = last[last - begin[last] >= 2]
        part[events[last]], part[events[last - 1]] = 2, 1
    else:
        if plan.by == "time":
            sequence = np.argsort(time, kind="stable")
            ends = boundaries(time[sequence], plan.parts)
        else:
            sequence = order.permutation(rows, "split", plan.seed)
            ends = [int(round(share * rows)) for share in np.cumsum(plan.parts)]
        for i, (first, last) in enumerate(zip(ends, ends[1:], strict=False), start=1):
            part[sequence[first:last]] = i
    for i, name in enumerate(SPLITS):
        if not (part == i).any():
            raise InputError(f"the {name} split is empty: {rows} rows, split by {plan.by}")
    return part
