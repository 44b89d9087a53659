"""Avazu's mobile ad clicks: label, hour, 21 categories (docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import polars as pl

from ..errors import InputError
from .build import Progress, build
from .delimited import Rows, shown_number
from .inputs import Form, as_it_is, forms_of, header, label, named, options_like, text_files, whole_numbers
from .plan import FieldPlan, SplitPlan, TablePlan, VocabularyPlan, parts_given, split_plan
from .text_source import Derived, TextSource
from .work import check_output

NAME, LABEL, HOUR = "avazu", "click", "hour"
NUMBERED = ("C1", "banner_pos", "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22)))
HASHED = ("site_id", "site_domain", "site_category", "app_id", "app_domain", "app_category",
          "device_id", "device_ip", "device_model")
#: What the hour is made into, with the values that may occur; a week begins with Monday, 1.
CLOCK = {"hour": tuple(range(24)), "weekday": tuple(range(1, 8)), "weekend": (0, 1)}
FIELDS = (*CLOCK, "C1", "banner_pos", *HASHED, "device_type", "device_conn_type", *(f"C{i}" for i in range(14, 22)))
SPLITS = ("time", "order", "random")
_TIME = "time"


def prepare_avazu(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    min_count: int | None = None,
    split: str | None = None,
    parts: Sequence[float] | None = None,
    seed: int | None = None,
    like: str | Path | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares Avazu rows and returns the statistics.

    Args:
        input_paths: files in the form of Kaggle's ``train.gz``, or folders of them, one after another: comma-separated
            with a header; gzip and zstandard too.
        output_dir: appears whole or not at all.
        min_count: values seen less often in the training rows are "unknown"; default 2.
        split: by ``time`` (an hour is never parted; the default), ``order`` or ``random``.
        parts: shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        seed: of the random split; default 0. Others have none.
        like: a prepared directory whose vocabularies and options are taken. Every row is for test then, and labels may
            be missing, as in Kaggle's ``test.gz``.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a column is missing, a row has another number of columns, an hour is
            none, a label is missing or not 0 or 1 (named with file and line), options contradict ``like``, or
            ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    if like is not None:
        if split is not None or parts is not None or seed is not None:
            raise InputError("split, parts and seed do not go with like: every row is for test")
        min_count = options_like(like, NAME, {"min_count": min_count})["min_count"]
    split, min_count = split or "time", 2 if min_count is None else min_count
    if split not in SPLITS:
        raise InputError(f"split {split!r} is none of {', '.join(SPLITS)}")
    check_output(output_dir, overwrite)  # before the work, not after it
    files = text_files(input_paths, "train" if like is None else "test")
    forms = forms_of(files, form, LABEL, like)
    options = {"min_count": min_count, "split": split if like is None else None,
               "seed": (seed or 0) if split == "random" else None, **parts_given(parts)}
    return build(
        source(forms, unlabelled=like is not None),
        # Rows to score stay in the order of the file.
        plan(min_count, split_plan(split, parts, seed=seed)) if like is None
        else plan(min_count, SplitPlan("order"), None),
        output_dir,
        kind=NAME,
        options={name: value for name, value in options.items() if value is not None},
        overwrite=overwrite,
        like=like,
        on_progress=on_progress,
    )


def plan(min_count: int, split: SplitPlan, time: str | None = _TIME) -> TablePlan:
    """24 categorical fields with vocabularies of their own."""
    clock = {name: VocabularyPlan(values=values) for name, values in CLOCK.items()}
    return TablePlan(
        task="ctr",
        label=LABEL,
        time=time,
        fields=tuple(FieldPlan(name, name, name) for name in FIELDS),
        vocabularies={name: VocabularyPlan(min_count=min_count) for name in FIELDS} | clock,
        split=split,
    )


def source(forms: dict[Path, Form], unlabelled: bool = False) -> TextSource:
    """The label (where there is one), the time and what it is made into, numbers, and hashes as text."""
    labelled = all(LABEL in form.names for form in forms.values())
    columns = [Derived(LABEL, LABEL, partial(label, column=LABEL, missing=unlabelled))] if labelled else []
    columns += [Derived(name, HOUR, partial(_clock, name=name)) for name in (_TIME, *CLOCK)]
    columns += [Derived(name, name, partial(whole_numbers, column=name)) for name in NUMBERED]
    columns += [Derived(name, name, partial(as_it_is, column=name)) for name in HASHED]
    return TextSource(forms, (LABEL, HOUR, *NUMBERED), columns)


def form(path: Path) -> Form:
    """Where a file has its columns, from its header."""
    separator, cells = header(path)
    wanted = (LABEL, HOUR, *NUMBERED, *HASHED)
    names = named(path, cells, wanted)
    for name in wanted:
        if name not in names and name != LABEL:
            raise InputError(f"{path}: line 1 names no column {name!r}; Avazu's files begin with a header: id, click, "
                             "hour, C1, banner_pos, site_id, …")
    return Form(separator, None, names)


def _clock(rows: Rows, name: str) -> pl.Series:
    """Of the hour YYMMDDHH the ``time`` (seconds since 1970, UTC), hour of the day, weekday or weekend, Int64."""
    hours = rows.integer(HOUR)
    distinct = hours.unique()
    moments = [_moment(hour) for hour in distinct]
    if None in moments:
        rows.refuse(hours.is_in(distinct.filter(pl.Series([m is None for m in moments])).implode()), HOUR,
                    lambda v: f"is {shown_number(v)}, no hour of the form YYMMDDHH")
    of = {
        _TIME: lambda moment: int(moment.timestamp()),
        "hour": lambda moment: moment.hour,
        "weekday": lambda moment: moment.isoweekday(),
        "weekend": lambda moment: int(moment.isoweekday() > 5),
    }[name]
    return hours.replace_strict(distinct, pl.Series([of(moment) for moment in moments], dtype=pl.Int64))


def _moment(hour: int) -> datetime | None:
    year, month, day, hour = hour // 10**6, hour // 10**4 % 100, hour // 100 % 100, hour % 100
    try:
        return datetime(2000 + year, month, day, hour, tzinfo=UTC) if 0 <= year < 100 else None
    except ValueError:
        return None
