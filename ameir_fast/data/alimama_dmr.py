"""Taobao's display-advertising data as DMR's authors and PaddleRec give it: one line an impression, histories ready.

267 columns without a header, all numbers: 50 behaviours (their kinds, categories, brands; zeros in front where there
are fewer), 100 of masks, 9 of the user, 6 of the ad, the position, the click. Lyu et al., Deep Match to Rank, AAAI
2020, and its code.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl

from . import order
from .alimama import DEFAULT_FIELDS, MAX_HISTORY, OF_USERS, make_plan
from .blocks import Reading, each_once
from .build import Progress, build
from .delimited import Rows, read_delimited
from .plan import PARTS, HistoryPlan, SplitPlan, parts_given, split_plan
from .retrieval import input_files
from .work import check_output

_LENGTH = 50
COLUMNS = (
    *(f"{what} {i}" for what in ("btag", "cate", "brand", "mask", "match mask") for i in range(_LENGTH)),
    "user", *OF_USERS, "adgroup_id", "cate_id", "campaign_id", "customer", "brand", "price", "pid", "clk",
)
_FIELDS = (*DEFAULT_FIELDS, "adgroup_id", "campaign_id", "customer")
#: Where the published values begin at 1, so that 0 is what the authors put in for a missing one.
_ZERO_IS_MISSING = {"cate_id", "brand", "final_gender_code", "pvalue_level", "shopping_level", "new_user_class_level"}
_WHOLE = tuple(name for name in COLUMNS if name != "price")
#: What is only looked at: a text in these columns shows that a line is no such row.
_CHECKED = ("btag", "match mask")
_SPLIT = "\0split"


def prepare_alimama_dmr(
    input_paths: Sequence[str | Path],
    output_dir: str | Path,
    *,
    test_paths: Sequence[str | Path] = (),
    parts: Sequence[float] | None = None,
    seed: int | None = None,
    max_history: int = MAX_HISTORY,
    all_fields: bool = False,
    min_count: int = 1,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares files of 267 columns and returns the statistics.

    Args:
        input_paths: files, which may be compressed, or folders of them. No file may be given twice, here or as a test
            file.
        output_dir: appears whole or not at all.
        test_paths: files or folders of the test split. Then the rows of the others are parted at random, in the
            proportion of the first two ``parts``; without, all rows are: there is no time in this form.
        parts: shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        seed: of the random choice; default 0.
        max_history: newest behaviours.
        all_fields: whether ad, campaign and advertiser are in the default view; they are stored either way.
        min_count: occurrences in training that a value needs for an id of its own.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or malformed (named, with its line), ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)
    history = (HistoryPlan("history_cate", "history_cate", "cate", ready=True),
               HistoryPlan("history_brand", "history_brand", "brand", ready=True))
    train, test = input_files(input_paths), input_files(test_paths) if test_paths else ()
    each_once((*train, *test))
    split = split_plan("random", parts, seed=seed)
    source = DmrSource(train, test, split.seed, split.parts)
    if test:
        split = SplitPlan("column", column=_SPLIT)
    return build(
        source, make_plan(_FIELDS, history, max_history, all_fields, min_count, split, None), output_dir,
        kind="alimama",
        options={"form": "dmr", "test_files": len(test), "seed": seed or 0, "max_history": max_history,
                 "all_fields": all_fields, "min_count": min_count, **parts_given(parts)},
        overwrite=overwrite, on_progress=on_progress,
    )


class DmrSource:
    """One row an impression, with its behaviours as lists, oldest first."""

    def __init__(
        self, paths: Sequence[Path], test: Sequence[Path], seed: int, shares: tuple[float, ...] = PARTS
    ):
        self.parts, self.test, self.seed, self.shares = tuple(paths), tuple(test), seed, shares
        self.files = (*paths, *test)
        self.dropped: dict[str, int] = {}
        self._reading: Reading | None = None

    @property
    def done(self) -> float:
        return 0.0 if self._reading is None else self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        self._reading = Reading(self.files)
        validation = self.shares[1] / sum(self.shares[:2])
        draw = np.random.Generator(np.random.PCG64(order.mixed("validation", self.seed)))
        for paths in (self.parts, self.test):
            for rows in read_delimited(paths, ",", COLUMNS, whole=_WHOLE, reading=self._reading) if paths else ():
                frame = _frame(rows)
                if self.test:
                    valid = draw.random(frame.height) < validation if paths is self.parts else None
                    part = "test" if valid is None else pl.Series(np.where(valid, "valid", "train"))
                    frame = frame.with_columns(pl.lit(part).alias(_SPLIT))
                yield frame


def _frame(rows: Rows) -> pl.DataFrame:
    texts = [name for name, kind in rows.frame.schema.items() if kind == pl.String]
    rows = replace(rows, frame=rows.frame.with_columns(pl.col(texts).replace("NULL", None)) if texts else rows.frame)
    for what in _CHECKED:
        for i in range(_LENGTH):
            rows.integer(f"{what} {i}", missing=True)
    click = rows.integer("clk")
    rows.refuse(~click.is_in([0, 1]), "clk", lambda v: f"is {v}, a label that is neither 0 nor 1")
    values = {}
    for name in ("user", *_FIELDS):
        number = rows.integer(name, missing=name != "user")
        values[name] = number.set(number == 0, None) if name in _ZERO_IS_MISSING else number
    mask = _numbers(rows, "mask")
    for column in np.flatnonzero(((mask != 0) & (mask != 1)).any(axis=0))[:1]:
        wrong = pl.Series((mask[:, column] != 0) & (mask[:, column] != 1))
        rows.refuse(wrong, f"mask {column}", lambda v: f"is {v}, neither 0 nor 1")
    lists = {f"history_{what}": _lists(_numbers(rows, what), mask == 1) for what in ("cate", "brand")}
    return pl.DataFrame({**values, **lists, "label": click})


def _numbers(rows: Rows, what: str) -> np.ndarray:
    """int64 [rows, 50], zero for what is missing."""
    columns = [rows.integer(f"{what} {i}", missing=True).fill_null(0).to_numpy() for i in range(_LENGTH)]
    return np.stack(columns, axis=1)


def _lists(values: np.ndarray, there: np.ndarray) -> pl.Series:
    """The values that are there; of these a missing one keeps its place."""
    # In every row what is there last, where it is in the published files already.
    order = np.argsort(there, axis=1, kind="stable")
    flat = pl.Series(np.take_along_axis(values, order, axis=1).ravel())
    lists = flat.set(flat == 0, None).reshape((-1, _LENGTH)).arr.to_list()
    return lists.list.tail(pl.Series(there.sum(axis=1)))
