"""What the commands share: the ``--json`` option, tables on the terminal, one-line messages."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InputError

#: Exit code of a process ended by Ctrl-C (128 + SIGINT).
INTERRUPTED = 130


class Interrupted(Exception):
    """An interruption that has been explained to the user already."""


JsonFile = Annotated[
    str | None,
    typer.Option(
        "--json",
        metavar="FILE",
        help="Also write the result as JSON to FILE, whole or not at all; - is standard output.",
    ),
]
Engine = Annotated[
    str,
    typer.Option(
        "--engine", metavar="E", help="model (PyTorch), or what serves it on the CPU: plan, plan-bfloat16."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option("--threads", min=1, metavar="T", help="Threads of PyTorch. Default: its own choice."),
]


def check_json_file(json_file: str | None) -> None:
    """Raise InputError before the work when its result could not be written afterwards."""
    if json_file is None or json_file == "-":
        return
    path = Path(json_file)
    if path.is_dir():
        raise InputError(f"--json {path}: is a directory")
    if not path.parent.is_dir():
        raise InputError(f"--json {path}: directory {path.parent} does not exist")
    if not os.access(path.parent if not path.exists() else path, os.W_OK):
        raise InputError(f"--json {path}: not writable")


def write_result(json_file: str | None, value: Any) -> None:
    """Write the machine-readable result where ``--json`` asked for it."""
    _write(
        json_file, lambda indent: json.dumps(value, indent=indent, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_rows(json_file: str | None, rows: Sequence[dict]) -> None:
    """Write rows as JSON lines, one object a line."""
    _write(
        json_file,
        lambda _: "".join(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n" for row in rows),
    )


def _write(json_file: str | None, form: Any) -> None:
    if json_file is None:
        return
    text = form(2)
    if json_file == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    from ..atomic import write_text

    write_text(json_file, text)


def say(json_file: str | None, text: str = "") -> None:
    """Print for people: to standard output, or to standard error when that belongs to ``--json -``."""
    print(text, file=sys.stderr if json_file == "-" else sys.stdout, flush=True)


def show_table(
    json_file: str | None,
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    strong: Sequence[bool] = (),
    text_columns: Sequence[int] = (0,),
) -> None:
    """A table for people. Off a terminal it takes the width it needs, so that logs keep all of it."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    stream = sys.stderr if json_file == "-" else sys.stdout
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for column, name in enumerate(header):
        table.add_column(
            name, justify="left" if column in text_columns else "right", no_wrap=column not in text_columns
        )
    for index, row in enumerate(rows):
        style = "bold" if index < len(strong) and strong[index] else ""
        table.add_row(*(Text(str(cell)) for cell in row), style=style)
    console = Console(file=stream, width=None if stream.isatty() else 200, highlight=False)
    console.print(Text(title, style="bold"))
    console.print(table)


def one_line(message: str) -> str:
    """A message without line breaks or runs of blanks."""
    return " ".join(message.split())


def set_threads(threads: int | None) -> None:
    """Give PyTorch ``threads`` threads for the rest of the process."""
    if threads is not None:
        import torch

        torch.set_num_threads(threads)
