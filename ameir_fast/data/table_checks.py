"""What the columns of a table must hold, checked piece by piece; errors name file, column and line."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import polars as pl

from ..errors import InputError
from .files import SPLITS
from .lists import flat, is_list, offsets
from .plan import TablePlan
from .reading import Table, missing

_TEXTS = (pl.String, pl.Boolean, pl.Categorical, pl.Enum)
#: Dates and times in text. Numbers are tried first.
_TIME_FORMATS = (
    "%Y-%m-%dT%H:%M:%S%.f",
    "%Y-%m-%d %H:%M:%S%.f",
    "%Y-%m-%dT%H:%M",
    "%Y-%m-%d %H:%M",
    "%Y-%m-%d",
)


def with_lists(table: Table, plan: TablePlan) -> Table:
    """Columns of several values as lists, text being parted at the separator; no other column is a list."""
    wanted = {f.column: f.separator for f in plan.fields if f.kind == "multi_categorical"}
    wanted |= {h.column: h.separator for h in plan.history if h.ready}
    single = {f.column for f in plan.fields if f.kind == "categorical"} | {
        h.column for h in plan.history if not h.ready
    }
    single |= {c for c in (plan.user, plan.item, plan.split.column) if c in table.frame.columns}
    frame, shown = table.frame, table.path
    for column, separator in wanted.items():
        values = frame[column]
        if values.dtype == pl.String:
            if separator is None:
                raise InputError(f'{shown}: column {column!r} is text; its field needs a "separator"')
            # Nothing at all is no element, where splitting would make it an empty one.
            parted = values.set(missing(values), None).str.split(separator)
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


def with_ids(table: Table, plan: TablePlan) -> Table:
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
                    raise InputError(
                        f"{table.where(_row(ids, at))}: column {column!r} holds the id {flat(ids)[at]}, outside "
                        f"0..{vocabulary.size - 1} of vocabulary {name!r}"
                    )
            frame = frame.with_columns(ids.alias(column))
    return replace(table, frame=frame)


def with_whole_numbers(table: Table, plan: TablePlan) -> Table:
    """Floats as integers (what a missing value makes of an integer column in many tools); a fraction is an
    error, except in columns that are to be cut into ranges.
    """
    frame = table.frame
    categories = [name for name in plan.vocabulary_names if plan.vocabulary(name).bins is None]
    for column in dict.fromkeys(c for name in plan.vocabulary_names for c in plan.columns_of(name)):
        values = frame[column]
        inner = values.dtype.inner if is_list(values) else values.dtype
        if not any(column in plan.columns_of(name) for name in categories):
            _check_numbers(table, column, values, inner)
            continue
        if not (inner.is_numeric() or inner.is_temporal() or inner in _TEXTS):
            raise InputError(f"{table.path}: column {column!r} holds {inner}, which is no category")
        if not inner.is_float():
            continue
        numbers = flat(values)
        for at in (numbers.is_finite() & (numbers != numbers.round())).fill_null(False).arg_true().head(1):
            raise InputError(
                f"{table.where(_row(values, at))}: column {column!r} holds {numbers[at]}; a number with a fraction "
                'is no category, let "bins" of its vocabulary cut it into ranges'
            )
        whole = pl.List(pl.Int64) if is_list(values) else pl.Int64
        frame = frame.with_columns(values.cast(whole, strict=False))  # NaN and infinity become missing
    return replace(table, frame=frame)


def _check_numbers(table: Table, column: str, values: pl.Series, inner: pl.DataType) -> None:
    if not inner.is_numeric() and inner not in (pl.String, pl.Boolean):
        raise InputError(f"{table.path}: column {column!r} holds {inner}, not numbers to cut into ranges")
    elements = flat(values)
    wrong = elements.cast(pl.Float64, strict=False).is_null() & ~missing(elements)
    for at in wrong.arg_true().head(1):
        raise InputError(f"{table.where(_row(values, at))}: column {column!r} holds {elements[at]!r}, not a number")


def _row(column: pl.Series, at: int) -> int:
    """The row of the element at position ``at``."""
    return int(np.searchsorted(offsets(column), at, side="right")) - 1 if is_list(column) else at


def _integers(table: Table, column: str) -> pl.Series:
    values = table.frame[column]
    inner = values.dtype.inner if is_list(values) else values.dtype
    if not inner.is_integer() and inner != pl.String:
        raise InputError(f"{table.path}: column {column!r} holds {inner}, not ids")
    whole = pl.List(pl.Int64) if is_list(values) else pl.Int64
    if inner == pl.String and is_list(values):
        found = values.cast(whole, strict=False)
        lost = found.list.drop_nulls().list.len() != values.list.drop_nulls().list.len()
        table.refuse(lost.fill_null(False), column, lambda v: f"is {v.to_list()!r}, not a list of ids")
        return found
    found = values.cast(whole, strict=False)
    table.refuse(found.is_null() & ~missing(values), column, lambda v: f"is {v!r}, not an id")
    return found


def check_lengths(table: Table, plan: TablePlan) -> None:
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


def check_labels(table: Table, column: str, optional: bool = False) -> pl.Series:
    """Labels as Float64, each 0 or 1, or null where they are ``optional``."""
    found = table.number(column, optional)
    table.refuse(((found != 0) & (found != 1)).fill_null(False), column, lambda v: f"is {v!r}, a label that is neither 0 nor 1")
    return found


class Times:
    """Times of one piece of a table after another. The first one in text says whether they are numbers; ``whole``:
    whole ones, of 64 bits, otherwise Float64.
    """

    class Fraction(Exception):
        """A number with a fraction where whole ones were expected."""

    def __init__(self, whole: bool):
        self._whole, self._numbers = whole, None

    def read(self, table: Table, column: str) -> pl.Series:
        """Numbers as they are, dates and times as microseconds since 1970 (UTC). What is missing stays so."""
        values = table.frame[column]
        if values.dtype.is_numeric():
            # What is no number, or endless, is not a time: the row is left out like one without time.
            return _finite(values) if values.dtype.is_float() else values.cast(pl.Int64, strict=False)
        if values.dtype == pl.Date:
            values = values.cast(pl.Datetime("us"))
        if isinstance(values.dtype, pl.Datetime):
            return values.dt.epoch("us")
        if values.dtype != pl.String:
            raise InputError(f"{table.path}: column {column!r} holds {values.dtype}, not times")
        there = ~missing(values)
        first = values.filter(there).head(1)
        if self._numbers is None and len(first):
            self._numbers = first.cast(pl.Float64, strict=False).is_not_null().all()
        return self._number(table, column, there) if self._numbers else _moment(table, column, there)

    def _number(self, table: Table, column: str, there: pl.Series) -> pl.Series:
        values = table.frame[column]
        exact = values.cast(pl.Int64, strict=False)  # where a float would round nanoseconds
        if self._whole and not (exact.is_null() & there).any():
            return exact
        found = values.cast(pl.Float64, strict=False)
        table.refuse(found.is_null() & there, column, lambda v: f"is {v!r}, not a number as the first one is")
        if self._whole:
            raise self.Fraction
        return _finite(found)


def _finite(values: pl.Series) -> pl.Series:
    return values.set(~values.is_finite(), None)


def _moment(table: Table, column: str, there: pl.Series) -> pl.Series:
    text = table.frame[column].str.strip_suffix("Z")
    formats = [text.str.to_datetime(f, strict=False, time_unit="us") for f in _TIME_FORMATS]
    found = pl.select(pl.coalesce(formats)).to_series()
    table.refuse(found.is_null() & there, column, lambda v: f"is {v!r}, neither a number nor an ISO 8601 time")
    return found.dt.epoch("us")


def check_splits(table: Table, column: str) -> None:
    values = table.frame[column].cast(pl.String)
    table.refuse(~values.is_in(list(SPLITS)), column, lambda v: f"is {v!r}, none of {', '.join(SPLITS)}")
