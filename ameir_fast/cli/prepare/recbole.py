"""``prepare recbole``."""

from __future__ import annotations

from typing import Annotated

import typer

from ...errors import InputError
from ..common import JsonFile, check_json_file, say
from .common import Notes, Output, Overwrite, Parts, Seed, finish, shares

NAME = "recbole"


def prepare(
    source: Annotated[str, typer.Option("--input", metavar="DIR", help="Folder of the .inter, .user and .item files.")],
    output: Output,
    label: Annotated[
        str | None, typer.Option("--label", metavar="COLUMN", help="Column of zeros and ones to predict.")
    ] = None,
    threshold: Annotated[
        str | None, typer.Option("--threshold", metavar="COLUMN=NUMBER", help="Positive from this value on.")
    ] = None,
    retrieval: Annotated[bool, typer.Option("--retrieval", help="Find the item of the next interaction.")] = False,
    split: Annotated[
        str | None, typer.Option("--split", metavar="HOW", help="time, random, leave_one_out or column (the files).")
    ] = None,
    parts: Parts = None,
    seed: Seed = None,
    user: Annotated[str, typer.Option("--user", metavar="COLUMN", help="The user's id.")] = "user_id",
    item: Annotated[str, typer.Option("--item", metavar="COLUMN", help="The item's id.")] = "item_id",
    time: Annotated[str, typer.Option("--time", metavar="COLUMN", help="When it was.")] = "timestamp",
    history: Annotated[
        str | None, typer.Option("--history", metavar="COLUMNS", help="What is known of earlier events. Default: item.")
    ] = None,
    target: Annotated[
        str | None, typer.Option("--target", metavar="COLUMNS", help="The candidate's field for each of these.")
    ] = None,
    leave_out: Annotated[str, typer.Option("--leave-out", metavar="COLUMNS", help="Columns not to read.")] = "",
    max_history: Annotated[int, typer.Option("--max-history", min=1, metavar="T", help="Newest T events.")] = 50,
    bins: Annotated[
        int, typer.Option("--bins", min=0, metavar="N", help="Ranges that numbers are cut into; 0 leaves them out.")
    ] = 10,
    min_count: Annotated[
        int,
        typer.Option(
            "--min-count", min=1, metavar="N",
            help="Rarer values in training rows are unknown; with --retrieval, rows that ask for such an item are "
            "dropped and counted.",
        ),
    ] = 1,
    user_field: Annotated[
        bool, typer.Option("--user-field", help="The user's id as a field of the default view.")
    ] = False,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """RecBole's atomic files. COLUMNS are names without types, separated by commas.

    \b
    ameir-fast prepare recbole --input dataset/ml-1m --threshold rating=4 --output data/ml-1m
    ameir-fast prepare recbole --input dataset/ml-1m --threshold rating=4 --history item_id,rating \\
        --target item_id,release_year --output data/ml-1m
    ameir-fast prepare recbole --input dataset/amazon-beauty --retrieval --output data/beauty
    """
    check_json_file(json_file)
    from ...data import prepare_recbole
    from ...data.recbole import Meaning

    meaning = Meaning(
        label=label, threshold=_threshold(threshold), user=user, item=item, time=time, history=_names(history),
        target=_names(target), leave_out=_names(leave_out) or (),
    )
    left_out: list[str] = []
    with Notes() as notes:
        prepare_recbole(
            source, output, meaning, retrieval=retrieval, split=split, parts=shares(parts), seed=seed,
            max_history=max_history, bins=bins, min_count=min_count, user_field=user_field, overwrite=overwrite,
            on_progress=notes, on_note=left_out.append,
        )
    for line in left_out:
        say(json_file, line)
    finish(output, json_file)


def _names(text: str | None) -> tuple[str, ...] | None:
    return None if text is None else tuple(name for name in text.split(",") if name)


def _threshold(text: str | None) -> tuple[str, float] | None:
    if text is None:
        return None
    column, equals, number = text.rpartition("=")
    try:
        if equals and column:
            return column, float(number)
    except ValueError:
        pass
    raise InputError(f"threshold {text!r} is not COLUMN=NUMBER")
