"""The forms in which MovieLens is published: which files, which columns, what items and users are described by.

GroupLens's READMEs describe the originals (files.grouplens.org/datasets/movielens), RecBole's documentation its
atomic files. Every form gives the same columns, so that ``movielens.py`` knows one only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .blocks import bare_name, matching
from .delimited import Rows, read_small

STARS = (1, 2, 3, 4, 5)
HALF_STARS = ("0.5", "1.0", "1.5", "2.0", "2.5", "3.0", "3.5", "4.0", "4.5", "5.0")
AGES = ("<18", "18-24", "25-34", "35-44", "45-49", "50-55", "56+")
_AGE_STARTS = (18, 25, 35, 45, 50, 56)
#: Of ``u.genre``: the order of the last columns of ``u.item``.
GENRES_100K = ("unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama",
               "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War",
               "Western")
_OF_100K = {"u.item", "u.user"}
_NO_GENRES = ("", "unknown", "(no genres listed)")


@dataclass(frozen=True)
class Form:
    """How the ratings are written, and readers of the small files.

    ``ratings``: names of the columns of user, item, rating and time. ``columns``: names of all of them where the file
    has no header. ``items`` gives ``item``, ``genres`` (lists), ``first_genre``, ``release_year``; ``users`` gives
    ``user``, ``age_group``, ``gender``, ``occupation``, ``zip_prefix``, and is ``None`` where nothing is known of
    users. ``files``: those of a folder by what they hold.
    """

    name: str
    files: dict[str, Path]
    separator: str
    ratings: tuple[str, str, str, str]
    items: Callable[[Path], pl.DataFrame]
    users: Callable[[Path], pl.DataFrame] | None
    columns: tuple[str, ...] | None = None
    half_stars: bool = False


def find(folder: Path) -> Form:
    """The form of the files in ``folder``; ``InputError`` when there is none, or more than one."""
    names = {bare_name(path) for path in folder.iterdir()}
    found = [make for there, make in _FORMS if there(names)]
    if len(found) != 1:
        raise InputError(
            f"{folder}: holds {'none' if not found else 'more than one'} of MovieLens's forms: *.inter, *.user and "
            "*.item (RecBole), u.data, u.user and u.item (100K), ratings.dat and movies.dat (1M with users.dat, 10M), "
            "ratings.csv and movies.csv (20M, 25M, 32M)"
        )
    return found[0](folder)


def _recbole(folder: Path) -> Form:
    files = {kind: _only(folder, f"*.{kind}") for kind in ("inter", "item", "user")}
    return recbole(files)


def recbole(files: dict[str, Path]) -> Form:
    """RecBole's atomic files ``inter``, ``item`` and ``user``."""
    return Form("recbole", files, "\t", ("user_id:token", "item_id:token", "rating:float", "timestamp:float"),
                _recbole_items, _recbole_users)


def _original_100k(folder: Path) -> Form:
    files = {"inter": _only(folder, "u.data"), "item": _only(folder, "u.item"), "user": _only(folder, "u.user")}
    return Form("100k", files, "\t", _HEADERLESS, _items_100k, _users_100k, _HEADERLESS)


def _original_dat(folder: Path) -> Form:
    files = {"inter": _only(folder, "ratings.dat"), "item": _only(folder, "movies.dat")}
    known = bool(matching(folder, "users.dat"))
    if known:
        files["user"] = _only(folder, "users.dat")
    return Form("1m" if known else "10m", files, "::", _HEADERLESS, _items_dat, _users_dat if known else None,
                _HEADERLESS, half_stars=not known)


def _original_csv(folder: Path) -> Form:
    files = {"inter": _only(folder, "ratings.csv"), "item": _only(folder, "movies.csv")}
    return Form("csv", files, ",", ("userId", "movieId", "rating", "timestamp"), _items_csv, None, half_stars=True)


_HEADERLESS = ("user", "item", "rating", "timestamp")
#: Whether a folder's files are of a form, and what reads it.
_FORMS = (
    (lambda names: any(Path(n).suffix in (".inter", ".item", ".user") for n in names - _OF_100K), _recbole),
    (lambda names: "u.data" in names, _original_100k),
    (lambda names: "ratings.dat" in names, _original_dat),
    (lambda names: "ratings.csv" in names, _original_csv),
)


def _only(folder: Path, pattern: str) -> Path:
    found = matching(folder, pattern)
    if not found and "*" not in pattern:
        raise InputError(f"{folder / pattern}: no such file")
    if len(found) != 1:
        raise InputError(f"{folder}: holds {len(found)} files {pattern}, not one")
    return found[0]


def _recbole_items(path: Path) -> pl.DataFrame:
    rows = read_small(path, "\t")
    rows.need("item_id:token", "release_year:token", "class:token_seq")
    return _items(rows, "item_id:token", pl.col("class:token_seq").str.split(" "),
                  pl.col("release_year:token").str.extract(r"^(\d{4})$"))


def _items_100k(path: Path) -> pl.DataFrame:
    names = ("item", "title", "release date", "video release date", "IMDb URL", *GENRES_100K)
    rows = read_small(path, "|", names, encoding="latin-1")
    for genre in GENRES_100K:
        rows.refuse(~rows.frame[genre].is_in(["0", "1"]), genre, lambda v: f"is {v!r}, neither 0 nor 1")
    flags = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES_100K]
    return _items(rows, "item", pl.concat_list(flags), _year("title"))


def _items_dat(path: Path) -> pl.DataFrame:
    rows = read_small(path, "::", ("item", "title", "genres"), encoding="latin-1")
    return _items(rows, "item", pl.col("genres").str.split("|"), _year("title"))


def _items_csv(path: Path) -> pl.DataFrame:
    rows = read_small(path, ",", quoted=True)
    rows.need("movieId", "title", "genres")
    return _items(rows, "movieId", pl.col("genres").str.split("|"), _year("title"))


def _year(title: str) -> pl.Expr:
    """The year of a title that ends like ``Heat (1995)``."""
    return pl.col(title).str.extract(r"\((\d{4})\)\s*$")


def _items(rows: Rows, item: str, genres: pl.Expr, year: pl.Expr) -> pl.DataFrame:
    """``genres`` without those that say there is none; decades before 1990."""
    rows.distinct(item)
    number = year.cast(pl.Int64)
    element = pl.element()
    return rows.frame.select(
        pl.col(item).alias("item"),
        genres.fill_null([]).list.eval(element.filter(element.is_not_null() & ~element.is_in(_NO_GENRES)))
        .alias("genres"),
        pl.when(number >= 1990).then(number.cast(pl.String)).otherwise((number // 10 * 10).cast(pl.String) + "s")
        .alias("release_year"),
    ).with_columns(first_genre=pl.col("genres").list.first())


def _recbole_users(path: Path) -> pl.DataFrame:
    rows = read_small(path, "\t")
    rows.need("user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")
    return _users(rows, "user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token")


def _users_100k(path: Path) -> pl.DataFrame:
    names = ("user", "age", "gender", "occupation", "zip code")
    return _users(read_small(path, "|", names, encoding="latin-1"), *names)


def _users_dat(path: Path) -> pl.DataFrame:
    rows = read_small(path, "::", ("user", "gender", "age", "occupation", "zip code"), encoding="latin-1")
    return _users(rows, "user", "age", "gender", "occupation", "zip code")


def _users(rows: Rows, user: str, age: str, gender: str, occupation: str, zip_code: str) -> pl.DataFrame:
    """MovieLens's own age bands (1M gives their beginnings already); the first digit of a zip code."""
    rows.distinct(user)
    ages = np.array(AGES)[np.searchsorted(_AGE_STARTS, rows.number(age).to_numpy(), side="right")]
    return rows.frame.select(
        pl.col(user).alias("user"),
        pl.Series("age_group", ages.tolist(), dtype=pl.String),
        pl.col(gender).alias("gender"),
        pl.col(occupation).alias("occupation"),
        pl.when(pl.col(zip_code).str.contains(r"^\d"))
        .then(pl.col(zip_code).str.slice(0, 1))
        .when(pl.col(zip_code).is_not_null())
        .then(pl.lit("other"))
        .alias("zip_prefix"),
    )
