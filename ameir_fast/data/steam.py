"""Reviews of games on Steam, as UCSD published them: one Python dictionary a line."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from .blocks import BLOCK, Reading, blocks
from .build import Progress, build
from .delimited import Rows, shown
from .literal import LiteralError, parse_literal
from .plan import finite, parts_given, split_plan
from .retrieval import (
    MAX_HISTORY,
    Reviews,
    append_texts,
    check_review_choices,
    input_files,
    present,
    retrieval_plan,
)
from .work import check_output

_FIELDS = ("username", "product_id", "date", "hours")


def prepare_steam(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    core: int = 5,
    min_hours: float | None = None,
    repeats: str = "distinct",
    split: str = "leave_one_out",
    parts: Sequence[float] | None = None,
    ties: str = "apart",
    max_history: int = MAX_HISTORY,
    all_items: bool = False,
    min_count: int = 1,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares ``steam_reviews.json`` for retrieval and returns the statistics.

    Args:
        input_paths: files, plain, gzip or zstandard, or directories of them. Each line is a dictionary as Python's
            ``repr`` writes it; it is read as data (``literal.py``), never evaluated.
        output_dir: appears whole or not at all.
        core: keep users and items with at least that many reviews among what is kept; 0 keeps all.
        min_hours: leave out reviews by users who played less, or whose hours are not given.
        repeats, ties: see ``retrieval.Reviews``. Dates are days: with ``ties="apart"`` a history ends the day before.
        split: ``leave_one_out`` or ``time``.
        parts: with ``time``, shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        max_history: newest items before the one to find.
        all_items: whether items that no training row holds can be found too.
        min_count: an item that fewer training rows (with ``all_items`` rows) hold is unknown; rows that ask for it are
            left out.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a line is no such dictionary or has a date or hours of another form
            (file and line named), nothing is left, an option does not fit, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)  # before the work, not after it
    check_review_choices(split, core, repeats, ties)
    min_hours = finite("min_hours", min_hours)
    plan = retrieval_plan(split_plan(split, parts), max_history, all_items, min_count)
    source = SteamReviews(input_files(input_paths), min_hours)
    if on_progress:
        on_progress(f"reading {source.files[0]}{' and others' if len(source.files) > 1 else ''}")
    return build(
        Reviews(source, core, repeats, ties),
        plan,
        output_dir,
        kind="steam",
        options={
            "core": core, "min_hours": min_hours, "repeats": repeats, "split": split, "ties": ties,
            "max_history": max_history, "all_items": all_items, "min_count": min_count, **parts_given(parts),
        },
        overwrite=overwrite,
        on_progress=on_progress,
    )


class SteamReviews:
    """Columns user, item (text) and time (Int64, seconds of the day's begin, UTC), in the order of the files."""

    def __init__(self, files: Sequence[Path], min_hours: float | None = None, size: int = BLOCK):
        self.files, self.min_hours, self._size = tuple(files), min_hours, size
        self.dropped: dict[str, int] = {}
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        self.dropped, self._reading = {}, Reading(self.files)
        for block in blocks(self.files, size=self._size, reading=self._reading):
            columns: dict[str, list] = {name: [] for name in _FIELDS}
            lines: list[int] = []
            for index, line in enumerate(block.data.decode().split("\n")[:-1]):
                if not line.strip():
                    continue
                try:
                    review = parse_literal(line.rstrip())
                except LiteralError as error:
                    block.refuse(index, f"is no review: it {error}")
                append_texts(block, index, review, {name: name for name in _FIELDS}, columns)
                lines.append(block.line + index)
            rows = Rows(block.path, pl.DataFrame(columns, schema=dict.fromkeys(_FIELDS, pl.String)), lines)
            day = rows.frame["date"].str.to_date("%Y-%m-%d", strict=False)
            rows.refuse(day.is_null() & rows.frame["date"].is_not_null(), "date",
                        lambda value: f"is {shown(value)}, not a day like 2017-12-17")
            frame = rows.frame.select(user="username", item="product_id", time=day.cast(pl.Int64) * 86400)
            hours = rows.number("hours", missing=True)
            few = None if self.min_hours is None else hours.fill_null(-1.0) < self.min_hours
            kept = present(frame, self.dropped, few, f"fewer than {self.min_hours:g} hours" if few is not None else "")
            if kept.height:
                yield kept
