"""From the chunks of a source to a prepared directory, in stages that never hold all rows."""

from __future__ import annotations

import functools
import hashlib
import os
import threading
from collections.abc import Callable, Container, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from ..progress import LineProgress, count, show_rate
from ..progress import Progress as Stages
from . import vocabulary
from .arrays import ArrayFile
from .coding import Coded, CodedRows
from .encoder import Encoder
from .events import EventLog, collect
from .files import SPLITS, VERSION, file_name
from .like import Like
from .output import Columns
from .pieces import LAYOUT, Pieces, regrouped
from .plan import TablePlan
from .rows import LABEL, SPLIT, TIME, Rows, arrange, number_users, place
from .source import Source, left_out, named, no_rows_left
from .statistics import statistics
from .work import Work, identity_of, open_work
from .writer import DirectoryWriter

Progress = Callable[[str], None]

STAGES = ("read", "split", "events", "vocabularies", "order", "write")
_THREADS = min(8, os.cpu_count() or 1)


def build(
    source: Source,
    plan: TablePlan,
    output: str | Path,
    *,
    kind: str,
    options: dict,
    named_split: np.ndarray | None = None,
    more_statistics: Callable[[], dict] = dict,
    overwrite: bool = False,
    like: str | Path | None = None,
    also_read: Sequence[str | Path] = (),
    on_progress: Progress | None = None,
) -> dict:
    """Writes the prepared directory ``output`` and returns its statistics.

    ``source``'s chunks have the columns that ``plan`` names, checked: a label of 0 and 1, a time without gaps, lists
    where the plan wants lists, and train, valid or test in the column of a split by column (unless ``named_split``
    int8 [R] says 0, 1 or 2 for each row). Its row order breaks ties between equal times. ``options`` goes into
    ``dataset.json``. ``like``: a prepared directory whose vocabularies and ranges are taken; every row is for test
    then, and labels may be missing, or the whole column of them. ``also_read``: files beside ``source.files`` that must not lie
    in ``output``, which is replaced. ``on_progress`` gets lines of text, or is a
    ``progress.Progress`` that is shown the stages.

    The chunks are read once, into pieces on the disk beside the output, and memory doesn't grow with the rows except
    where there are users or times: some 40 bytes a row then. The directory appears whole or not at all. Work that was
    killed or interrupted goes on at the first unfinished stage when ``build`` is called with the same kind, options
    and plan, and ``source.files`` have not changed; whatever else decides what ``source`` yields must therefore be
    among ``options``. For a source without files it always begins anew: then ``more_statistics`` may speak of the
    chunks, what it returns goes into ``statistics.json``.

    Raises ``InputError`` when the output is in use, a split has no rows or the plan doesn't fit ``like``, ``OSError``
    when the disk is full.
    """
    output, model = Path(output), None if like is None else Like(Path(like), plan)
    progress = on_progress if isinstance(on_progress, Stages) else LineProgress(on_progress)
    for path in map(Path, (*source.files, *also_read, *(() if like is None else (like,)))):
        if output.exists() and path.resolve().is_relative_to(output.resolve()):
            what = "is" if path.resolve() == output.resolve() else "lies in"
            raise InputError(f"{path}: {what} the output directory {output}, which would be replaced; choose another one")
    part = None if named_split is None else hashlib.sha256(np.ascontiguousarray(named_split)).hexdigest()
    identity = identity_of(
        source.files, version=VERSION, pieces=LAYOUT, output=output.name, kind=kind, options=options, plan=asdict(plan), named=part,
        like=model and model.checksum,
    )
    with open_work(output, identity, STAGES[-1], overwrite) as work, ThreadPoolExecutor(_THREADS) as pool:
        building = _Build(work, source, plan, named_split, model, more_statistics, progress, pool)
        try:
            return building.run({"kind": kind, "task": plan.task}, options)
        except KeyboardInterrupt:
            if identity is not None:
                progress.note("interrupted; the same command again goes on with the unfinished stage")
            raise
        finally:
            building.stop.set()


class _Build:
    def __init__(
        self,
        work: Work,
        source: Source,
        plan: TablePlan,
        named_split: np.ndarray | None,
        like: Like | None,
        more_statistics: Callable[[], dict],
        progress: Stages,
        pool: ThreadPoolExecutor,
    ):
        self.work, self.source, self.plan, self.named_split, self.like = work, source, plan, named_split, like
        self.more_statistics, self.progress, self.pool = more_statistics, progress, pool
        self.encoder = functools.lru_cache(maxsize=_THREADS)(self._load_encoder)
        self.stop = threading.Event()
        self.log: EventLog | None = None
        self._lock, self._moved = threading.Lock(), 0
        self._coded = tuple(dict.fromkeys(c for name in plan.vocabulary_names for c in plan.columns_of(name)))
        # What is counted or numbered, but not encoded.
        others = (plan.user, next((f.column for f in plan.fields if f.name in plan.target), None))
        self._coded += tuple(c for c in dict.fromkeys(others) if c is not None and c not in self._coded)
        self._plain = {LABEL: plan.label, TIME: plan.time}
        if plan.split.by == "column" and named_split is None and like is None:
            self._plain[SPLIT] = plan.split.column
        self._plain = {name: column for name, column in self._plain.items() if column is not None}

    def run(self, about: dict, options: dict) -> dict:
        work = self.work
        silent = ("order",) if self.plan.logged else ("order", "events")
        self.progress.plan(self.progress.stages + sum(not work.finished(s) for s in STAGES if s not in silent))
        read = work.stage("read", self._read)
        self.pieces = Pieces(work.path("read"), self._coded, self._plain, read["heights"])
        arranged = work.stage("split", functools.partial(self._split, read["dropped"]))
        self.rows, dropped = Rows(work.path("split")), read["dropped"]
        if self.plan.logged:
            dropped |= work.stage("events", self._events)["dropped"]
            self.rows = Rows(work.path("events"), work.path("split"))
            self.log = EventLog(work.path("events"), self.plan)
        self.sizes = work.stage("vocabularies", self._vocabularies)
        placed = work.stage("order", functools.partial(self._order, dropped))
        more = {"without_attributes": read["without_attributes"]} if read["without_attributes"] else {}
        if arranged.get("out_of_order"):
            more["out_of_order"] = arranged["out_of_order"]
        found = work.stage("write", functools.partial(self._write, placed, arranged["users"], more, about, options))
        work.move("write", STAGES[:-1])
        return found

    # ---- stages ---------------------------------------------------------------------------------

    def _read(self, directory: Path) -> dict:
        pieces, shown = Pieces(directory, self._coded, self._plain), self.work.output
        self.progress.start("read", None, "row")
        with ThreadPoolExecutor(1) as writer:
            # The next piece is read while the one before is coded and written.
            last = None
            for frame in regrouped(self._chunks()):
                if last is not None:
                    last.result()
                last = writer.submit(pieces.add, frame, self.pool, shown)
            if last is None:
                raise no_rows_left(self.source)
            last.result()
        self._finish(pieces.rows)
        return {
            "heights": [stop - start for start, stop in pieces.bounds],
            "dropped": dict(self.source.dropped),
            "without_attributes": dict(getattr(self.source, "without_attributes", {})),
        }

    def _chunks(self) -> Iterator[pl.DataFrame | CodedRows]:
        rows = 0
        for frame in self.source.chunks():
            rows += frame.height
            share = self.source.done
            self.progress.total = round(rows / share) if share > 0 else None
            self.progress.update(rows)
            yield self._coded_rows(frame) if isinstance(frame, CodedRows) else self._frame(frame)

    def _frame(self, frame: pl.DataFrame) -> pl.DataFrame:
        """The columns of a piece."""
        if self._unlabelled(frame.columns):
            frame = frame.with_columns(pl.lit(None, pl.Float32).alias(self.plan.label))
        return frame.select(*self._coded, *(_numbers(frame[c], name) for name, c in self._plain.items()))

    def _coded_rows(self, rows: CodedRows) -> CodedRows:
        """The columns of a piece."""
        columns = dict(rows.columns)
        if self._unlabelled(columns):
            columns[self.plan.label] = Coded(np.zeros(rows.height, np.uint8), pl.Series([None], dtype=pl.Float32))
        plain = {name: columns[c].mapped(_numbers(columns[c].values, name)) for name, c in self._plain.items()}
        return CodedRows({name: columns[name] for name in self._coded} | plain, rows.height)

    def _unlabelled(self, columns: Container[str]) -> bool:
        return self.like is not None and self.plan.label is not None and self.plan.label not in columns

    def _split(self, dropped: dict[str, int], directory: Path) -> dict:
        self.progress.start("split", self.pieces.rows, "row")
        only_test = self.like is not None
        found = arrange(self.pieces, self.plan, directory, self.named_split, self.work.output, only_test,
                        named(self.source), left_out(dropped))
        self._finish(self.pieces.rows)
        return found

    def _events(self, directory: Path) -> dict:
        self.progress.start("events", None, "event")
        users, events = number_users(self.pieces, self.plan.user), 0

        def moved(count: int) -> None:
            nonlocal events
            events, share = count, self.source.done
            self.progress.total = round(count / share) if share > 0 else None
            self.progress.update(count)

        found = collect(self.source, self.plan, self.rows, users, directory, self.work.output, moved)
        self._finish(events, "event")
        return found

    def _vocabularies(self, directory: Path) -> dict:
        names = self.plan.vocabulary_names
        moved = self._start("vocabularies", len(names))

        def learn(number_and_name: tuple[int, str]) -> int:
            number, name = number_and_name
            encoder = self._learn(name, moved) if self.like is None else self.like.encoder(name)
            encoder.save(directory / f"{number}.arrow", self.work.output)
            return encoder.size

        sizes = dict(zip(names, self.pool.map(learn, enumerate(names)), strict=True))
        self._finish(self.pieces.rows)
        return sizes

    def _learn(self, name: str, moved: Callable[[int], None]) -> Encoder:
        logged = {h.column for h in self.plan.history if h.logged and h.vocabulary == name}
        counts = [self.log.counts(column) for column in sorted(logged)]
        return vocabulary.learn(name, self.plan, self.pieces, self.rows.part, moved, counts)

    def _order(self, dropped: dict[str, int], directory: Path) -> dict:
        only_test = self.like is not None
        return place(self.pieces, self.plan, self.rows, self.encoder, directory, dropped, self.work.output, only_test,
                     named(self.source))

    def _write(self, placed: dict, users: int | None, more: dict, about: dict, options: dict, directory: Path) -> dict:
        pieces, plan, sizes = self.pieces, self.plan, self.sizes
        writer = DirectoryWriter(directory, self.work.output)
        places = ArrayFile.open(self.work.path("order") / "place.npy")
        found = statistics(pieces, plan, self.rows, places, users, {**placed, "vocabularies": sizes})
        found |= more | self.more_statistics()
        columns = Columns(writer, pieces, plan, self.rows, places, found["rows"], self.encoder, self.log,
                          placed["splits"] if plan.task == "ctr" else {})
        columns.write(self.pool, self._start("write", len(columns)))
        for split, shares in columns.unknown.items():
            found["splits"][split]["unknown_share"] = {f.name: shares[f.name] for f in plan.fields if f.name in shares}
        for name in plan.vocabulary_names:
            if (stored := self.encoder(name).to_json()) is not None:
                writer.json(f"vocabularies/{file_name(name)}.json", stored)
        full, default = (schema.to_dict() for schema in plan.schemas(sizes))
        writer.json("schema.json", default)
        writer.json("statistics.json", found)
        about = {
            "version": VERSION,
            **about,
            "rows": found["rows"],
            "splits": placed["splits"],
            "all_fields": full["fields"],
            "vocabularies": full["vocabularies"],
            "options": options,
            **({} if self.like is None else {"like": self.like.checksum}),
            "checksums": dict(sorted(writer.checksums.items())),
        }
        writer.json("dataset.json", about)
        self._finish(pieces.rows)
        return found

    def _load_encoder(self, name: str) -> Encoder:
        number = self.plan.vocabulary_names.index(name)
        return Encoder.load(self.work.path("vocabularies") / f"{number}.arrow", self.sizes[name])

    # ---- progress -------------------------------------------------------------------------------

    def _start(self, stage: str, times: int) -> Callable[[int], None]:
        """Opens a stage that goes through all rows several times; what is returned is told of rows done."""
        self.progress.start(stage, self.pieces.rows, "row")
        self._moved = 0

        def moved(rows: int) -> None:
            if self.stop.is_set():
                raise RuntimeError("stopped")
            with self._lock:
                self._moved += rows
                self.progress.update(self._moved // times)

        return moved

    def _finish(self, done: int, unit: str = "row") -> None:
        """Closes a stage with its number of rows and rate."""
        self.progress.update(done)
        self.progress.finish(f"{count(done, unit)}, {show_rate(self.progress.rate, unit)}")


def _numbers(values: pl.Series, name: str) -> pl.Series:
    """Labels as Float32, times as they are, splits as Int8."""
    if name == LABEL:
        values = values.cast(pl.Float32)
    elif name == SPLIT:
        texts = values.cast(pl.String)
        if len(wrong := (~texts.is_in(SPLITS)).fill_null(True).arg_true()):
            raise InputError(f"column {values.name!r} is {texts[wrong[0]]!r}, none of {', '.join(SPLITS)}")
        values = texts.replace_strict(SPLITS, range(len(SPLITS)), return_dtype=pl.Int8)
    return values.alias(name)
