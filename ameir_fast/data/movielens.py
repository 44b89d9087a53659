"""MovieLens-100K in CTR form (docs/data.md says what each field is and why nothing leaks)."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path

import numpy as np
import polars as pl

from ..atomic import check_output_dir
from ..errors import InputError
from .build import Progress, build
from .fetch import PREFIX, check_members
from .files import sha256
from .plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan
from .reading import Table, read_text
from .source import FrameSource

#: A rating from here on is a positive.
POSITIVE = 4
RATINGS = (1, 2, 3, 4, 5)
AGES = ("<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
_AGE_STARTS = (18, 25, 35, 45, 50, 56)

_COLUMNS = {
    "inter": ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
    "item": ("item_id:token", "release_year:token", "class:token_seq"),
    "user": ("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"),
}


def prepare_movielens(
    input_path: str | Path,
    output_dir: str | Path,
    *,
    user_field: bool = False,
    max_history: int = 20,
    overwrite: bool = False,
    on_progress: Progress | None = None,
) -> dict:
    """Prepares MovieLens-100K and returns the statistics.

    Args:
        input_path: a directory with ``*.inter``, ``*.item`` and ``*.user`` in RecBole's form, or the wheel of
            recbole.
        output_dir: appears whole or not at all.
        user_field: whether ``user`` is in the default view; it is stored either way.
        max_history: newest ratings before the row's own, strictly earlier in time.
        overwrite: replace what ``output_dir`` holds.
        on_progress: called with a line of text now and then.

    Raises:
        InputError: a file or column is missing or malformed (named, with its row), the wheel does not hold
            the known data, ``output_dir`` is in use.
        OSError: the disk is full; ``output_dir`` is then as it was.
    """
    if max_history < 1:
        raise InputError(f"max_history {max_history} is not at least 1")
    check_output_dir(output_dir, overwrite)  # before the work, not after it
    tables, hashes = _read(Path(input_path))
    options = {
        "positive_rating": POSITIVE,
        "max_history": max_history,
        "user_field": user_field,
        "source": hashes,
    }
    return build(
        FrameSource(_frame(tables)),
        plan(user_field, max_history),
        output_dir,
        kind="movielens",
        options=options,
        overwrite=overwrite,
        on_progress=on_progress,
    )


def plan(user_field: bool = False, max_history: int = 20) -> TablePlan:
    """Fields, histories, vocabularies and split of the CTR form."""
    single = ("item", "first_genre", "age_group", "gender", "occupation", "zip_prefix", "release_year")
    fields = (
        FieldPlan("user", "user", "user", default=user_field),
        *(FieldPlan(name, name, "genre" if name == "first_genre" else name) for name in single),
        FieldPlan("genres", "genres", "genre", "multi_categorical"),
        FieldPlan("hour", "hour", "hour"),
        FieldPlan("weekday", "weekday", "weekday"),
    )
    return TablePlan(
        task="ctr",
        label="label",
        user="user",
        time="time",
        fields=fields,
        history=(HistoryPlan("history_item", "item", "item"), HistoryPlan("rating", "rating", "rating")),
        max_history=max_history,
        target=("item", "first_genre"),
        vocabularies={
            "rating": VocabularyPlan(values=RATINGS),
            "hour": VocabularyPlan(values=tuple(range(24))),
            "weekday": VocabularyPlan(values=tuple(range(1, 8))),
            "age_group": VocabularyPlan(values=AGES),
        },
        split=SplitPlan("time", (0.8, 0.1, 0.1)),
    )


def _read(source: Path) -> tuple[dict[str, Table], dict[str, str]]:
    """The three tables as text, and the hashes of their files."""
    if source.is_dir():
        paths = {kind: _only(source, kind) for kind in _COLUMNS}
        return (
            {kind: read_text(path, _COLUMNS[kind]) for kind, path in paths.items()},
            {kind: sha256(path) for kind, path in paths.items()},
        )
    if not source.exists():
        raise InputError(f"{source}: no such file or directory")
    try:
        with zipfile.ZipFile(source) as wheel:
            contents = check_members(source, wheel)
    except (zipfile.BadZipFile, EOFError, zlib.error) as error:
        raise InputError(f"{source}: neither a directory nor a whole wheel ({error})") from None
    tables, hashes = {}, {}
    for name, (data, digest) in contents.items():
        kind = name.rsplit(".", 1)[1]
        tables[kind] = read_text(source / PREFIX / name, _COLUMNS[kind], data)
        hashes[kind] = digest
    return tables, hashes


def _only(directory: Path, kind: str) -> Path:
    found = sorted(directory.glob(f"*.{kind}"))
    if len(found) != 1:
        raise InputError(f"{directory}: holds {len(found)} files *.{kind}, not one")
    return found[0]


def _frame(tables: dict[str, Table]) -> pl.DataFrame:
    """One row a rating, in the order of the file, with every column of the plan."""
    ratings = tables["inter"]
    value = ratings.number("rating:float")
    ratings.refuse(
        ~value.is_in([float(r) for r in RATINGS]), "rating:float", lambda v: f"is {v}, none of 1, 2, 3, 4, 5"
    )
    stamp = ratings.number("timestamp:float")
    for column in ("user_id:token", "item_id:token"):
        ratings.refuse(ratings.frame[column].is_null(), column, lambda v: "is missing")
    frame = pl.DataFrame(
        {
            "user": ratings.frame["user_id:token"],
            "item": ratings.frame["item_id:token"],
            "rating": value.cast(pl.Int64),
            "time": stamp.floor().cast(pl.Int64),
            "label": (value >= POSITIVE).cast(pl.Float32),
        }
    )
    clock = pl.from_epoch("time")  # UTC
    return (
        frame.join(_items(tables["item"]), on="item", how="left", maintain_order="left")
        .join(_users(tables["user"]), on="user", how="left", maintain_order="left")
        .with_columns(hour=clock.dt.hour().cast(pl.Int64), weekday=clock.dt.weekday().cast(pl.Int64))
    )


def _items(table: Table) -> pl.DataFrame:
    """item, genres (the token "unknown" left out), first_genre, release_year (decades before 1990)."""
    _distinct(table, "item_id:token")
    year = pl.col("release_year:token").str.extract(r"^(\d{4})$").cast(pl.Int64)
    return table.frame.select(
        pl.col("item_id:token").alias("item"),
        pl.col("class:token_seq")
        .fill_null("")
        .str.split(" ")
        .list.eval(pl.element().filter((pl.element() != "") & (pl.element() != "unknown")))
        .alias("genres"),
        pl.when(year >= 1990)
        .then(year.cast(pl.String))
        .otherwise((year // 10 * 10).cast(pl.String) + "s")
        .alias("release_year"),
    ).with_columns(first_genre=pl.col("genres").list.first())


def _users(table: Table) -> pl.DataFrame:
    """user, age_group (MovieLens's own bands), gender, occupation, zip_prefix (first digit)."""
    _distinct(table, "user_id:token")
    ages = np.array(AGES)[np.searchsorted(_AGE_STARTS, table.number("age:token").to_numpy(), side="right")]
    return table.frame.select(
        pl.col("user_id:token").alias("user"),
        pl.Series("age_group", ages.tolist(), dtype=pl.String),
        pl.col("gender:token").alias("gender"),
        pl.col("occupation:token").alias("occupation"),
        pl.when(pl.col("zip_code:token").str.contains(r"^\d"))
        .then(pl.col("zip_code:token").str.slice(0, 1))
        .when(pl.col("zip_code:token").is_not_null())
        .then(pl.lit("other"))
        .alias("zip_prefix"),
    )


def _distinct(table: Table, column: str) -> None:
    """Two descriptions of one user or item would double that one's rows."""
    table.refuse(~table.frame[column].is_first_distinct(), column, lambda v: f"has {v!r} a second time")
