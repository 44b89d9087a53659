"""The columns of a prepared directory, each encoded piece by piece into its file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

from . import order
from .arrays import ArrayFile, blocks
from .coding import Coded
from .encoder import Encoder
from .events import EventLog
from .files import file_name
from .pieces import Pieces
from .plan import FieldPlan, HistoryPlan, TablePlan, VocabularyPlan
from .rows import LABEL, Rows
from .writer import DirectoryWriter

Moved = Callable[[int], None]


class Columns:
    """Everything that is stored of each row; ``places`` say where a row goes, ``count`` how many are stored.

    Once written, ``unknown`` has the share of each split's rows (``splits``: the first and the end of each) whose value of a
    categorical field has no id of its own: unseen or too rare in training rows, or missing; ``None`` where there are no
    rows. Fields whose ids the files give have no share.
    """

    def __init__(
        self,
        writer: DirectoryWriter,
        pieces: Pieces,
        plan: TablePlan,
        rows: Rows,
        places: ArrayFile,
        count: int,
        encoder: Callable[[str], Encoder],
        log: EventLog | None = None,
        splits: Mapping[str, Sequence[int]] | None = None,
    ):
        self.writer, self.pieces, self.plan, self.rows = writer, pieces, plan, rows
        self.places, self.count, self.encoder, self.log = places, count, encoder, log
        self.splits = splits or {}
        self.unknown: dict[str, dict[str, float | None]] = {split: {} for split in self.splits}

    def write(self, pool: ThreadPoolExecutor, moved: Moved) -> None:
        """Writes them, several at a time. ``moved`` is told numbers that sum to ``len(self)`` times the rows."""
        for _ in pool.map(lambda task: task(moved), self._tasks()):
            pass

    def __len__(self) -> int:
        return len(self._tasks())

    def _tasks(self) -> list[Callable[[Moved], None]]:
        plan, rows = self.plan, self.rows
        tasks = [partial(self._field if f.kind == "categorical" else self._bag, f) for f in plan.fields]
        if plan.task == "ctr":
            tasks.append(partial(self._numbers, "label", np.float32, partial(self.pieces.plain, column=LABEL)))
        else:
            tasks.append(partial(self._ids, "items", plan.item, plan.item_vocabulary))
        tasks.append(self._users)
        kind = self._logged if plan.logged else self._ready if plan.history and plan.history[0].ready else self._events
        tasks += [partial(kind, h) for h in plan.history]
        if plan.history:
            for name, numbers in (("history_begin", rows.begin), ("history_end", rows.end)):
                tasks.append(partial(self._numbers, name, np.int64, partial(self._of_piece, numbers)))
        return tasks

    def _field(self, field: FieldPlan, moved: Moved) -> None:
        name = f"field.{file_name(field.name)}"
        self._ids(name, field.column, field.vocabulary, moved)
        if self.plan.vocabularies.get(field.vocabulary, VocabularyPlan()).size is not None:
            return  # its ids are the files' own, and 0 one of them
        column = ArrayFile.open(self.writer.directory / "columns" / f"{name}.npy")
        for split, (first, last) in self.splits.items():
            known = sum(np.count_nonzero(column.read(first + b.start, first + b.stop)) for b in blocks(last - first))
            self.unknown[split][field.name] = (last - first - known) / (last - first) if last > first else None

    def _ids(self, name: str, column: str, vocabulary: str, moved: Moved) -> None:
        encoder = self.encoder(vocabulary)
        self._numbers(name, np.int32, lambda piece: encoder.apply(self.pieces.coded(piece, column)), moved)

    def _numbers(self, name: str, dtype: type, values: Callable[[int], np.ndarray], moved: Moved) -> None:
        """A column of one number a row."""
        with self.writer.column(name, dtype, self.count) as file:
            for piece, stored, places in self._pieces(moved):
                file.put(places, _picked(values(piece), stored))

    def _bag(self, field: FieldPlan, moved: Moved) -> None:
        name, encoder = f"field.{file_name(field.name)}", self.encoder(field.vocabulary)

        def lists() -> Iterator[tuple[Coded, np.ndarray, np.ndarray | slice]]:
            for piece, stored, places in self._pieces(moved):
                yield self.pieces.coded(piece, field.column).without_missing(), stored, places

        with self.writer.column(f"{name}.offsets", np.int64, self.count + 1) as offsets:
            for column, stored, places in lists():
                after = slice(places.start + 1, places.stop + 1) if isinstance(places, slice) else places + 1
                offsets.put(after, _picked(column.lengths, stored))
            offsets.add_up()
        (total,) = offsets.read(self.count, self.count + 1).tolist()
        begins = offsets.map()
        moved = _nothing  # these rows have been counted
        with self.writer.column(f"{name}.ids", np.int32, total) as ids:
            for column, stored, places in lists():
                first, lengths = begins[places], _picked(column.lengths, stored)
                of_elements = None if stored is None else np.repeat(stored, column.lengths)
                ids.put(order.ranges(first, first + lengths), _picked(encoder.apply(column), of_elements))

    def _users(self, moved: Moved) -> None:
        if self.rows.user is not None:
            self._numbers("row_user", np.int32, partial(self._of_piece, self.rows.user), moved)
            return
        # Without users every row is somebody of its own.
        with self.writer.column("row_user", np.int32, self.count) as file:
            for block in blocks(self.count):
                file.put(block, np.arange(block.start, block.stop, dtype=np.int32))
        moved(self.pieces.rows)

    def _events(self, history: HistoryPlan, moved: Moved) -> None:
        encoder = self.encoder(history.vocabulary)
        with self.writer.column(f"events.{file_name(history.name)}", np.int32, self.pieces.rows) as file:
            for piece, (start, stop) in enumerate(self.pieces.bounds):
                ids = encoder.apply(self.pieces.coded(piece, history.column))
                file.put(self.rows.event.read(start, stop), ids)
                moved(stop - start)

    def _logged(self, history: HistoryPlan, moved: Moved) -> None:
        ids = self.encoder(history.vocabulary).encode(self.log.values(history.column))
        numbers = self.log.numbers(history.column)
        with self.writer.column(f"events.{file_name(history.name)}", np.int32, numbers.length) as file:
            for block in blocks(numbers.length):
                file.put(block, ids[numbers.read(block.start, block.stop)])
        moved(self.pieces.rows)

    def _ready(self, history: HistoryPlan, moved: Moved) -> None:
        encoder, at = self.encoder(history.vocabulary), 0
        (total,) = self.rows.end.read(self.pieces.rows - 1, self.pieces.rows).tolist()
        with self.writer.column(f"events.{file_name(history.name)}", np.int32, total) as file:
            for piece, (start, stop) in enumerate(self.pieces.bounds):
                ids = encoder.apply(self.pieces.coded(piece, history.column))
                file.put(slice(at, at + len(ids)), ids)
                at += len(ids)
                moved(stop - start)

    def _of_piece(self, numbers: ArrayFile, piece: int) -> np.ndarray:
        return numbers.read(*self.pieces.bounds[piece])

    def _pieces(self, moved: Moved) -> Iterator[tuple[int, np.ndarray | None, np.ndarray | slice]]:
        """Each piece, which of its rows are stored (``None``: all) and where those go."""
        for piece, (start, stop) in enumerate(self.pieces.bounds):
            places, stored = self.places.read(start, stop), None
            if places.min() < 0:
                stored = places >= 0
                places = places[stored]
            # In one go where the input is in the stored order.
            one_range = len(places) and places[-1] - places[0] == len(places) - 1 and (np.diff(places) == 1).all()
            yield piece, stored, slice(int(places[0]), int(places[-1]) + 1) if one_range else places
            moved(stop - start)


def _picked(values: np.ndarray, stored: np.ndarray | None) -> np.ndarray:
    return values if stored is None else values[stored]


def _nothing(rows: int) -> None:
    """Tells nobody."""
