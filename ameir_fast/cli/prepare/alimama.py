"""``prepare alimama``."""

from __future__ import annotations

from typing import Annotated

import typer

from ...errors import InputError
from ..common import JsonFile, check_json_file
from .common import Inputs, Notes, Output, Overwrite, finish, shares

NAME = "alimama"
_RAW, _DMR = "raw", "dmr"


def prepare(
    source: Inputs,
    output: Output,
    form: Annotated[
        str, typer.Option("--form", metavar="FORM", help="raw: the four files; dmr: 267 columns a line.")
    ] = _RAW,
    behaviors: Annotated[
        str, typer.Option("--behaviors", metavar="KINDS", help="Kinds that make histories: some of pv,cart,fav,buy.")
    ] = "pv",
    since: Annotated[
        int | None, typer.Option("--since", metavar="SECONDS", help="Leave out behaviours before this Unix time.")
    ] = None,
    test_from: Annotated[
        int | None,
        typer.Option("--test-from", metavar="SECONDS", help="First Unix time of the test split. Default: 2017-05-13."),
    ] = None,
    split: Annotated[
        str, typer.Option("--split", metavar="HOW", help="last-day: the test split is what --test-from says; or time.")
    ] = "last-day",
    test: Annotated[
        list[str] | None, typer.Option("--test", metavar="PATH", help="dmr: file or folder of the test split, or several.")
    ] = None,
    parts: Annotated[
        str | None,
        typer.Option(
            "--parts", metavar="A,B,C",
            help="Shares of the rows for train, valid and test; where the last day or --test is the test split, "
            "A and B part the others. Default: 0.8,0.1,0.1.",
        ),
    ] = None,
    seed: Annotated[
        int | None, typer.Option("--seed", min=0, metavar="S", help="dmr: of the random split. Default: 0.")
    ] = None,
    max_history: Annotated[int, typer.Option("--max-history", min=1, metavar="T", help="Newest T behaviours.")] = 50,
    all_fields: Annotated[
        bool, typer.Option("--all-fields", help="Ad, campaign, advertiser and price in the default view too.")
    ] = False,
    min_count: Annotated[
        int, typer.Option("--min-count", min=1, metavar="N", help="Rarer values have no id of their own.")
    ] = 1,
    overwrite: Overwrite = False,
    json_file: JsonFile = None,
) -> None:
    """Alimama (Ali_Display_Ad_Click): Taobao's display ads, with what their users viewed and bought before.

    The folder holds raw_sample.csv, ad_feature.csv, user_profile.csv and behavior_log.csv. The log of 700 million
    behaviours is sorted on the disk beside the output.

    \b
    ameir-fast prepare alimama --input Ali_Display_Ad_Click --output data/alimama
    ameir-fast prepare alimama --form dmr --input train_sorted.csv --test test.csv --output data/alimama-dmr
    """
    check_json_file(json_file)
    from ...data import prepare_alimama, prepare_alimama_dmr
    from ...data.alimama import LAST_DAY

    if form not in (_RAW, _DMR):
        raise InputError(f"form {form!r} is neither {_RAW} nor {_DMR}")
    if split not in ("last-day", "time"):
        raise InputError(f"split {split!r} is neither last-day nor time")
    if split == "time" and test_from is not None:
        raise InputError("--test-from belongs to --split last-day")
    if form == _DMR and (behaviors != "pv" or since is not None or test_from is not None or split == "time"):
        raise InputError("--behaviors, --since, --test-from and --split belong to the raw form")
    common = {"parts": shares(parts), "max_history": max_history, "all_fields": all_fields, "min_count": min_count,
              "overwrite": overwrite}
    with Notes() as notes:
        if form == _DMR:
            prepare_alimama_dmr(source, output, test_paths=test or (), seed=seed, on_progress=notes, **common)
        elif seed is not None:
            raise InputError("--seed belongs to the dmr form; the raw form has no split at random")
        elif len(source) != 1 or test:
            raise InputError("the raw form is one folder, and has no file of a test split")
        else:
            kinds = [kind for kind in behaviors.split(",") if kind]
            test_from = None if split == "time" else LAST_DAY if test_from is None else test_from
            prepare_alimama(
                source[0], output, behaviors=kinds, since=since, test_from=test_from, on_progress=notes, **common
            )
    finish(output, json_file)
