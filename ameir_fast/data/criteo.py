"""Criteo's display advertising logs: label, 13 counts, 26 hashed categories (docs/data.md)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ..atomic import check_output_dir
from ..errors import InputError
from .build import Progress, build
from .delimited import Rows
from .inputs import Form, TextSource, header, label, named, text_files, whole_numbers
from .plan import FieldPlan, SplitPlan, TablePlan, VocabularyPlan

LABEL = "label"
COUNTS = tuple(f"I{i}" for i in range(1, 14))
HASHED = tuple(f"C{i}" for i in range(1, 27))
FIELDS = COUNTS + HASHED
NUMERIC = ("log2", "log", "none")
SPLITS = ("order", "random")
#: The token of a missing count: no count has it.
MISSING = -(2**31)


def prepare_criteo(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    numeric: str = "log2",
    min_count: int = 10,
    split: str = "order",
    seed: int = 0,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares Criteo rows and returns the statistics.

    Args:
        input_paths: files, or folders of them, one after another: tab-separated with or without a header (Criteo's
            ``train.txt``, ``day_0.gz``), or comma-separated (Kaggle's ``train.csv``); gzip and zstandard too.
        output_dir: appears whole or not at all.
        numeric: what becomes of a count: ``log2`` (⌊(ln x)²⌋ from 3 on), ``log`` (⌊ln x⌋ from 3 on), or ``none``: every
            number a category of its own.
        min_count: values seen less often in the training rows are "unknown".
        split: ``order`` (the rows are in time order) or ``random``; 80 / 10 / 10 either way.
        seed: of the random split.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a row has another number of columns, a count is no number, a label
            is missing or not 0 or 1 (named with file and line), or ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    for name, value, known in (("numeric", numeric, NUMERIC), ("split", split, SPLITS)):
        if value not in known:
            raise InputError(f"{name} {value!r} is none of {', '.join(known)}")
    check_output_dir(output_dir, overwrite)  # before the work, not after it
    files = text_files(input_paths, "train")
    forms = {path: form(path) for path in files}
    for path, found in forms.items():
        if LABEL not in found.names:
            raise InputError(f"{path}: has no labels; training, validation and test rows need them")
    options = {"numeric": numeric, "min_count": min_count, "split": split}
    return build(
        source(forms, numeric),
        plan(numeric, min_count, SplitPlan(split, seed=seed)),
        output_dir,
        kind="criteo",
        options=options | ({"seed": seed} if split == "random" else {}),
        overwrite=overwrite,
        on_progress=on_progress,
    )


def plan(numeric: str, min_count: int, split: SplitPlan) -> TablePlan:
    """39 categorical fields with vocabularies of their own."""
    return TablePlan(
        task="ctr",
        label=LABEL,
        fields=tuple(FieldPlan(name, name, name) for name in FIELDS),
        vocabularies={name: VocabularyPlan(min_count=min_count) for name in FIELDS},
        split=split,
    )


def source(forms: dict[Path, Form], numeric: str) -> TextSource:
    """Frames of the label (where there is one), the counts as tokens, and the categories as text."""

    def frame(rows: Rows) -> pl.DataFrame:
        labels = [label(rows, LABEL).to_frame()] if LABEL in rows.frame.columns else []
        return pl.concat([*labels, _tokens(rows, numeric), rows.frame.select(HASHED)], how="horizontal")

    return TextSource(forms, (LABEL, *COUNTS), frame)


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


def _tokens(rows: Rows, numeric: str) -> pl.DataFrame:
    """The counts as integers, one a category.

    The solution that won the challenge (Juan, Zhuang and Chin, "3 Idiots' Approach for Display Advertising Challenge",
    2014) keeps values up to 2 as they are, missing ones too, and takes ⌊(ln x)²⌋ of the rest. Its small values and
    logarithms are distinct categories, hence + 2.
    """
    if numeric == "none":
        return pl.DataFrame([whole_numbers(rows, name).fill_null(MISSING) for name in COUNTS])
    counts = rows.frame.select(COUNTS)
    for name in COUNTS:
        if not counts[name].dtype.is_integer():
            counts = counts.with_columns(rows.number(name, missing=True).floor().clip(lower_bound=MISSING + 1))
    count = pl.col(COUNTS)
    logarithm = count.log()
    # Not a number, or infinite, where it is not used: such casts give null.
    bucket = (logarithm * logarithm if numeric == "log2" else logarithm).cast(pl.Int32, strict=False) + 2
    small = count.cast(pl.Int32, strict=False)
    return counts.select(pl.when(count > 2).then(bucket).otherwise(small).fill_null(MISSING))
