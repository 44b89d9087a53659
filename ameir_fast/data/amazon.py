"""Reviews on Amazon, as UCSD published them in 2014, 2018 and 2023: JSON lines, or csv of ratings alone."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from ..errors import InputError
from .blocks import BLOCK, Reading, blocks, first_line
from .build import Progress, build
from .delimited import Rows, read_delimited, shown
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

COLUMNS = ("user", "item", "rating", "timestamp")
#: What they are called in the files of 2023 (where a product's variants share the parent), in the JSON of 2014 and 2018,
#: and in Kaggle's copies.
_FORMS = (
    dict(zip(COLUMNS, ("user_id", "parent_asin", "rating", "timestamp"), strict=True)),
    dict(zip(COLUMNS, ("reviewerID", "asin", "overall", "unixReviewTime"), strict=True)),
    dict(zip(COLUMNS, ("UserId", "ProductId", "Rating", "Timestamp"), strict=True)),
    dict(zip(COLUMNS, COLUMNS, strict=True)),
)
#: Products: ten characters, a book's number or B and nine others. Users' ids begin with A or #.
_ASIN = re.compile(r"[0-9B][0-9A-Z]{9}")
#: Seconds stay below it until the year 5138, milliseconds have been above it since 1973.
_MILLISECONDS = 10**11


def prepare_amazon(
    input_paths: str | Path | Sequence[str | Path],
    output_dir: str | Path,
    *,
    columns: Sequence[str] | None = None,
    core: int = 5,
    min_rating: float | None = None,
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
    """Prepares Amazon reviews or ratings for retrieval and returns the statistics.

    Args:
        input_paths: files, plain, gzip or zstandard, or directories of them: JSON lines (keys ``reviewerID``,
            ``asin``, ``overall``, ``unixReviewTime`` or ``user_id``, ``parent_asin``, ``rating``, ``timestamp``), or csv
            with such names in its first line, or csv without names (``columns``).
        output_dir: appears whole or not at all.
        columns: the order of ``user``, ``item``, ``rating``, ``timestamp`` in csv without names; ``None`` tells by the
            look of the first line which of the first two is the product (the 2014 files have the user first, those of
            2018 the product).
        core: keep users and items with at least that many reviews among what is kept; 0 keeps all.
        min_rating: leave out reviews with a lower rating, or none.
        repeats, ties: see ``retrieval.Reviews``. The times of 2014 and 2018 are days.
        split: ``leave_one_out`` or ``time``.
        parts: with ``time``, shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        max_history: newest items before the one to find.
        all_items: whether items that no training row holds can be found too.
        min_count: an item that fewer training rows (with ``all_items`` rows) hold is unknown; rows that ask for it are
            left out.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file is missing or damaged, a line is of another form (file and line named), nothing is left, an
            option does not fit, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    check_output(output_dir, overwrite)  # before the work, not after it
    check_review_choices(split, core, repeats, ties)
    min_rating = finite("min_rating", min_rating)
    if columns is not None and sorted(columns) != sorted(COLUMNS):
        raise InputError(f"columns {','.join(columns)} are not {','.join(COLUMNS)} in some order")
    plan = retrieval_plan(split_plan(split, parts), max_history, all_items, min_count)
    source = AmazonReviews(input_files(input_paths), columns, min_rating)
    if on_progress:
        on_progress(f"reading {source.files[0]}{' and others' if len(source.files) > 1 else ''}")
    return build(
        Reviews(source, core, repeats, ties),
        plan,
        output_dir,
        kind="amazon",
        options={
            "columns": None if columns is None else list(columns), "core": core, "min_rating": min_rating, "repeats": repeats, "split": split, "ties": ties,
            "max_history": max_history, "all_items": all_items, "min_count": min_count, **parts_given(parts),
        },
        overwrite=overwrite,
        on_progress=on_progress,
    )


class AmazonReviews:
    """Columns user, item (text) and time (Int64, as the files give it), in the order of the files."""

    def __init__(self, files: Sequence[Path], columns: Sequence[str] | None = None, min_rating: float | None = None,
                 size: int = BLOCK):
        self.files, self.columns, self.min_rating, self._size = tuple(files), columns, min_rating, size
        self.dropped: dict[str, int] = {}
        self._reading = Reading(self.files)

    @property
    def done(self) -> float:
        return self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        self.dropped, self._reading = {}, Reading(self.files)
        milliseconds: bool | None = None
        for path in self.files:
            first = first_line(path)
            for rows, names in self._objects(path, first) if first.lstrip().startswith("{") else self._table(path, first):
                time = rows.integer(names["timestamp"], missing=True)
                rating = rows.number(names["rating"], missing=True)
                if milliseconds is None and time.count():
                    milliseconds = time.drop_nulls()[0] >= _MILLISECONDS
                if milliseconds is not None:
                    other = ((time >= _MILLISECONDS) != milliseconds).fill_null(False)
                    rows.refuse(other, names["timestamp"], lambda v: f"is {v}: seconds and milliseconds are mixed")
                low = None if self.min_rating is None else rating.fill_null(float("-inf")) < self.min_rating
                frame = rows.frame.select(user=names["user"], item=names["item"], time=time)
                kept = present(frame, self.dropped, low, f"rating below {self.min_rating:g}" if low is not None else "")
                if kept.height:
                    yield kept

    def _table(self, path: Path, first: str) -> Iterator[tuple[Rows, dict[str, str]]]:
        """Rows, and the names in them of the four columns."""
        cells = [cell.strip('"') for cell in first.split(",")]
        form = max(_FORMS, key=lambda names: len(set(names.values()) & set(cells)))
        if set(form.values()) & set(cells):
            if missing := set(form.values()) - set(cells):
                raise InputError(f"{path}: line 1 names {shown(', '.join(cells))}, not {', '.join(form.values())}: "
                                 f"{', '.join(sorted(missing))} missing. For other tables there is `prepare table`")
            names, columns = form, None
        else:
            names, columns = _FORMS[-1], list(self.columns or _told_columns(path, cells))
        for rows in read_delimited([path], ",", columns, quoted=True, reading=self._reading, size=self._size):
            yield rows, names

    def _objects(self, path: Path, first: str) -> Iterator[tuple[Rows, dict[str, str]]]:
        # Some of the files of 2014 are Python's way of writing dictionaries rather than JSON.
        read = parse_literal if re.match(r"\s*\{\s*u?'", first) else json.loads
        names: dict[str, str] | None = None
        for block in blocks([path], size=self._size, reading=self._reading):
            columns: dict[str, list] = {name: [] for name in COLUMNS}
            lines: list[int] = []
            for index, line in enumerate(block.data.decode().split("\n")[:-1]):
                if not line.strip():
                    continue
                try:
                    review = read(line.strip())
                except LiteralError as error:
                    block.refuse(index, f"is no review: it {error}")
                except (ValueError, RecursionError) as error:
                    block.refuse(index, f"is not JSON ({error})")
                if names is None and isinstance(review, dict):
                    names = next((form for form in _FORMS[:2] if form["user"] in review), None)
                    if names is None:
                        block.refuse(index, f"has neither user_id nor reviewerID; it has {shown(', '.join(review))}")
                append_texts(block, index, review, names or {}, columns)
                lines.append(block.line + index)
            if lines:
                frame = pl.DataFrame(columns, schema=dict.fromkeys(COLUMNS, pl.String))
                yield Rows(path, frame.rename(names), lines), names


def _told_columns(path: Path, cells: Sequence[str]) -> tuple[str, ...]:
    if cells[0].lstrip().startswith("["):
        raise InputError(f"{path}: line 1 begins with [: of a JSON file, one review a line is read, not an array of them")
    if len(cells) != len(COLUMNS):
        raise InputError(f"{path}: line 1 has {len(cells)} columns, not {len(COLUMNS)}")
    products = [_ASIN.fullmatch(cell) is not None for cell in cells[:2]]
    if products[0] == products[1]:
        raise InputError(f"{path}: line 1 does not show which of {cells[0]!r} and {cells[1]!r} is the product: "
                         f"give --columns, for example user,item,rating,timestamp")
    return ("item", "user", "rating", "timestamp") if products[0] else COLUMNS
