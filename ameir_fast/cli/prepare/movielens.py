"""``prepare movielens``."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Notes, Output, Overwrite, Parts, Seed, finish, shares

NAME = "movielens"
#: Where downloaded ratings are kept, beside the prepared data.
DOWNLOADED = "ml-100k"


def prepare(
    output: Output,
    source: Annotated[
        str | None,
        typer.Option("--input", metavar="PATH", help="Folder to read. Without it MovieLens-100K is downloaded."),
    ] = None,
    max_history: Annotated[
        int | None, typer.Option("--max-history", min=1, metavar="T", help="Newest T ratings. Default: 20.")
    ] = None,
    user_field: Annotated[
        bool, typer.Option("--user-field", help="The user's id as a field of the default view.")
    ] = False,
    retrieval: Annotated[
        bool, typer.Option("--retrieval", help="Find the movie rated next, instead of predicting its rating.")
    ] = False,
    threshold: Annotated[
        float | None,
        typer.Option("--threshold", metavar="R", help="A rating of R or more is a positive. Default: 4."),
    ] = None,
    min_count: Annotated[
        int,
        typer.Option(
            "--min-count", min=1, metavar="N",
            help="Rarer values in training rows are unknown; with --retrieval, rows that ask for such a movie are "
            "dropped and counted.",
        ),
    ] = 1,
    split: Annotated[
        str | None,
        typer.Option(
            "--split", metavar="HOW",
            help="time (the default) or random; with --retrieval leave_one_out (its default) or time.",
        ),
    ] = None,
    parts: Parts = None,
    seed: Seed = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """MovieLens: ratings with user and item attributes and time; a rating from 4 on (--threshold) is a positive.

    The folder holds 100K (u.data, u.item, u.user), 1M (ratings.dat, movies.dat, users.dat), 10M (without users.dat),
    20M and later (ratings.csv, movies.csv), or RecBole's atomic files; what is there decides. Without --input
    MovieLens-100K is taken from the recbole wheel on the package index, which is downloaded once, checked by its
    hash, and kept beside the output.

    \b
    ameir-fast prepare movielens --output data/movielens-100k
    ameir-fast prepare movielens --input ml-100k --output data/movielens-100k --max-history 50
    ameir-fast prepare movielens --input ml-1m --output data/ml-1m-next --retrieval --max-history 50
    """
    check_json_file(json_file)
    from ...data import fetch_movielens, prepare_movielens
    from ...data.work import check_output

    check_output(output, overwrite)  # before the download, not after it
    options = {} if max_history is None else {"max_history": max_history}
    with Notes() as notes:
        path = source or fetch_movielens(Path(output).parent / DOWNLOADED, on_progress=notes)
        prepare_movielens(
            path, output, user_field=user_field, retrieval=retrieval, threshold=threshold, min_count=min_count,
            split=split, parts=shares(parts), seed=seed, overwrite=overwrite, on_progress=notes, **options
        )
    finish(output, json_file)
