"""What the ``prepare`` commands share: options, lines about the work, the end."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Annotated, Self

import typer

from ...errors import InputError
from ...progress import Progress, make_progress
from ..common import say, write_result

Inputs = Annotated[
    list[str], typer.Option("--input", metavar="PATH", help="File or folder to read; may be given several times.")
]
Output = Annotated[str, typer.Option("--output", metavar="DIR", help="New directory for the prepared data.")]
Parts = Annotated[
    str | None,
    typer.Option(
        "--parts", metavar="A,B,C", help="Shares of the rows for train, valid and test. Default: 0.8,0.1,0.1."
    ),
]
Seed = Annotated[
    int | None, typer.Option("--seed", min=0, metavar="S", help="Of the random split. Default: 0.")
]
Like = Annotated[
    str | None,
    typer.Option(
        "--like",
        metavar="DIR",
        help="Take the vocabularies of this prepared data; every row is for test then, and labels may be missing.",
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace prepared data that the output directory holds.")]

_MOSTLY, _FIELDS_SHOWN = 0.9, 5


def shares(parts: str | None) -> tuple[float, ...] | None:
    """What ``--parts`` says. Raises ``InputError`` for a text that is not numbers."""
    try:
        return None if parts is None else tuple(float(part) for part in parts.split(","))
    except ValueError:
        raise InputError(f"parts {parts!r} are not three numbers with commas between them") from None


def finish(output: str, json_file: str | None) -> None:
    """Says what was prepared, for people and as JSON."""
    from ...schema import read_json

    statistics = read_json(Path(output) / "statistics.json")
    for line in summary(statistics):
        say(json_file, line)
    say(json_file, f"prepared: {output}")
    write_result(json_file, {"version": 1, "output": output, "statistics": statistics})


class Notes(Progress):
    """Progress on standard error, from the moment that the work has lasted ``delay`` seconds; also takes lines.

    What is quick, or wrong from the start, thus says one line only. The stage under way, or the newest line where there
    is none (a download), is shown at the end of the silent time even if nothing calls until then.
    """

    def __init__(self, delay: float = 2.0):
        super().__init__()
        self._lock = threading.Lock()
        self._inner: Progress | None = None
        self._held: str | None = None
        self._timer = threading.Timer(delay, self._show)
        self._timer.daemon = True

    def __enter__(self) -> Self:
        self._timer.start()
        return self

    def close(self) -> None:
        self._timer.cancel()
        with self._lock:
            super().close()
            self._held = None
            if self._inner is not None:
                self._inner.close()

    def __call__(self, line: str) -> None:
        self.note(line)

    def note(self, text: str) -> None:
        with self._lock:
            if self._inner is not None:
                self._inner.note(text)
            else:
                self._held = text

    def _show(self) -> None:
        with self._lock:
            self._inner = make_progress()
            if self._open:
                self._inner.stages = self.stages - 1
                self._start()
                # The rate and the time left are those since the stage began.
                self._inner._began, self._inner.done = self._began, self.done
            elif self._held is not None:
                self._inner.note(self._held)

    def _show_start(self) -> None:
        with self._lock:
            if self._inner is not None:
                self._start()

    def _start(self) -> None:
        self._inner.planned = self.planned
        self._inner.start(self.stage, self.total, self.unit, self._first)

    def _show_update(self) -> None:
        with self._lock:
            if self._inner is not None:
                self._inner.total = self.total
                self._inner.update(self.done, **self.metrics)

    def _show_finish(self, summary: str) -> None:
        with self._lock:
            if self._inner is not None:
                self._inner.finish(summary)


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
    for what, count in (statistics.get("without_attributes") or {}).items():
        if count:
            lines.append(f"without attributes {count:,}: rows whose {what} the other files don't know")
    if statistics.get("out_of_order"):
        lines.append(f"out of order {statistics['out_of_order']:,}: rows earlier than the row before them; split by order, "
                     "rows to test on may be earlier than those to learn from")
    told: set[str] = set()
    for name, split in (statistics.get("splits") or {}).items():
        shares = {field: share for field, share in (split.get("unknown_share") or {}).items() if share is not None}
        if unknown := sorted((f for f in shares if shares[f] >= _MOSTLY and f not in told), key=lambda f: -shares[f]):
            told.update(unknown)
            more = f" and {len(unknown) - _FIELDS_SHOWN} more" if len(unknown) > _FIELDS_SHOWN else ""
            shown = ", ".join(f"{field} ({100 * shares[field]:.0f}%)" for field in unknown[:_FIELDS_SHOWN])
            lines.append(f"hardly a value known in the {name} split: {shown}{more}; the others are missing, or unseen or too rare in "
                         "training rows (minimum counts decide)")
        if split.get("label_rate") in (0, 1):
            lines.append(f"all labels of the {name} split are {split['label_rate']:g}: a search needs both kinds")
    return lines
