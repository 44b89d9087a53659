"""Any csv or parquet table, its meaning given by a schema JSON (format: docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from ..atomic import check_output_dir
from ..errors import InputError
from ..schema import read_json
from .build import Progress, build
from .files import SPLITS
from .lists import flat, is_list, offsets
from .plan import TablePlan
from .reading import Table, data_files, read_tables
from .source import FrameSource
from .table_schema import load_plan

_LABEL, _TIME = "\0label", "\0time"
_TEXTS = (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
#: Dates and times in text. Numbers are tried first.
_TIME_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


def prepare_table(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    schema_path: str | Path,
    *,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares a table and returns the statistics.

    Args:
        input_paths: csv or tsv (gzipped too) or parquet files with the same columns, or directories of them.
        output_dir: appears whole or not at all.
        schema_path: the table schema, JSON; says which columns mean what.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file or column is missing, the schema is malformed, a label is missing or not 0 or 1, an
            id is outside its range, … (named with file, column and row), or ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output_dir(output_dir, overwrite)  # before the work, not after it
    plan, separator = load_plan(schema_path)
    paths = data_files([input_paths] if isinstance(input_paths, str | Path) else input_paths)
    if on_progress:
        on_progress(f"reading {len(paths)} files" if len(paths) > 1 else f"reading {paths[0]}")
    table = read_tables(paths, _columns(plan), separator)
    frame, plan, named, dropped = _checked(table, plan)
    return build(
        FrameSource(frame, tuple(paths), dropped),
        plan,
        output_dir,
        kind="table",
        options={"schema": read_json(schema_path)},
        named_split=named,
        overwrite=overwrite,
        on_progress=on_progress,
    )


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


def _checked(
    table: Table, plan: TablePlan
) -> tuple[pl.DataFrame, TablePlan, np.ndarray | None, dict[str, int]]:
    """The frame and plan as ``build`` wants them, the split of each row if a column says it, rows left out by
    reason.
    """
    if table.frame.is_empty():
        raise InputError(f"{table.files[0]}: there are no rows")
    table = _with_lists(table, plan)
    table = _with_ids(table, plan)
    table = _with_whole_numbers(table, plan)
    _same_lengths(table, plan)
    new = {}
    if plan.task == "ctr":
        new[_LABEL] = table.number(plan.label)
        table.refuse(
            (new[_LABEL] != 0) & (new[_LABEL] != 1),
            plan.label,
            lambda v: f"is {v!r}, a label that is neither 0 nor 1",
        )
    if plan.time is not None:
        new[_TIME] = _times(table, plan.time)
    named = _named(table, plan.split.column) if plan.split.by == "column" else None
    keep, dropped = np.ones(table.frame.height, bool), {}
    for what, values in (
        ("user", plan.user and table.frame[plan.user]),
        ("time", new.get(_TIME)),
        ("item", plan.item and table.frame[plan.item]),
    ):
        if values is not None:
            missing = _missing(values).to_numpy()
            dropped[f"missing {what}"] = int((keep & missing).sum())
            keep &= ~missing
    # Own names, so that the columns can be fields as well, as what they were read.
    frame = table.frame.with_columns(**new).filter(pl.Series(keep))
    plan = replace(plan, label=plan.label and _LABEL, time=plan.time and _TIME)
    return frame, plan, named if named is None else named[keep], dropped


def _missing(values: pl.Series) -> pl.Series:
    wrong = values.is_null()
    if values.dtype == pl.String:
        wrong |= (values == "").fill_null(True)
    return wrong | values.is_nan().fill_null(True) if values.dtype.is_float() else wrong


def _with_lists(table: Table, plan: TablePlan) -> Table:
    """Columns of several values as lists, text being parted at the separator; no other column is a list."""
    wanted = {f.column: f.separator for f in plan.fields if f.kind == "multi_categorical"}
    wanted |= {h.column: h.separator for h in plan.history if h.ready}
    single = {f.column for f in plan.fields if f.kind == "categorical"} | {
        h.column for h in plan.history if not h.ready
    }
    single |= {c for c in (plan.user, plan.item, plan.split.column) if c in table.frame.columns}
    frame, shown = table.frame, table.files[0]
    for column, separator in wanted.items():
        values = frame[column]
        if values.dtype == pl.String:
            if separator is None:
                raise InputError(f'{shown}: column {column!r} is text; its field needs a "separator"')
            # Nothing at all is no element, where splitting would make it an empty one.
            parted = values.set(_missing(values), None).str.split(separator)
            frame = frame.with_columns(parted.alias(column))
        elif not is_list(values):
            raise InputError(f"{shown}: column {column!r} holds {values.dtype}, neither lists nor text")
        if isinstance(frame[column].dtype.inner, pl.List | pl.Struct | pl.Array):
            raise InputError(f"{shown}: column {column!r} holds {values.dtype}, not lists of single values")
    for column in single:
        if isinstance(frame[column].dtype, pl.List | pl.Struct | pl.Array):
            raise InputError(
                f"{shown}: column {column!r} holds several values a row, but is used as a single one"
            )
    return replace(table, frame=frame)


def _with_ids(table: Table, plan: TablePlan) -> Table:
    """Columns that hold ids already as integers inside their range."""
    frame = table.frame
    for name in plan.vocabulary_names:
        vocabulary = plan.vocabulary(name)
        if vocabulary.size is None:
            continue
        for column in plan.columns_of(name):
            ids = _integers(replace(table, frame=frame), column)
            if vocabulary.on_unknown == "raise":
                outside = (flat(ids) < 0) | (flat(ids) >= vocabulary.size)
                for at in outside.fill_null(False).arg_true().head(1):
                    row = at if not is_list(ids) else int(np.searchsorted(offsets(ids), at, side="right")) - 1
                    raise InputError(
                        f"{table.where(row)}: column {column!r} holds the id {flat(ids)[at]}, outside "
                        f"0..{vocabulary.size - 1} of vocabulary {name!r}"
                    )
            frame = frame.with_columns(ids.alias(column))
    return replace(table, frame=frame)


def _with_whole_numbers(table: Table, plan: TablePlan) -> Table:
    """Floats as integers (what a missing value makes of an integer column in many tools); a fraction is an
    error.
    """
    frame = table.frame
    for column in dict.fromkeys(c for name in plan.vocabulary_names for c in plan.columns_of(name)):
        values = frame[column]
        inner = values.dtype.inner if is_list(values) else values.dtype
        if not (inner.is_numeric() or inner.is_temporal() or inner in _TEXTS):
            raise InputError(f"{table.files[0]}: column {column!r} holds {inner}, which is no category")
        if not inner.is_float():
            continue
        numbers = flat(values)
        for at in (numbers.is_finite() & (numbers != numbers.round())).fill_null(False).arg_true().head(1):
            row = at if not is_list(values) else int(np.searchsorted(offsets(values), at, side="right")) - 1
            raise InputError(
                f"{table.where(row)}: column {column!r} holds {numbers[at]}; a number with a fraction is no "
                "category, divide such a column into ranges first"
            )
        whole = pl.List(pl.Int64) if is_list(values) else pl.Int64
        frame = frame.with_columns(values.cast(whole, strict=False))  # NaN and infinity become missing
    return replace(table, frame=frame)


def _integers(table: Table, column: str) -> pl.Series:
    values = table.frame[column]
    inner = values.dtype.inner if is_list(values) else values.dtype
    if not inner.is_integer() and inner != pl.String:
        raise InputError(f"{table.files[0]}: column {column!r} holds {inner}, not ids")
    whole = pl.List(pl.Int64) if is_list(values) else pl.Int64
    if inner == pl.String and is_list(values):
        found = values.cast(whole, strict=False)
        lost = found.list.drop_nulls().list.len() != values.list.drop_nulls().list.len()
        table.refuse(lost.fill_null(False), column, lambda v: f"is {v.to_list()!r}, not a list of ids")
        return found
    found = values.cast(whole, strict=False)
    table.refuse(found.is_null() & ~_missing(values), column, lambda v: f"is {v!r}, not an id")
    return found


def _same_lengths(table: Table, plan: TablePlan) -> None:
    ready = [h.column for h in plan.history if h.ready]
    for column in ready[1:]:
        lengths, first = (
            table.frame[column].list.len().fill_null(0),
            table.frame[ready[0]].list.len().fill_null(0),
        )
        table.refuse(
            lengths != first,
            column,
            lambda v: (
                f"has {0 if v is None else len(v)} elements, another number "
                f"than column {ready[0]!r} in this row"
            ),
        )


def _times(table: Table, column: str) -> pl.Series:
    """Numbers as they are, dates and times as microseconds since 1970 (UTC)."""
    values = table.frame[column]
    if values.dtype.is_numeric():
        # Not a number is not a time: the row is left out like one without time.
        return values.fill_nan(None) if values.dtype.is_float() else values.cast(pl.Int64, strict=False)
    if values.dtype in (pl.Date, pl.Datetime):
        return (
            values.cast(pl.Datetime("us")).dt.epoch("us")
            if values.dtype == pl.Date
            else values.dt.epoch("us")
        )
    if values.dtype != pl.String:
        raise InputError(f"{table.files[0]}: column {column!r} holds {values.dtype}, not times")
    there = ~_missing(values)
    # The first time says whether they are numbers; one that is something else is then the one to complain of.
    if values.filter(there).head(1).cast(pl.Float64, strict=False).is_not_null().all():
        found = values.cast(pl.Int64, strict=False)  # exact, where a float would round nanoseconds
        if (found.is_null() & there).any():
            found = values.cast(pl.Float64, strict=False)
            table.refuse(
                found.is_null() & there, column, lambda v: f"is {v!r}, not a number as the first one is"
            )
            found = found.fill_nan(None)
        return found
    text = values.str.strip_suffix("Z")
    found = pl.select(
        pl.coalesce([text.str.to_datetime(f, strict=False, time_unit="us") for f in _TIME_FORMATS])
    )
    found = found.to_series()
    table.refuse(
        found.is_null() & there, column, lambda v: f"is {v!r}, neither a number nor an ISO 8601 time"
    )
    return found.dt.epoch("us")


def _named(table: Table, column: str) -> np.ndarray:
    values = table.frame[column].cast(pl.String)
    table.refuse(~values.is_in(list(SPLITS)), column, lambda v: f"is {v!r}, none of {', '.join(SPLITS)}")
    return values.replace_strict(list(SPLITS), list(range(len(SPLITS))), return_dtype=pl.Int8).to_numpy()
