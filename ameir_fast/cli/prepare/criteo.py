"""``prepare criteo``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Like, Notes, Output, Overwrite, Parts, Seed, finish, shares

NAME = "criteo"


def prepare(
    source: Inputs,
    output: Output,
    numeric: Annotated[
        str | None,
        typer.Option(
            "--numeric",
            metavar="HOW",
            help="What becomes of I1 to I13: log2 ((ln x)² rounded down; the default), log (ln x rounded down), "
            "quantile (ranges), or none (every number its own category).",
        ),
    ] = None,
    bins: Annotated[
        int | None, typer.Option("--bins", min=2, metavar="N", help="Ranges of --numeric quantile. Default: 100.")
    ] = None,
    min_count: Annotated[
        int | None,
        typer.Option(
            "--min-count", min=1, metavar="N", help="Rarer values in training rows are unknown. Default: 10."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="HOW", help="order (as the files have the rows; the default) or random."),
    ] = None,
    parts: Parts = None,
    seed: Seed = None,
    like: Like = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Criteo's display advertising logs: label, 13 counts, 26 hashed categories; tab- or comma-separated.

    A folder stands for its file train.*, or for all its text files in the order of their names. Files may be packed
    (.gz, .zst).

    \b
    ameir-fast prepare criteo --input dac/train.txt --output data/criteo
    ameir-fast prepare criteo --input day_0.gz --input day_1.gz --output data/two-days --min-count 20
    ameir-fast prepare criteo --input dac/test.txt --like data/criteo --output data/criteo-test
    """
    check_json_file(json_file)
    from ...data import prepare_criteo

    with Notes() as notes:
        prepare_criteo(source, output, numeric=numeric, bins=bins, min_count=min_count, split=split,
                       parts=shares(parts), seed=seed, like=like, overwrite=overwrite, on_progress=notes)
    finish(output, json_file)
