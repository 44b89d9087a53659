"""``prepare synthetic``."""

from __future__ import annotations

from typing import Annotated

import typer

from ...errors import InputError
from ..common import JsonFile, check_json_file
from .common import Notes, Output, Overwrite, Parts, finish, shares

NAME = "synthetic"


def prepare(
    output: Output,
    rows: Annotated[int, typer.Option("--rows", min=10, metavar="R", help="Rows to draw.")] = 1_000_000,
    fields: Annotated[
        int, typer.Option("--fields", min=1, metavar="N", help="Fields; field 0 is the item that histories are made of.")
    ] = 12,
    vocabulary: Annotated[
        str, typer.Option("--vocabulary", metavar="V[,V…]", help="Ids of every field, or of each of the N fields.")
    ] = "100",
    exponent: Annotated[
        float, typer.Option("--exponent", min=0, help="Frequency of an id: rank^-exponent (Zipf); 0 is uniform.")
    ] = 1.0,
    interaction: Annotated[
        list[str] | None,
        typer.Option(
            "--interaction", metavar="F,F…[:S]",
            help="Planted interaction of these fields, with strength S (default 1); may be given several times, or "
            "as none. Default, where there are 10 fields or more: 1,2 and 3,4,5 and 6,7,8,9.",
        ),
    ] = None,
    heredity: Annotated[
        float,
        typer.Option(min=0, help="Mean of the levels an interaction multiplies: above 0 its parts show as well."),
    ] = 0.0,
    main: Annotated[float, typer.Option(min=0, help="Strength of all fields' own effects together.")] = 0.3,
    behavior: Annotated[
        str, typer.Option("--behavior", metavar="SIGNAL[,SIGNAL…]", help="none, or any of sum, order, target.")
    ] = "none",
    behavior_strength: Annotated[float, typer.Option(min=0, help="Strength of each behaviour signal.")] = 1.0,
    history_mean: Annotated[
        float, typer.Option(min=0, metavar="T", help="Mean number of a row's earlier events; 0: no history.")
    ] = 15.0,
    max_history: Annotated[int, typer.Option(min=1, metavar="T", help="The newest that many are used.")] = 20,
    noise: Annotated[
        float, typer.Option(min=0, help="Share of labels drawn at the base rate whatever the row.")
    ] = 0.0,
    base_rate: Annotated[float, typer.Option(help="Share of positive labels.")] = 0.3,
    seed: Annotated[int, typer.Option(help="Same options and seed, same data.")] = 0,
    parts: Parts = None,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Data with planted truth: what interacts is known, and so is the AUC of the best possible model.

    Strengths are deviations of the parts of the logit. statistics.json says under truth what was planted and, for
    each split, the AUC that no model can beat but by luck.

    \b
    ameir-fast prepare synthetic --output data/planted
    ameir-fast prepare synthetic --output data/order --behavior order --interaction none --rows 200000
    ameir-fast prepare synthetic --output data/triple --interaction 3,4,5:0.5 --vocabulary 30 --history-mean 0
    """
    check_json_file(json_file)
    from ...data import SyntheticOptions, prepare_synthetic

    chosen = {} if interaction is None and fields >= 10 else {"interactions": _interactions(interaction or [])}
    if parts is not None:
        chosen["parts"] = shares(parts)
    options = SyntheticOptions(
        rows=rows, fields=fields, vocabulary=tuple(_integers("--vocabulary", vocabulary)), exponent=exponent,
        heredity=heredity, main=main, behavior=tuple(b for b in behavior.split(",") if b != "none"),
        behavior_strength=behavior_strength, history_mean=history_mean, max_history=max_history, noise=noise,
        base_rate=base_rate, seed=seed, **chosen,
    )
    with Notes() as notes:
        prepare_synthetic(options, output, overwrite=overwrite, on_progress=notes)
    finish(output, json_file)


def _interactions(texts: list[str]) -> tuple:
    from ...data import Interaction

    found = []
    for text in texts:
        if text == "none":
            continue
        fields, _, strength = text.partition(":")
        numbers = tuple(_integers("--interaction", fields))
        try:
            found.append(Interaction(numbers, float(strength or 1)))
        except ValueError:
            raise InputError(f"--interaction {text!r}: the strength {strength!r} is not a number") from None
    return tuple(found)


def _integers(option: str, text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise InputError(f"{option} {text!r}: not numbers with commas between them") from None
