"""Trainings of small models side by side: each with a part of the threads, in one display, on one clock.

A second thread brings a small model little; a second model beside it brings more. Threads and not processes: PyTorch
releases the interpreter's lock in its operations and in backward, and a killed run leaves no child behind that would
write on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import replace
from typing import TypeVar

import torch

from ..progress import Progress, count
from .training import Task

T = TypeVar("T")


def together(task: Task, stage: str, jobs: Sequence[Callable[[Task], T]]) -> list[T]:
    """The results of ``jobs`` in their order; each is one training and gets the task to train with.

    On a CPU as many run at a time as there are threads, each with an equal part of them (and its own model and
    optimizer in memory); elsewhere one after the other. A training's threads depend on how many ``jobs`` there are,
    not on how many of them an earlier session has finished, so that a resumed run computes the same. The first error,
    or Ctrl-C, ends all of them at their next step and is raised. ``stage`` names them in the display.
    """
    if not jobs:
        return []
    threads = torch.get_num_threads()
    side_by_side = min(threads, len(jobs)) if str(task.device) == "cpu" else 1
    clock, display = _Clock(), _Display(task.progress, stage, len(jobs))

    def run(job: Callable[[Task], T]) -> T:
        # The number of threads of an operation is a setting of the thread that calls it.
        torch.set_num_threads(max(1, threads // side_by_side))
        part = _Part(display)
        with clock:
            result = job(replace(task, progress=part, clock=clock))
        display.ended(part)
        return result

    pool = ThreadPoolExecutor(side_by_side)
    try:
        futures = [pool.submit(run, job) for job in jobs]
        running = set(futures)
        while running:  # timed, because polars' handler of Ctrl-C lets the system go on with an endless wait
            done, running = wait(running, 0.2, FIRST_EXCEPTION)
            for future in done:
                future.result()
    finally:
        display.cancelled = True
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)
    display.finish()
    return [future.result() for future in futures]


class _Clock:
    """Seconds that run slower the more trainings share the machine: those of all of them add up to the time that
    passed. A training is within the block while it runs."""

    def __init__(self):
        self._lock = threading.Lock()
        self._running = 0
        self._seconds = 0.0
        self._read = time.perf_counter()

    def __call__(self) -> float:
        with self._lock:
            return self._advance(0)

    def __enter__(self) -> None:
        with self._lock:
            self._advance(+1)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._advance(-1)

    def _advance(self, change: int) -> float:
        now = time.perf_counter()
        self._seconds += (now - self._read) / max(1, self._running)
        self._read = now
        self._running += change
        return self._seconds


class _Cancelled(Exception):
    """Ends a training whose neighbour failed."""


class _Display:
    """One stage for all trainings, each of which counts for ``length`` steps; a line for each that ends."""

    def __init__(self, progress: Progress, stage: str, trainings: int):
        self.progress, self.stage, self.trainings = progress, stage, trainings
        self.lock = threading.Lock()
        self.cancelled = False
        self.length = 0      # steps of the first to start; 0 while none has
        self.complete = 0    # trainings that ended, those of earlier sessions among them
        self.running: set[_Part] = set()

    @property
    def done(self) -> int:
        return self.complete * self.length + sum(min(part.done, self.length) for part in self.running)

    def started(self, part: _Part) -> None:
        with self.lock:
            if self.cancelled:  # Ctrl-C while its thread was being started, which the pool then doesn't wait for
                raise _Cancelled
            self.running.add(part)
            if not self.length:
                self.length = part.total
                self.progress.start(self.stage, self.length * self.trainings, part.unit, self.done)

    def moved(self, **metrics: float) -> None:
        with self.lock:
            if self.cancelled:
                raise _Cancelled
            self.progress.update(self.done, **metrics)

    def ended(self, part: _Part) -> None:
        with self.lock:
            self.complete += 1
            if part in self.running:
                self.running.remove(part)
                self.progress.update(self.done)
                self.progress.note(part.line)

    def finish(self) -> None:
        if self.length:
            self.progress.finish(count(self.trainings, "training"))


class _Part(Progress):
    """The progress of one training, told to the display."""

    def __init__(self, display: _Display):
        super().__init__()
        self.display, self.line = display, ""

    def start(self, stage: str, total: int, unit: str = "step", done: int = 0) -> None:
        super().start(stage, total, unit, done)
        self.display.started(self)

    def update(self, done: int, **metrics: float) -> None:
        super().update(done, **metrics)
        self.display.moved(**metrics)

    def finish(self, summary: str = "") -> None:
        super().finish(summary)
        self.line = f"{self.stage}: {summary}"
