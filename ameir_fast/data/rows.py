"""What is known of each row beside its columns: user, time, split, history, and its place in the stored order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from ..errors import InputError
from . import order, split
from .arrays import ArrayFile, blocks, index_type
from .encoder import Encoder
from .files import SPLITS
from .numbering import Numbering
from .pieces import Pieces
from .plan import TablePlan

#: Columns of numbers that a piece holds beside the coded ones.
LABEL, TIME, SPLIT = "\0row label", "\0row time", "\0row split"


class Rows:
    """Files of one number a row, in the order of the input; ``None`` for what the table has not.

    ``part`` int8 (0 train, 1 valid, 2 test), ``user`` int32 (from 0, by first appearance), ``time`` of the source's
    type, ``event`` (its place among the events of all histories), ``begin`` and ``end`` (the places of its own).
    """

    NAMES = ("part", "user", "time", "event", "begin", "end")
    part: ArrayFile
    user: ArrayFile | None
    time: ArrayFile | None
    event: ArrayFile | None
    begin: ArrayFile | None
    end: ArrayFile | None

    def __init__(self, *directories: Path):
        for name in self.NAMES:
            found = [d / f"{name}.npy" for d in directories if (d / f"{name}.npy").exists()]
            setattr(self, name, ArrayFile.open(found[0]) if found else None)


def arrange(
    pieces: Pieces, plan: TablePlan, directory: Path, named: np.ndarray | None, shown: Path, only_test: bool = False,
    where: str = "", left_out: str = "",
) -> dict:
    """Writes the files of ``Rows`` and returns ``{"users": their number or None}``, and of a split by order whose rows have times
    ``"out_of_order"``, how many of them are earlier than the row before.

    ``named`` int8 [R]: the split of each row, unless the pieces hold it. ``only_test``: every row is for test.

    Raises ``InputError``, from ``where`` to ``left_out``, when a split gets no row.
    """
    rows, users = pieces.rows, None

    def new(name: str, dtype: np.dtype | type) -> ArrayFile:
        return ArrayFile(directory / f"{name}.npy", dtype, rows, shown)

    if plan.time is not None:
        time = new("time", pieces.plain(0, TIME).dtype)
        for piece, bounds in enumerate(pieces.bounds):
            time.put(slice(*bounds), pieces.plain(piece, TIME))
    if plan.user is not None:
        user = new("user", np.int32)
        users = len(number_users(pieces, plan.user, user))
    built = bool(plan.history) and not plan.history[0].ready and not plan.logged
    if built or (plan.split.by == "leave_one_out" and not only_test):
        event, begin, end = (new(name, index_type(rows)) for name in ("event", "begin", "end"))
        order.timeline(user.map(), time.map(), event.map(True), begin.map(True), end.map(True))
    elif plan.history and not plan.logged:
        begin, end = new("begin", np.int64), new("end", np.int64)
        _ready(pieces, plan.history[0].column, begin, end)
    part = new("part", np.int8).map(writable=True)
    by, parts = plan.split.by, plan.split.parts
    if only_test:
        part[:] = SPLITS.index("test")
        return {"users": users}
    if by == "time" and plan.split.test_from is not None:
        split.before_and_after(part, parts, time.map(), plan.split.test_from)
    elif by == "time":
        split.by_time(part, parts, time.map())
    elif by == "order":
        split.by_order(part, parts)
    elif by == "random":
        split.at_random(part, parts, plan.split.seed)
    elif by == "leave_one_out":
        split.leave_one_out(part, user.map(), event.map(), begin.map(), users)
    elif named is not None:
        part[:] = named
    else:
        for piece, bounds in enumerate(pieces.bounds):
            part[slice(*bounds)] = pieces.plain(piece, SPLIT)
    split.check(part, plan.split, where, left_out)
    if by == "order" and plan.time is not None:
        return {"users": users, "out_of_order": _earlier(time.map())}
    return {"users": users}


def _earlier(time: np.ndarray) -> int:
    """How many times are below the one before them."""
    rows = len(time)
    return sum(int(np.count_nonzero(time[b.start + 1:b.stop + 1] < time[b.start:min(b.stop, rows - 1)])) for b in blocks(rows))


def number_users(pieces: Pieces, column: str, user: ArrayFile | None = None) -> Numbering:
    """Numbers users from 0 by first appearance, and fills ``user`` with the number of each row's."""
    known = Numbering(pieces.values(0, column).head(0))
    for piece, bounds in enumerate(pieces.bounds):
        coded = pieces.coded(piece, column)
        numbers = known.add(coded.values)
        if user is not None:
            user.put(slice(*bounds), numbers[coded.codes])
    return known


def _ready(pieces: Pieces, column: str, begin: ArrayFile, end: ArrayFile) -> None:
    """Where the elements of each row's own list lie among those of all rows."""
    before = 0
    for piece, bounds in enumerate(pieces.bounds):
        ends = before + np.cumsum(pieces.coded(piece, column).lengths, dtype=np.int64)
        begin.put(slice(*bounds), np.append(before, ends[:-1]))
        end.put(slice(*bounds), ends)
        before = ends[-1]


def place(
    pieces: Pieces,
    plan: TablePlan,
    rows: Rows,
    encoder: Callable[[str], Encoder],
    directory: Path,
    dropped: dict[str, int],
    shown: Path,
    only_test: bool = False,
    where: str = "",
) -> dict:
    """Leaves out rows that cannot serve and writes ``place.npy``: where each row is stored, -1 for one left out.

    Rows are stored by split, then time, then position in the input. Returns ``splits`` (name: first and last row)
    and ``dropped``, completed.

    Raises ``InputError``, which begins with ``where``, when a split has no rows left.
    """
    places = ArrayFile(directory / "place.npy", index_type(pieces.rows), pieces.rows, shown)
    counts, dropped = np.zeros(len(SPLITS), np.int64), dict(dropped)
    for piece, (start, stop) in enumerate(pieces.bounds):
        keep = np.ones(stop - start, bool)
        for reason, good in _conditions(pieces, plan, rows, encoder, piece):
            dropped[reason] = dropped.get(reason, 0) + int((keep & ~good).sum())
            keep &= good
        places.put(slice(start, stop), keep.astype(places.dtype) - 1)
        counts += np.bincount(rows.part.read(start, stop)[keep], minlength=len(SPLITS))
    ends = [0, *np.cumsum(counts).tolist()]
    splits = dict(zip(SPLITS, zip(ends, ends[1:], strict=False), strict=True))
    for name, (first, last) in splits.items():
        if first == last and not (only_test and name != "test"):
            why = {reason: count for reason, count in dropped.items() if count}
            raise InputError(f"{where}the {name} split is empty after leaving out rows: {why}")
    if rows.time is None:
        _in_input_order(places, rows.part, ends[:-1])
    else:
        _in_time(places, rows.part, rows.time)
    return {"splits": splits, "dropped": dropped}


def _conditions(
    pieces: Pieces, plan: TablePlan, rows: Rows, encoder: Callable[[str], Encoder], piece: int
) -> Iterator[tuple[str, np.ndarray]]:
    """Why rows of a piece may have to be left out, and which stay."""
    start, stop = pieces.bounds[piece]
    if plan.min_history:
        length = rows.end.read(start, stop) - rows.begin.read(start, stop)
        yield f"history shorter than {plan.min_history}", length >= plan.min_history
    if plan.task == "retrieval":
        # An item that training never saw cannot be ranked, nor learnt as an answer.
        yield "unknown item", encoder(plan.item_vocabulary).apply(pieces.coded(piece, plan.item)) > 0


def _in_input_order(places: ArrayFile, part: ArrayFile, begins: list[int]) -> None:
    at = list(begins)
    for block in blocks(places.length):
        found, parts = places.read(block.start, block.stop), part.read(block.start, block.stop)
        for i in range(len(SPLITS)):
            mine = np.flatnonzero((found >= 0) & (parts == i))
            found[mine] = np.arange(at[i], at[i] + len(mine))
            at[i] += len(mine)
        places.put(block, found)


def _in_time(places: ArrayFile, part: ArrayFile, time: ArrayFile) -> None:
    sequence, found, at = np.lexsort((time.map(), part.map())), places.map(writable=True), 0
    for block in blocks(places.length):
        here = sequence[block]
        here = here[found[here] >= 0]
        found[here] = np.arange(at, at + len(here))
        at += len(here)
