"""Progress of long work: a live bar on a terminal, plain lines elsewhere, silence by default.

The workers know one object, :class:`Progress`. A stage is announced with ``start``, moved with ``update``
and closed with ``finish``; ``note`` writes a line that stays. Where the number of stages is known, ``plan``
turns the stage's prefix into ``[3/9]``.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from typing import Self, TextIO


class Progress:
    """The silent base: keeps the arithmetic (rate, time left) and prints nothing.

    Also a context manager, which closes the display however the block ends.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic):
        self._clock = clock
        self.stages = 0
        self.planned = 0
        self.stage = ""
        self.total: int | None = 0
        self.unit = "step"
        self.done = 0
        self.metrics: dict[str, float] = {}
        self._began = clock()
        self._first = 0
        self._open = False

    def plan(self, stages: int) -> None:
        """Say how many stages are to come in all, those already started included."""
        self.planned = stages

    def start(self, stage: str, total: int | None, unit: str = "step", done: int = 0) -> None:
        """Open a stage of ``total`` units, ``done`` of which were finished before (a resumed run).

        A ``total`` of ``None`` is unknown; the attribute may be set when more is known.

        An earlier stage that is still open is closed without a summary.
        """
        if self._open:
            self.finish()
        self.stages += 1
        self.stage, self.unit = stage, unit
        self.total = None if total is None else max(0, int(total))
        self.done = self._first = int(done)
        self.metrics = {}
        self._began = self._clock()
        self._open = True
        self._show_start()

    def update(self, done: int, **metrics: float) -> None:
        """Say that ``done`` units of the stage are finished, and the newest values of some metrics."""
        self.done = int(done)
        self.metrics.update(metrics)
        self._show_update()

    def finish(self, summary: str = "") -> None:
        """Close the stage; ``summary`` is what was found, in a few words."""
        if not self._open:
            return
        self._open = False
        self._show_finish(summary)

    def note(self, text: str) -> None:
        """Write one line that stays."""

    def close(self) -> None:
        """Take the display down. A stage that is still open is left without a summary."""
        self._open = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def elapsed(self) -> float:
        """Seconds since the stage began."""
        return self._clock() - self._began

    @property
    def rate(self) -> float:
        """Units per second in this stage; 0 before anything can be said."""
        seconds = self.elapsed
        moved = self.done - self._first
        return moved / seconds if seconds > 0 and moved > 0 else 0.0

    @property
    def left(self) -> float | None:
        """Seconds to the end of the stage at the present rate, or None while that is unknown."""
        rate = self.rate
        known = rate > 0 and self.total is not None and self.total >= self.done
        return (self.total - self.done) / rate if known else None

    def prefix(self) -> str:
        """``[3/9] ``, or ``[3] `` while the number of stages is unknown."""
        return f"[{self.stages}/{self.planned}] " if self.planned >= self.stages else f"[{self.stages}] "

    def _count(self) -> str:
        return f"{self.done:,}" if self.total is None else f"{self.done:,}/{self.total:,}"

    def _show_start(self) -> None: ...

    def _show_update(self) -> None: ...

    def _show_finish(self, summary: str) -> None: ...


class PlainProgress(Progress):
    """Lines for logs: one when a stage begins, at most one every ``interval`` seconds, one when it ends."""

    def __init__(
        self, stream: TextIO | None = None, interval: float = 5.0, clock: Callable[[], float] = time.monotonic
    ):
        super().__init__(clock)
        self._stream = sys.stderr if stream is None else stream
        self._interval = interval
        self._printed = 0.0

    def note(self, text: str) -> None:
        self._line(text)

    def _show_start(self) -> None:
        self._printed = self._clock()
        self._line(
            f"{self.prefix()}{self.stage}"
            + (f": {count(self.total, self.unit)}" if self.total is not None else "")
            + (f", {self.done:,} done before" if self.done else "")
        )

    def _show_update(self) -> None:
        now = self._clock()
        if now - self._printed < self._interval:
            return
        self._printed = now
        percent = f" {100 * self.done / self.total:3.0f}%" if self.total else ""
        parts = [
            f"{self.prefix()}{self.stage}{percent} {self._count()}",
            show_rate(self.rate, self.unit),
        ]
        if self.metrics:
            parts.append(show_metrics(self.metrics))
        if self.left is not None:
            parts.append(f"{show_seconds(self.left)} left")
        self._line(", ".join(part for part in parts if part))

    def _show_finish(self, summary: str) -> None:
        said = summary or show_metrics(self.metrics)
        self._line(
            f"{self.prefix()}{self.stage} done in {show_seconds(self.elapsed)}"
            + (f": {said}" if said else "")
        )

    def _line(self, text: str) -> None:
        print(text, file=self._stream, flush=True)


class LineProgress(PlainProgress):
    """The same lines for a function that takes them one by one, or for nobody."""

    def __init__(self, say: Callable[[str], None] | None, interval: float = 5.0):
        super().__init__(interval=interval)
        self._say = say

    def _line(self, text: str) -> None:
        if self._say is not None:
            self._say(text)


class RichProgress(Progress):
    """A live bar for terminals: stage, bar, count, rate, metrics, time left; finished stages stay as one
    line each."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic):
        super().__init__(clock)
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as Bars

        self._console = Console(file=sys.stderr if stream is None else stream)
        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:3.0f}%"),
            TextColumn("{task.fields[numbers]}"),
            console=self._console,
            transient=True,
            refresh_per_second=8,
        )
        self._task = None

    def note(self, text: str) -> None:
        from rich.text import Text

        self._console.print(Text(text))

    def close(self) -> None:
        super().close()
        self._remove()
        self._bars.stop()

    def _show_start(self) -> None:
        self._remove()
        self._bars.start()
        # Square brackets are markup to rich; the stage's prefix has some.
        self._task = self._bars.add_task(
            f"{self.prefix()}{self.stage}".replace("[", r"\["),
            total=max(1, self.total or 0),
            completed=self.done,
            numbers="" if self.total is None else count(self.total, self.unit),
        )

    def _show_update(self) -> None:
        if self._task is None:
            return
        left = "" if self.left is None else f"{show_seconds(self.left)} left"
        parts = [
            self._count(),
            show_rate(self.rate, self.unit),
            show_metrics(self.metrics),
            left,
        ]
        numbers = " · ".join(part for part in parts if part)
        self._bars.update(self._task, total=max(1, self.total or 0), completed=self.done, numbers=numbers)

    def _show_finish(self, summary: str) -> None:
        from rich.text import Text

        self._remove()
        said = summary or show_metrics(self.metrics)
        line = Text.assemble(
            ("✓ " if self._console.encoding.lower().startswith("utf") else "+ ", "green"),
            (f"{self.prefix()}{self.stage}", "bold"),
            f"  {show_seconds(self.elapsed)}",
            f"  {said}" if said else "",
        )
        self._console.print(line)

    def _remove(self) -> None:
        if self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None


def make_progress(stream: TextIO | None = None, quiet: bool = False) -> Progress:
    """The best progress for ``stream`` (default: standard error): a live bar where it is a terminal that
    can redraw, plain lines elsewhere, nothing when ``quiet``."""
    stream = sys.stderr if stream is None else stream
    if quiet:
        return Progress()
    if stream.isatty() and os.environ.get("TERM", "") not in ("", "dumb"):
        return RichProgress(stream)
    return PlainProgress(stream)


def plural(unit: str) -> str:
    """``steps``, ``children``."""
    return {"child": "children"}.get(unit, unit if unit.endswith("s") else f"{unit}s")


def count(number: int, unit: str) -> str:
    """``1,200 steps``, ``1 step``."""
    return f"{number:,} {unit if number == 1 else plural(unit)}"


def show_seconds(seconds: float) -> str:
    """A duration to read: ``0.4 s``, ``37 s``, ``4:05`` (minutes), ``2:04:05`` (hours)."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def show_rate(rate: float, unit: str) -> str:
    """``350 steps/s``; seconds per unit below one a second; nothing at rate 0."""
    if rate <= 0:
        return ""
    if rate < 1:
        return f"{1 / rate:.1f} s/{unit}"
    number = f"{rate:,.1f}" if rate < 100 else f"{rate:,.0f}"
    return f"{number} {plural(unit)}/s"


def show_metrics(metrics: dict[str, float]) -> str:
    """``loss 0.5512, valid_auc 0.7601``."""
    return ", ".join(f"{name} {show_value(value)}" for name, value in metrics.items() if value is not None)


def show_value(value: float | str) -> str:
    """A number to read: four decimals below a thousand, none above; three significant digits when it is
    tiny."""
    if isinstance(value, float):
        if value != 0 and abs(value) < 1e-3:
            return f"{value:.3g}"
        return f"{value:.4f}" if abs(value) < 1000 else f"{value:,.0f}"
    return f"{value:,}" if isinstance(value, int) else str(value)
