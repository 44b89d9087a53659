"""Any csv or parquet table, its meaning given by a schema JSON (format: docs/data.md)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from ..errors import InputError
from ..schema import read_json
from .build import Progress, build
from .plan import SplitPlan, TablePlan
from .reading import Table, TableReader, data_files
from .table_checks import (
    Times,
    check_labels,
    check_lengths,
    check_splits,
    missing,
    with_ids,
    with_lists,
    with_whole_numbers,
)
from .table_schema import load_plan
from .work import check_output

_LABEL, _TIME = "\0label", "\0time"


def prepare_table(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    schema_path: str | Path,
    *,
    overwrite: bool = False,
    like: str | Path | None = None,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares a table and returns the statistics.

    Args:
        input_paths: csv or tsv (compressed too) or parquet files with the same columns, or directories of them.
        output_dir: appears whole or not at all.
        schema_path: the table schema, JSON; says which columns mean what.
        overwrite: replace what ``output_dir`` holds.
        like: a prepared directory of the same schema, whose vocabularies are taken: every row is for test then, and
            labels may be missing.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file or column is missing, the schema is malformed, a label is missing or not 0 or 1, an
            id is outside its range, … (named with file, column and line), or ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)  # before the work, not after it
    plan, separator = load_plan(schema_path)
    if like is not None:  # every row is for test
        plan = replace(plan, split=SplitPlan("order"))
    paths = data_files([input_paths] if isinstance(input_paths, str | Path) else input_paths)
    for whole in (True, False):
        source = TableSource(paths, plan, separator, whole, labelled=like is None)
        try:
            return build(
                source, source.plan, output_dir, kind="table", options={"schema": read_json(schema_path)},
                overwrite=overwrite, like=like, also_read=(schema_path,), on_progress=on_progress,
            )
        except Times.Fraction:
            # The first time with a fraction comes late: all are then numbers with one.
            if not whole:
                raise


class TableSource:
    """The rows of the files, checked, without those that have no user, time or item.

    ``plan``: as ``build`` wants it. ``labelled``: every row must have its label. ``whole``: times in text are whole
    numbers, if they are numbers; ``chunks`` raises ``Times.Fraction`` where they aren't.
    """

    def __init__(
        self, paths: Sequence[Path], plan: TablePlan, separator: str | None, whole: bool = True, labelled: bool = True
    ):
        self.files, self._given, self._whole, self._labelled = tuple(paths), plan, whole, labelled
        needed = labelled or plan.label in [h.column for h in plan.history]
        self.reader = TableReader(paths, _columns(plan), separator, optional=None if needed else plan.label)
        # Names of their own, so that the columns can be fields as well, as what they were read.
        self.plan = replace(plan, label=plan.label and _LABEL, time=plan.time and _TIME)
        self.dropped: dict[str, int] = {}

    @property
    def done(self) -> float:
        return self.reader.done

    def chunks(self) -> Iterator[pl.DataFrame]:
        plan, read = self._given, 0
        times = Times(self._whole)
        self.dropped = {f"missing {what}": 0 for what in ("user", "time", "item") if getattr(plan, what) is not None}
        for table in self.reader.pieces():
            read += table.frame.height
            frame = self._checked(table, times)
            if frame.height:
                yield frame
        if not read:
            raise InputError(f"{self.files[0]}: there are no rows")

    def _checked(self, table: Table, times: Times) -> pl.DataFrame:
        plan = self._given
        table = with_whole_numbers(with_ids(with_lists(table, plan), plan), plan)
        check_lengths(table, plan)
        new = {}
        if plan.task == "ctr" and plan.label in table.frame.columns:
            new[_LABEL] = check_labels(table, plan.label, optional=not self._labelled)
        if plan.time is not None:
            new[_TIME] = times.read(table, plan.time)
        if plan.split.by == "column":
            check_splits(table, plan.split.column)
        frame = table.frame.with_columns(**new)
        for what, column in (("user", plan.user), ("time", plan.time and _TIME), ("item", plan.item)):
            if column is not None:
                there = frame.filter(~missing(frame[column]))
                self.dropped[f"missing {what}"] += frame.height - there.height
                frame = there
        return frame


def _columns(plan: TablePlan) -> list[str]:
    names = [
        plan.label,
        plan.user,
        plan.time,
        plan.item,
        plan.split.column if plan.split.by == "column" else None,
    ]
    names += [f.column for f in plan.fields] + [h.column for h in plan.history]
    return list(dict.fromkeys(n for n in names if n is not None))
