"""``prepare``: from files as they come to the columns that everything else reads."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated, Self

import typer

from ..atomic import check_output_dir
from ..errors import InputError
from .common import JsonFile, check_json_file, say, write_result

#: Where downloaded ratings are kept, beside the prepared data.
DOWNLOADED = "ml-100k"
AVAILABLE = ("movielens", "table")
PLANNED = ("criteo", "avazu", "alimama", "amazon", "steam", "sequences", "recbole", "fuxictr", "synthetic")


def prepare(
    kind: Annotated[str, typer.Argument(metavar="KIND", help="movielens or table.")],
    output: Annotated[
        str, typer.Option("--output", metavar="DIR", help="New directory for the prepared data.")
    ],
    source: Annotated[
        list[str] | None,
        typer.Option(
            "--input",
            metavar="PATH",
            help="What to read; table takes it several times. Without it movielens is downloaded.",
        ),
    ] = None,
    schema: Annotated[
        str | None, typer.Option("--schema", metavar="FILE", help="table: what the columns mean, as JSON.")
    ] = None,
    max_history: Annotated[
        int | None,
        typer.Option("--max-history", min=1, metavar="T", help="movielens: newest T ratings. Default: 20."),
    ] = None,
    user_field: Annotated[
        bool, typer.Option("--user-field", help="movielens: the user's id as a field of the default view.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace what the output directory holds.")
    ] = False,
    json_file: JsonFile = None,
) -> None:
    """Turn files into prepared data: typed columns, vocabularies, splits by time, statistics.

    movielens is MovieLens-100K. Without --input it is taken from the recbole wheel on the package index,
    which is downloaded once, checked by its hash, and kept beside the output. table is any parquet or csv
    file with a schema.

    \b
    ameir-fast prepare movielens --output data/movielens-100k
    ameir-fast prepare movielens --input ml-100k --output data/movielens-100k --max-history 50
    ameir-fast prepare table --input clicks.parquet --schema clicks.json --output data/clicks

    The output appears as a whole or not at all. statistics.json in it says what was read and what was
    dropped, and why.
    """
    check_json_file(json_file)
    if kind in PLANNED:
        raise InputError(f"not available yet: {kind}; available: {', '.join(AVAILABLE)}")
    if kind not in AVAILABLE:
        raise InputError(f"unknown kind of data {kind!r}; available: {', '.join(AVAILABLE)}")
    if kind == "table":
        if not source:
            raise InputError("prepare table needs --input")
        if schema is None:
            raise InputError("prepare table needs --schema: a JSON file that says what the columns mean")
        if max_history is not None or user_field:
            raise InputError(
                "--max-history and --user-field belong to movielens; for table the schema says both"
            )
        from ..data import prepare_table

        with Notes() as notes:
            prepare_table(source, output, schema, overwrite=overwrite, on_progress=notes)
    else:
        if schema is not None:
            raise InputError("--schema belongs to table; movielens has its own")
        if source and len(source) > 1:
            raise InputError("movielens takes one --input")
        from ..data import fetch_movielens, prepare_movielens

        check_output_dir(output, overwrite)  # before the download, not after it
        options = {} if max_history is None else {"max_history": max_history}
        with Notes() as notes:
            path = (
                source[0] if source else fetch_movielens(Path(output).parent / DOWNLOADED, on_progress=notes)
            )
            prepare_movielens(
                path, output, user_field=user_field, overwrite=overwrite, on_progress=notes, **options
            )
    from ..data import Dataset

    statistics = Dataset.open(output, verify=False).statistics
    for line in summary(statistics):
        say(json_file, line)
    say(json_file, f"prepared: {output}")
    write_result(json_file, {"version": 1, "output": output, "statistics": statistics})


class Notes:
    """Lines about work in progress on standard error, from the moment that it has lasted ``delay`` seconds.

    What is quick, or wrong from the start, thus says one line only. The newest line of the silent time is
    shown at its end, even if nothing calls until then (a download).
    """

    def __init__(self, delay: float = 2.0):
        self._lock = threading.Lock()
        self._shown = False
        self._held: str | None = None
        self._timer = threading.Timer(delay, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._timer.cancel()
        with self._lock:
            self._held, self._shown = None, False

    def __call__(self, line: str) -> None:
        with self._lock:
            if self._shown:
                print(line, file=sys.stderr, flush=True)
            else:
                self._held = line

    def _show(self) -> None:
        with self._lock:
            self._shown = True
            if self._held is not None:
                print(self._held, file=sys.stderr, flush=True)


def summary(statistics: dict) -> list[str]:
    """What was read, in a few lines."""
    lines = [f"{statistics['rows']:,} rows"]
    rate = statistics.get("label_rate")
    if isinstance(rate, (int, float)):
        lines[0] += f", {100 * rate:.1f}% positive"
    for name in ("users", "items"):
        if statistics.get(name) is not None:
            lines[0] += f", {statistics[name]:,} {name}"
    for reason, count in (statistics.get("dropped") or {}).items():
        if count:
            lines.append(f"dropped {count:,}: {reason}")
    return lines
