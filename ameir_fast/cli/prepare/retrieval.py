"""What the retrieval commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

MaxHistory = Annotated[int, typer.Option("--max-history", min=1, metavar="T", help="Newest T items before the row's.")]
AllItems = Annotated[
    bool,
    typer.Option(
        "--all-items",
        help="Take items of all rows into the vocabulary, as papers do, and not of training rows alone. "
        "Without it valid and test rows whose item training never saw are dropped and counted.",
    ),
]
MinCount = Annotated[
    int,
    typer.Option(
        "--min-count",
        min=1,
        metavar="N",
        help="Items rarer in training rows (with --all-items, in all rows) are unknown; rows that ask for one are "
        "dropped and counted.",
    ),
]
Core = Annotated[
    int, typer.Option("--core", min=0, metavar="K", help="Keep users and items with at least K events (0: all).")
]
Repeats = Annotated[
    Literal["distinct", "first", "all"],
    typer.Option(
        "--repeats",
        help="distinct: leave out a review with the user, item and time of another; first: keep a user's first "
        "review of an item; all: keep all.",
    ),
]
Split = Annotated[
    Literal["leave_one_out", "time"],
    typer.Option(
        "--split",
        help="leave_one_out: each user's last item is for test, the one before for validation; time: by --parts.",
    ),
]
Ties = Annotated[
    Literal["apart", "file"],
    typer.Option(
        "--ties",
        help="Items of one time are not in each other's history (apart), or those of earlier lines are, as in "
        "papers (file).",
    ),
]
