"""``prepare``: from files as they come to the columns that everything else reads."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import InputError
from .common import JsonFile, check_json_file, say, write_result

AVAILABLE = ("movielens", "table")
PLANNED = ("criteo", "avazu", "alimama", "amazon", "steam", "sequences", "recbole", "fuxictr", "synthetic")


def prepare(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="movielens or table.")],
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="New directory for the prepared data.")
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="PATH",
            help="What to read; table takes it several times. Without it movielens is downloaded.",
        ),
    ] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="FILE", help="table: what the columns mean, as JSON.")
    ] = None,
    max_history: Annotated[
        int | None,
        typer.Option("--max-history", min=1, metavar="T", help="movielens: newest T ratings. Default: 20."),
    ] = None,
    user_field: Annotated[
        bool, typer.Option("--user-field", help="movielens: the user's id as a field of the default view.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the output directory holds.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Turn files into prepared data: typed columns, vocabularies, splits by time, statistics.

    movielens is MovieLens-100K. Without --input it is taken from the recbole wheel on the package index,
    which is downloaded once, checked by its hash, and kept beside the output. table is any parquet or csv
    file with a schema.

    \b
    ameir-fast prepare movielens --output data/movielens-100k
    ameir-fast prepare movielens --input ml-100k --output data/movielens-100k --max-history 50
    ameir-fast prepare table --input clicks.parquet --schema clicks.json --output data/clicks

    The output appears as a whole or not at all. statistics.json in it says what was read and what was
    dropped, and why.
    """
    check_json_file(json_file)
    if kind in PLANNED:
        raise InputError(f"not available yet: {kind}; available: {', '.join(AVAILABLE)}")
    if kind not in AVAILABLE:
        raise InputError(f"unknown kind of data {kind!r}; available: {', '.join(AVAILABLE)}")
