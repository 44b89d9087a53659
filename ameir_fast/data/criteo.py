"""Criteo's display advertising logs: label, 13 counts, 26 hashed categories (docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import polars as pl

from ..errors import InputError
from .build import Progress, build
from .delimited import Rows
from .inputs import Form, as_it_is, forms_of, header, label, named, options_like, text_files, whole_numbers
from .plan import FieldPlan, SplitPlan, TablePlan, VocabularyPlan, parts_given, split_plan
from .text_source import Derived, TextSource
from .work import check_output

NAME, LABEL = "criteo", "label"
COUNTS = tuple(f"I{i}" for i in range(1, 14))
HASHED = tuple(f"C{i}" for i in range(1, 27))
FIELDS = COUNTS + HASHED
NUMERIC = ("log2", "log", "quantile", "none")
SPLITS = ("order", "random")
#: The token of a missing count: no count has it.
MISSING = -(2**31)


def prepare_criteo(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    numeric: str | None = None,
    bins: int | None = None,
    min_count: int | None = None,
    split: str | None = None,
    parts: Sequence[float] | None = None,
    seed: int | None = None,
    like: str | Path | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares Criteo rows and returns the statistics.

    Args:
        input_paths: files, or folders of them, one after another: tab-separated with or without a header (Criteo's
            ``train.txt``, ``day_0.gz``), or comma-separated (Kaggle's ``train.csv``); gzip and zstandard too.
        output_dir: appears whole or not at all.
        numeric: what becomes of a count: ``log2`` (⌊(ln x)²⌋ from 3 on; the default), ``log`` (⌊ln x⌋ from 3 on),
            ``quantile`` (ranges of as many training rows each), or ``none``: every number a category of its own.
        bins: of ``quantile``, how many; default 100.
        min_count: values seen less often in the training rows are "unknown"; default 10.
        split: ``order`` (the rows are in time order; the default) or ``random``.
        parts: shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        seed: of the random split; default 0. Others have none.
        like: a prepared directory whose vocabularies and options are taken. Every row is for test then, and labels may
            be missing, as in the challenge's ``test.txt``.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a row has another number of columns, a count is no number, a label
            is missing or not 0 or 1 (named with file and line), options contradict each other or ``like``, or
            ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    if like is not None:
        if split is not None or parts is not None or seed is not None:
            raise InputError("split, parts and seed do not go with like: every row is for test")
        found = options_like(like, NAME, {"numeric": numeric, "bins": bins, "min_count": min_count})
        numeric, bins, min_count = found["numeric"], found.get("bins"), found["min_count"]
    numeric, split = numeric or "log2", split or "order"
    min_count = 10 if min_count is None else min_count
    for name, value, known in (("numeric", numeric, NUMERIC), ("split", split, SPLITS)):
        if value not in known:
            raise InputError(f"{name} {value!r} is none of {', '.join(known)}")
    if bins is not None and numeric != "quantile":
        raise InputError(f"bins go with numeric quantile, not with {numeric}")
    if numeric == "quantile":
        bins = bins or 100
    check_output(output_dir, overwrite)  # before the work, not after it
    files = text_files(input_paths, "train" if like is None else "test")
    forms = forms_of(files, form, LABEL, like)
    options = {"numeric": numeric, "bins": bins, "min_count": min_count, "split": split if like is None else None,
               "seed": (seed or 0) if split == "random" else None, **parts_given(parts)}
    return build(
        source(forms, numeric, unlabelled=like is not None),
        plan(bins, min_count, split_plan(split, parts, seed=seed)),
        output_dir,
        kind=NAME,
        options={name: value for name, value in options.items() if value is not None},
        overwrite=overwrite,
        like=like,
        on_progress=on_progress,
    )


def plan(bins: int | None, min_count: int, split: SplitPlan) -> TablePlan:
    """39 categorical fields with vocabularies of their own; counts come as tokens, or as numbers to cut into ``bins``."""
    learnt = VocabularyPlan(min_count=min_count)
    counts = learnt if bins is None else VocabularyPlan(bins=bins)
    return TablePlan(
        task="ctr",
        label=LABEL,
        fields=tuple(FieldPlan(name, name, name) for name in FIELDS),
        vocabularies=dict.fromkeys(COUNTS, counts) | dict.fromkeys(HASHED, learnt),
        split=split,
    )


def source(forms: dict[Path, Form], numeric: str, unlabelled: bool = False) -> TextSource:
    """The label (where there is one), the counts by ``numeric``, and the categories as text."""
    labelled = all(LABEL in form.names for form in forms.values())
    columns = [Derived(LABEL, LABEL, partial(label, column=LABEL, missing=unlabelled))] if labelled else []
    columns += [Derived(name, name, partial(_count, name=name, numeric=numeric)) for name in COUNTS]
    columns += [Derived(name, name, partial(as_it_is, column=name)) for name in HASHED]
    return TextSource(forms, (LABEL, *COUNTS), columns)


def form(path: Path) -> Form:
    """How a file writes its rows, from its first line."""
    separator, cells = header(path)
    names = named(path, cells, (LABEL, *FIELDS))
    if all(name in names for name in FIELDS):
        return Form(separator, None, names)
    if len(cells) not in (len(FIELDS), len(FIELDS) + 1):
        raise InputError(f"{path}: line 1 has {len(cells)} columns; Criteo's rows have {len(FIELDS) + 1} (label, I1 to "
                         f"I13, C1 to C26), {len(FIELDS)} without label")
    columns = [*((LABEL,) if len(cells) > len(FIELDS) else ()), *FIELDS]
    return Form(separator, columns, {name: name for name in columns})


def _count(rows: Rows, name: str, numeric: str) -> pl.Series:
    """A count as integers, one a category; for ``quantile`` as it is.

    The solution that won the challenge (Juan, Zhuang and Chin, "3 Idiots' Approach for Display Advertising Challenge",
    2014) keeps values up to 2 as they are, missing ones too, and takes ⌊(ln x)²⌋ of the rest. Its small values and
    logarithms are distinct categories, hence + 2.
    """
    if numeric == "none":
        return whole_numbers(rows, name).fill_null(MISSING)
    if numeric == "quantile":
        return rows.number(name, missing=True)
    counts = rows.frame[name]
    if not counts.dtype.is_integer():
        counts = rows.number(name, missing=True).floor()
    counts = counts.clip(lower_bound=MISSING + 1)
    logarithm = counts.log()
    # Not a number, or infinite, where it is not used: such casts give null.
    bucket = (logarithm * logarithm if numeric == "log2" else logarithm).cast(pl.Int32, strict=False) + 2
    small = counts.cast(pl.Int32, strict=False)
    return pl.select(pl.when(counts > 2).then(bucket).otherwise(small).fill_null(MISSING)).to_series()
