"""``prepare amazon``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Notes, Output, Overwrite, Parts, finish, shares
from .retrieval import AllItems, Core, MaxHistory, MinCount, Repeats, Split, Ties

NAME = "amazon"


def prepare(
    source: Inputs,
    output: Output,
    columns: Annotated[
        str | None,
        typer.Option(
            "--columns",
            metavar="NAMES",
            help="Order of user,item,rating,timestamp in csv without names. Default: told by the first line.",
        ),
    ] = None,
    core: Core = 5,
    min_rating: Annotated[
        float | None, typer.Option("--min-rating", metavar="R", help="Leave out reviews below R. Default: none.")
    ] = None,
    repeats: Repeats = "distinct",
    split: Split = "leave_one_out",
    parts: Parts = None,
    ties: Ties = "apart",
    max_history: MaxHistory = 50,
    all_items: AllItems = False,
    min_count: MinCount = 1,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Amazon reviews as UCSD published them in 2014, 2018 and 2023, for retrieval: find a user's next product.

    JSON lines (also the 5-core files), or csv of ratings with or without names. Plain, gzip or zstandard.

    \b
    ameir-fast prepare amazon --input reviews_Beauty_5.json.gz --output data/amazon-beauty
    ameir-fast prepare amazon --input ratings_Beauty.csv --output data/amazon-beauty --ties file --all-items
    """
    check_json_file(json_file)
    from ...data import prepare_amazon

    with Notes() as notes:
        prepare_amazon(
            source, output, columns=None if columns is None else columns.split(","), core=core, min_rating=min_rating,
            repeats=repeats, split=split, parts=shares(parts), ties=ties, max_history=max_history,
            all_items=all_items, min_count=min_count, overwrite=overwrite, on_progress=notes,
        )
    finish(output, json_file)
