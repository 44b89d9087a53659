"""Files of item sequences: a pair of user and item a line, or a line a user (windows of items: ``windows.py``).

The forms of SASRec and BERT4Rec, and of S3Rec. Neither has times: an event's time is its place in the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .blocks import BLOCK, Reading, blocks, first_line, first_numbered_line
from .build import Progress, build
from .delimited import read_delimited, shown
from .plan import SplitPlan, parts_given, split_plan
from .retrieval import (
    MAX_HISTORY,
    SPLITS,
    TIES,
    Reviews,
    check_choice,
    check_core,
    input_files,
    retrieval_plan,
)
from .windows import Windows
from .work import check_output

FORMS = ("auto", "pairs", "lines", "windows")
_SAID = {
    "pairs": "a user and an item a line",
    "lines": "a user and all its items a line",
    "windows": "a window of items and their times a line",
}

_HEADING = re.compile(r"\s*(user|item|movie|product|game|business)s?([ _]?ids?)?\s*", re.IGNORECASE)  # of a column, where a file has such


def prepare_sequences(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    form: str = "auto",
    core: int = 0,
    split: str | None = None,
    parts: Sequence[float] | None = None,
    max_history: int = MAX_HISTORY,
    all_items: bool = False,
    min_count: int = 1,
    ties: str = "apart",
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares item sequences for retrieval and returns the statistics.

    Args:
        input_paths: files, plain, gzip or zstandard, or directories of them; all in one form.
        output_dir: appears whole or not at all.
        form: ``pairs`` (``user item`` a line, each user's in time order), ``lines`` (``user item item …``),
            ``windows`` (``([items], [unix times])``, oldest first) or ``auto``: told by the first line.
        core: of pairs and lines: keep users and items with at least that many events among what is kept; 0 keeps all.
        split: ``leave_one_out`` (of pairs and lines, which have no times) or ``time`` (of windows, which have no
            users); ``None`` for the one that fits.
        parts: of windows, shares of them for train, valid and test; default 0.8, 0.1, 0.1.
        max_history: newest items before the one to find.
        all_items: whether items that no training row holds can be found too.
        min_count: an item that occurs less often in training rows (with ``all_items`` in all rows) is unknown; rows
            that ask for it are left out. Windows overlap, and each occurrence in one of them counts.
        ties: of windows: ``apart`` leaves items of the last one's time out of the history, ``file`` keeps them.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a line is not of the form (file and line named), an option does not
            fit, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)  # before the work, not after it
    check_choice("form", form, FORMS)
    check_choice("ties", ties, TIES)
    check_core(core)
    if split is not None:
        check_choice("split", split, SPLITS)
    files = input_files(input_paths)
    form = told_form(files[0]) if form == "auto" else form
    if on_progress:
        on_progress(f"reading {files[0]}{' and others' if len(files) > 1 else ''} as {form}: {_SAID[form]}")
    options = {"form": form, "core": core, "max_history": max_history, "all_items": all_items, "min_count": min_count,
               **parts_given(parts)}
    if form == "windows":
        if split == "leave_one_out":
            raise InputError("windows have no users: they cannot be split by leave_one_out, only by time")
        if core:
            raise InputError("windows have no users: there is no core of users and items")
        source = Windows(files, ties, shares=split_plan("time", parts).parts)
        plan = retrieval_plan(SplitPlan("column", column="split"), max_history, all_items, min_count, ready=True)
        named = source.parts()
        options |= {"split": "time", "ties": ties}
    else:
        if split == "time":
            raise InputError(f"{form} have no times: they cannot be split by time, only by leave_one_out")
        if ties != "apart":
            raise InputError(f"ties is for windows: {form} have no times, so no two events are of one time")
        source, named = Reviews((Pairs if form == "pairs" else Lines)(files), core, repeats="all"), None
        plan = retrieval_plan(split_plan("leave_one_out", parts), max_history, all_items, min_count)
        options |= {"split": "leave_one_out"}
    return build(
        source,
        plan,
        output_dir,
        kind="sequences",
        options=options,
        named_split=named,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def told_form(path: Path) -> str:
    """The form of a file, by its first line."""
    line = first_line(path).strip()
    words = len(line.split())
    if line.startswith("("):
        return "windows"
    if words < 2:
        raise InputError(f"{path}: its first line is no 'user item', no 'user item item …' and no '([items], [times])'")
    return "pairs" if words == 2 else "lines"


class Pairs:
    """``user item`` a line, with one blank or tab between (the first line says which). Order in the file is time."""

    def __init__(self, files: Sequence[Path], size: int = BLOCK):
        self.files, self.dropped, self._size = tuple(files), {}, size
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        self._reading = Reading(self.files)
        place = 0
        for path in self.files:
            number, first = first_numbered_line(path)
            separator = "\t" if "\t" in first else " "
            if all(_HEADING.fullmatch(cell) for cell in first.split(separator)):
                raise InputError(f"{path}: line {number} is a header ({shown(first.strip())}), which this form does not have; remove it")
            for rows in read_delimited([path], separator, ["user", "item"], reading=self._reading, size=self._size):
                for column in ("user", "item"):
                    rows.refuse(rows.frame[column].is_null(), column, lambda _: "is missing")
                if rows.frame.height:
                    yield _with_places(rows.frame, place)
                    place += rows.frame.height


class Lines:
    """``user item item …`` a line, blanks or tabs between, oldest first; one line a user."""

    def __init__(self, files: Sequence[Path], size: int = BLOCK):
        self.files, self.dropped, self._size = tuple(files), {}, size
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        self._reading = Reading(self.files)
        seen: set[str] = set()
        place = 0
        for block in blocks(self.files, size=self._size, reading=self._reading):
            text = pl.Series(block.data.decode().split("\n")[:-1], dtype=pl.String)
            words = text.str.replace_all(r"[ \t]+", " ").str.strip_chars(" ").str.split(" ")
            user = words.list.first()
            written = user != ""
            alone = (written & (words.list.len() < 2)).arg_true()
            if len(alone):
                block.refuse(alone[0], f"has the user {user[alone[0]]!r} and no item")
            for index, name in enumerate(user):
                if name in seen:
                    block.refuse(index, f"has the user {name!r} a second time; a user's items stand on one line")
                if name:
                    seen.add(name)
            frame = pl.DataFrame({"user": user, "item": words.list.slice(1)}).filter(written).explode("item")
            if frame.height:
                yield _with_places(frame, place)
                place += frame.height
        if not place:
            raise InputError(f"{self.files[0]}: there are no events")


def _with_places(frame: pl.DataFrame, first: int) -> pl.DataFrame:
    return frame.with_columns(time=pl.Series(np.arange(first, first + frame.height, dtype=np.int64)))
