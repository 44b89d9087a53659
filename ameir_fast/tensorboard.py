"""TensorBoard logging of a run, fed from its ``history.jsonl``: one logger a repeat, one tag a stage and
metric."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from .errors import InputError
from .progress import Progress

DIRECTORY = "tensorboard"
NOT_METRICS = ("time", "repeat", "stage", "step", "total")


class TensorBoardProgress(Progress):
    """Passes everything on to another progress and copies new history records to ``RUN/tensorboard``.

    The history is what survives a kill, so a resumed run simply writes its logs anew from there.

    Raises:
        InputError: the package tensorboard is not installed.
    """

    def __init__(self, inner: Progress, run_dir: str | Path):
        super().__init__()
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise InputError(
                "--tensorboard needs the package tensorboard: pip install 'ameir-fast[tensorboard]'"
            ) from None
        self._writer_class = SummaryWriter
        self._inner = inner
        self._run = Path(run_dir)
        self._writers: dict[int, Any] = {}
        self._read = 0

    def plan(self, stages: int) -> None:
        self._inner.plan(stages)

    def start(self, stage: str, total: int, unit: str = "step", done: int = 0) -> None:
        self._inner.start(stage, total, unit, done)

    def update(self, done: int, **metrics: float) -> None:
        self._inner.update(done, **metrics)
        if metrics:
            self._copy()

    def finish(self, summary: str = "") -> None:
        self._inner.finish(summary)
        self._copy()

    def note(self, text: str) -> None:
        self._inner.note(text)

    def close(self) -> None:
        self._inner.close()
        self._copy()
        for writer in self._writers.values():
            writer.close()

    def _copy(self) -> None:
        """Write the records that the history has gained, whole lines only."""
        history = self._run / "history.jsonl"
        if not history.exists():
            return
        with open(history, "rb") as file:
            file.seek(self._read)
            new = file.read()
        new = new[: new.rfind(b"\n") + 1]
        self._read += len(new)
        for line in new.splitlines():
            self._add(json.loads(line))

    def _add(self, record: dict) -> None:
        repeat = record.get("repeat", 0)
        if not self._writers and (self._run / DIRECTORY).exists():
            shutil.rmtree(self._run / DIRECTORY)
        if repeat not in self._writers:
            self._writers[repeat] = self._writer_class(str(self._run / DIRECTORY / f"repeat-{repeat}"))
        for key, value in record.items():
            if key not in NOT_METRICS and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writers[repeat].add_scalar(f"{record['stage']}/{key}", value, record.get("step"))
