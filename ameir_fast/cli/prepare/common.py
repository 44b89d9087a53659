"""What the ``prepare`` commands share: options, lines about the work, the end."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from typing import Annotated, Self

import typer

from ..common import say, write_result

Inputs = Annotated[
    list[str], typer.Option("--input", metavar="PATH", help="File or folder to read; may be given several times.")
]
Output = Annotated[str, typer.Option("--output", metavar="DIR", help="New directory for the prepared data.")]
Seed = Annotated[int, typer.Option("--seed", min=0, metavar="S", help="Of the random split.")]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="DIR",
        help="Take the vocabularies of this prepared data; every row is for test then, and labels may be missing.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace what the output directory holds.")]


def finish(output: str, json_file: str | None) -> None:
    """Says what was prepared, for people and as JSON."""
    from ...schema import read_json

    statistics = read_json(Path(output) / "statistics.json")
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
