"""``prepare avazu``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Like, Notes, Output, Overwrite, Parts, Seed, finish, shares

NAME = "avazu"


def prepare(
    source: Inputs,
    output: Output,
    min_count: Annotated[
        int | None,
        typer.Option(
            "--min-count", min=1, metavar="N", help="Rarer values in training rows are unknown. Default: 2."
        ),
    ] = None,
    split: Annotated[
        str | None,
        typer.Option("--split", metavar="HOW", help="time (hours stay whole; the default), order, or random."),
    ] = None,
    parts: Parts = None,
    seed: Seed = None,
    like: Like = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Avazu's mobile ad clicks: label, hour, 21 categories, with a header as in Kaggle's train.gz.

    A folder stands for its file train.*, or for all its text files in the order of their names. Files may be packed
    (.gz, .zst).

    \b
    ameir-fast prepare avazu --input train.gz --output data/avazu
    ameir-fast prepare avazu --input test.gz --like data/avazu --output data/avazu-test
    """
    check_json_file(json_file)
    from ...data import prepare_avazu

    with Notes() as notes:
        prepare_avazu(source, output, min_count=min_count, split=split, parts=shares(parts), seed=seed, like=like,
                      overwrite=overwrite, on_progress=notes)
    finish(output, json_file)
