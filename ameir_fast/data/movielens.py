"""MovieLens as ratings to predict or movies to find (docs/data.md says what each field is, why nothing leaks)."""

from __future__ import annotations

import shutil
import tempfile
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import polars as pl

from ..errors import InputError
from .blocks import Reading
from .build import Progress, build
from .delimited import read_delimited
from .fetch import check_members
from .files import sha256
from .movielens_forms import AGES, HALF_STARS, STARS, Form, find, recbole
from .plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan, parts_given, split_plan
from .source import with_attributes
from .work import check_output

#: A rating from here on is a positive, where nothing else is asked for.
POSITIVE = 4

_LATEST = 253402300799  # the last second of the year 9999
_OF_USERS = ("age_group", "gender", "occupation", "zip_prefix")


def prepare_movielens(
    input_path: str | Path,
    output_dir: str | Path,
    *,
    user_field: bool = False,
    max_history: int = 20,
    retrieval: bool = False,
    threshold: float | None = None,
    min_count: int = 1,
    split: str | None = None,
    parts: Sequence[float] | None = None,
    seed: int | None = None,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares MovieLens and returns the statistics.

    Args:
        input_path: a directory with the files of one of the published forms (100K, 1M, 10M, 20M and later, RecBole's;
            told by their names), or the wheel of recbole.
        output_dir: appears whole or not at all.
        user_field: whether ``user`` is in the default view; it is stored either way.
        max_history: newest ratings before the row's own, strictly earlier in time.
        retrieval: find the movie that is rated next, instead of predicting whether a rating is good.
        threshold: ratings from here on are positives; default 4.
        min_count: values seen less often in the training rows are "unknown", in all vocabularies that are learnt (for
            retrieval: rows that ask for such a movie are left out).
        split: ``"time"`` (over all users; the default), without retrieval ``"random"``, for retrieval
            ``"leave_one_out"`` (its default).
        parts: of a split by time or at random, shares of the rows for train, valid and test; default 0.8, 0.1, 0.1.
        seed: of the random split; default 0. Others have none.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file or column is missing or malformed (named, with its line), the wheel does not hold
            the known data, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    for name, value in (("max_history", max_history), ("min_count", min_count)):
        if value < 1:
            raise InputError(f"{name} {value} is not at least 1")
    if retrieval and threshold is not None:
        raise InputError("threshold belongs to the ctr task; retrieval takes every rating")
    split = split or ("leave_one_out" if retrieval else "time")
    if split not in ("time", "leave_one_out" if retrieval else "random"):
        raise InputError(f"split {split!r} is none of those that {'retrieval' if retrieval else 'ctr'} data can have")
    splitting = split_plan(split, parts, seed=seed)
    check_output(output_dir, overwrite)  # before the work, not after it
    with _form(Path(input_path)) as form:
        positive = POSITIVE if threshold is None else threshold
        stars = [float(s) for s in (HALF_STARS if form.half_stars else STARS)]
        if not stars[0] < positive <= stars[-1]:
            raise InputError(f"threshold {positive:g} does not part the ratings {stars[0]:g} to {stars[-1]:g}")
        positive = int(positive) if positive == int(positive) else float(positive)  # 4 and 4.0 are one option
        options = {"positive_rating": positive, "max_history": max_history, "user_field": user_field}
        if form.name != "recbole":
            options["form"] = form.name
        if retrieval:
            options["retrieval"] = True
        if retrieval or split != "time":
            options["split"] = split
        if split == "random":
            options["seed"] = seed or 0
        if min_count != 1:
            options["min_count"] = min_count
        options |= parts_given(parts)
        options["source"] = {kind: sha256(path) for kind, path in form.files.items()}
        return build(
            MovieLensSource(form, retrieval, positive),
            plan(form, user_field, max_history, retrieval, splitting, min_count),
            output_dir,
            kind="movielens",
            options=options,
            overwrite=overwrite,
            also_read=(input_path,),
            on_progress=on_progress,
        )


def plan(
    form: Form, user_field: bool, max_history: int, retrieval: bool, split: SplitPlan, min_count: int
) -> TablePlan:
    """Fields, histories, vocabularies and split."""
    own = _OF_USERS if form.users else ()
    single = ("item", "first_genre", *own, "release_year")
    user = FieldPlan("user", "user", "user", default=user_field)
    moment = FieldPlan("hour", "hour", "hour"), FieldPlan("weekday", "weekday", "weekday")
    learnt = ("user", "item", *own, *(() if retrieval else ("genre", "release_year")))
    vocabularies = {
        **dict.fromkeys(learnt, VocabularyPlan(min_count)),
        "hour": VocabularyPlan(values=tuple(range(24))),
        "weekday": VocabularyPlan(values=tuple(range(1, 8))),
        **({"age_group": VocabularyPlan(values=AGES)} if form.users else {}),
    }
    item = HistoryPlan("history_item", "item", "item")
    if retrieval:
        # Nothing that describes the movie to find; the default view is of histories alone, as is usual.
        fields = (user, *(FieldPlan(f, f, f, default=False) for f in (*own, "hour", "weekday")))
        return TablePlan(
            task="retrieval", user="user", time="time", item="item", item_vocabulary="item", fields=fields,
            history=(item,), max_history=max_history, min_history=1, vocabularies=vocabularies,
            split=split,
        )
    fields = (
        user,
        *(FieldPlan(name, name, "genre" if name == "first_genre" else name) for name in single),
        FieldPlan("genres", "genres", "genre", "multi_categorical"),
        *moment,
    )
    ratings = VocabularyPlan(values=HALF_STARS if form.half_stars else STARS)
    return TablePlan(
        task="ctr", label="label", user="user", time="time", fields=fields,
        history=(item, HistoryPlan("rating", "rating", "rating")), max_history=max_history,
        target=("item", "first_genre"), vocabularies={"rating": ratings, **vocabularies}, split=split,
    )


class MovieLensSource:
    """One row a rating, in the order of the file, with every column that ``plan`` names."""

    def __init__(self, form: Form, retrieval: bool = False, positive: float = POSITIVE):
        self.form, self.retrieval, self.positive = form, retrieval, positive
        self.files = tuple(form.files.values())
        self.dropped: dict[str, int] = {}
        self.without_attributes: dict[str, int] = {}
        self._reading: Reading | None = None

    @property
    def done(self) -> float:
        return 0.0 if self._reading is None else self._reading.share

    def chunks(self) -> Iterator[pl.DataFrame]:
        form = self.form
        items = form.items(form.files["item"])
        users = form.users(form.files["user"]) if form.users else None
        user, item, rating, time = form.ratings
        values = [float(r) for r in (HALF_STARS if form.half_stars else STARS)]
        allowed = ", ".join(f"{s:g}" for s in values)
        path, self.without_attributes = form.files["inter"], {}
        self._reading = Reading([path])
        for rows in read_delimited([path], form.separator, form.columns, reading=self._reading):
            rows.need(*form.ratings)
            value = rows.number(rating)
            rows.refuse(~value.is_in(values), rating, lambda v: f"is {v}, none of {allowed}")
            stamp = rows.number(time)
            rows.refuse(~stamp.is_between(0, _LATEST), time, lambda v: f"is {v}, not seconds since 1970")
            rows.present(user, item)
            shown = (value * 10).cast(pl.Int64).replace_strict(
                [int(v * 10) for v in values], list(HALF_STARS), return_dtype=pl.String
            ) if form.half_stars else value.cast(pl.Int64)
            frame = pl.DataFrame({
                "user": rows.frame[user],
                "item": rows.frame[item],
                "rating": shown,
                "time": stamp.floor().cast(pl.Int64),
                "label": (value >= self.positive).cast(pl.Float32),
            })
            if not self.retrieval:
                frame = with_attributes(frame, items, "item", self.without_attributes, "item")
            if users is not None:
                frame = with_attributes(frame, users, "user", self.without_attributes, "user")
            clock = pl.from_epoch("time")  # UTC
            yield frame.with_columns(hour=clock.dt.hour().cast(pl.Int64), weekday=clock.dt.weekday().cast(pl.Int64))


@contextmanager
def _form(source: Path) -> Iterator[Form]:
    """The form of a folder, or of the files in recbole's wheel."""
    if source.is_dir():
        yield find(source)
        return
    if not source.exists():
        raise InputError(f"{source}: no such file or directory")
    try:
        with zipfile.ZipFile(source) as wheel:
            contents = check_members(source, wheel)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"{source}: neither a directory nor a whole wheel ({error})") from None
    folder = Path(tempfile.mkdtemp(prefix="ameir-fast-"))
    try:
        # The known files, by their hashes: nothing in them can go wrong and would have to be named.
        files = {}
        for name, (data, _) in contents.items():
            files[name.rsplit(".", 1)[1]] = folder / name
            (folder / name).write_bytes(data)
        yield recbole(files)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
