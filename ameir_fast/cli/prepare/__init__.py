"""``prepare KIND``: from files as they come to the columns that everything else reads. One file a kind of data."""

from __future__ import annotations

import typer

from . import alimama, amazon, avazu, criteo, fuxictr, movielens, recbole, sequences, steam, synthetic, table

app = typer.Typer(
    help=(
        "Turn files into prepared data: typed columns, vocabularies, splits, statistics.\n\n"
        "  ameir-fast prepare movielens --output data/movielens-100k\n\n"
        "  ameir-fast prepare table --input clicks.parquet --schema clicks.json --output data/clicks\n\n"
        "Each kind of data explains itself: ameir-fast prepare KIND --help. The output appears as a whole or not at "
        "all; statistics.json in it says what was read and what was dropped, and why."
    ),
    subcommand_metavar="KIND [OPTIONS]",
    no_args_is_help=True,
    rich_markup_mode=None,
)

KINDS = (movielens, criteo, avazu, alimama, amazon, steam, sequences, recbole, fuxictr, table, synthetic)
for _kind in KINDS:
    app.command(_kind.NAME)(_kind.prepare)
