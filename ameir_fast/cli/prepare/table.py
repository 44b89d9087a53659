"""``prepare table``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file
from .common import Inputs, Like, Notes, Output, Overwrite, finish

NAME = "table"


def prepare(
    source: Inputs,
    output: Output,
    schema: Annotated[
        str, typer.Option("--schema", metavar="FILE", help="What the columns mean, as JSON (docs/data.md).")
    ],
    like: Like = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Any parquet or csv files, with a schema that says what their columns mean.

    \b
    ameir-fast prepare table --input clicks.parquet --schema clicks.json --output data/clicks
    ameir-fast prepare table --input new.parquet --schema clicks.json --like data/clicks --output data/new
    """
    check_json_file(json_file)
    from ...data import prepare_table

    with Notes() as notes:
        prepare_table(source, output, schema, overwrite=overwrite, like=like, on_progress=notes)
    finish(output, json_file)
