"""``prepare fuxictr``."""

from __future__ import annotations

from typing import Annotated

import typer

from ..common import JsonFile, check_json_file, say
from .common import Notes, Output, Overwrite, Parts, finish, shares

NAME = "fuxictr"


def prepare(
    source: Annotated[
        str, typer.Option("--input", metavar="PATH", help="dataset_config.yaml, or the folder that holds it.")
    ],
    output: Output,
    dataset_id: Annotated[
        str | None, typer.Option("--dataset-id", metavar="NAME", help="Its entry, where it has several.")
    ] = None,
    root: Annotated[
        str, typer.Option("--root", metavar="DIR", help="Where relative paths in it start. Default: here.")
    ] = ".",
    history: Annotated[
        str | None, typer.Option("--history", metavar="FEATURES", help="Sequence features that are the history.")
    ] = None,
    max_history: Annotated[
        int | None, typer.Option("--max-history", min=1, metavar="T", help="Newest T of it. Default: their max_len.")
    ] = None,
    bins: Annotated[
        int, typer.Option("--bins", min=0, metavar="N", help="Ranges that numbers are cut into; 0 leaves them out.")
    ] = 10,
    parts: Parts = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """csv or parquet files that a FuxiCTR configuration describes; needs PyYAML (ameir-fast[fuxictr]).

    \b
    ameir-fast prepare fuxictr --input config/dataset_config.yaml --dataset-id taobaoad_x1 --output data/taobaoad
    """
    check_json_file(json_file)
    from ...data import prepare_fuxictr

    left_out: list[str] = []
    with Notes() as notes:
        prepare_fuxictr(
            source, output, dataset_id=dataset_id, root=root,
            history=None if history is None else [name for name in history.split(",") if name],
            max_history=max_history, bins=bins, parts=shares(parts), overwrite=overwrite, on_progress=notes,
            on_note=left_out.append,
        )
    for line in left_out:
        say(json_file, line)
    finish(output, json_file)
