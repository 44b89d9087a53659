"""``prepare criteo``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Notes, Output, Overwrite, Seed, finish

NAME = "criteo"


def prepare(
    source: Inputs,
    output: Output,
    numeric: Annotated[
        str,
        typer.Option(
            "--numeric",
            metavar="HOW",
            help="What becomes of I1 to I13: log2 ((ln x)² rounded down), log (ln x rounded down), or none (every number "
            "its own category).",
        ),
    ] = "log2",
    min_count: Annotated[
        int, typer.Option("--min-count", min=1, metavar="N", help="Rarer values in training rows are unknown.")
    ] = 10,
    split: Annotated[
        str, typer.Option("--split", metavar="HOW", help="order (as the files have the rows) or random.")
    ] = "order",
    seed: Seed = 0,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Criteo's display advertising logs: label, 13 counts, 26 hashed categories; tab- or comma-separated.

    A folder stands for its file train.*, or for all its text files in the order of their names. Files may be packed
    (.gz, .zst).

    \b
    ameir-fast prepare criteo --input dac/train.txt --output data/criteo
    ameir-fast prepare criteo --input day_0.gz --input day_1.gz --output data/two-days --min-count 20
    """
    check_json_file(json_file)
    from ...data import prepare_criteo

    with Notes() as notes:
        prepare_criteo(source, output, numeric=numeric, min_count=min_count, split=split, seed=seed,
                       overwrite=overwrite, on_progress=notes)
    finish(output, json_file)
