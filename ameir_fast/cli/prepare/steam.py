"""``prepare steam``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Notes, Output, Overwrite, Parts, finish, shares
from .retrieval import AllItems, Core, MaxHistory, MinCount, Repeats, Split, Ties

NAME = "steam"


def prepare(
    source: Inputs,
    output: Output,
    core: Core = 5,
    min_hours: Annotated[
        float | None,
        typer.Option("--min-hours", metavar="H", help="Leave out reviews by users who played less. Default: none."),
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
    """Reviews on Steam as UCSD published them (steam_reviews.json.gz), for retrieval: find a user's next game.

    Each line is a Python dictionary; it is read as data, and nothing in it is evaluated.

    \b
    ameir-fast prepare steam --input steam_reviews.json.gz --output data/steam
    ameir-fast prepare steam --input steam_reviews.json.gz --output data/steam-time --split time
    """
    check_json_file(json_file)
    from ...data import prepare_steam

    with Notes() as notes:
        prepare_steam(
            source, output, core=core, min_hours=min_hours, repeats=repeats, split=split, parts=shares(parts),
            ties=ties, max_history=max_history, all_items=all_items, min_count=min_count, overwrite=overwrite,
            on_progress=notes,
        )
    finish(output, json_file)
