"""``prepare sequences``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Notes, Output, Overwrite, Parts, finish, shares
from .retrieval import AllItems, Core, MaxHistory, MinCount, Ties

NAME = "sequences"


def prepare(
    source: Inputs,
    output: Output,
    form: Annotated[
        Literal["auto", "pairs", "lines", "windows"],
        typer.Option("--form", help="What a line holds; auto: told by the first line."),
    ] = "auto",
    core: Core = 0,
    split: Annotated[
        Literal["leave_one_out", "time"] | None,
        typer.Option("--split", help="Default: leave_one_out for pairs and lines, time for windows."),
    ] = None,
    parts: Parts = None,
    max_history: MaxHistory = 50,
    ties: Ties = "apart",
    all_items: AllItems = False,
    min_count: MinCount = 1,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Item sequences without anything else, for retrieval: find a user's next item.

    A line is `user item`, each user's in time order (pairs: SASRec, BERT4Rec), or `user item item ...` (lines:
    S3Rec), or `([items], [unix times])` (windows, without users). Plain, gzip or zstandard. --parts and --ties are for
    windows alone, --core is for pairs and lines.

    \b
    ameir-fast prepare sequences --input beauty.txt.gz --output data/beauty
    ameir-fast prepare sequences --input beauty.txt.gz --output data/beauty-all --all-items
    """
    check_json_file(json_file)
    from ...data import prepare_sequences

    with Notes() as notes:
        prepare_sequences(
            source, output, form=form, core=core, split=split, parts=shares(parts), max_history=max_history,
            all_items=all_items, min_count=min_count, ties=ties, overwrite=overwrite, on_progress=notes,
        )
    finish(output, json_file)
