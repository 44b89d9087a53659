"""Trainings of small models side by side: each with a part of the threads, in one display, on one clock.

One small model hardly gains from a second thread, two models side by side nearly double the rate. Threads and not
processes: PyTorch releases the interpreter's lock in its operations and in backward, and a killed run leaves no
child behind that would write on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import replace
from typing import TypeVar

import torch

from ..progress import Progress, count
from .training import Task

T = TypeVar("T")


def together(task: Task, stage: str, jobs: Sequence[Callable[[Task], T]]) -> list[T]:
    """The results of ``jobs`` in their order; each is one training and gets the task to train with.

    On a CPU as many run at a time as there are threads, which they share evenly; elsewhere one after the other.
    A training's threads depend on how many ``jobs`` there are, not on how many of them an earlier session has
    finished, so that a resumed run computes the same. The first error, or Ctrl-C, ends all of them at their next
    step and is raised. ``stage`` names them in the display.
    """
    if not jobs:
        return []
    threads = torch.get_num_threads()
    side_by_side = min(threads, len(jobs)) if str(task.device) == "cpu" else 1
    each, clock, display = max(1, threads // side_by_side), _Clock(), _Display(task.progress, stage, len(jobs))

    def run(job: Callable[[Task], T]) -> T:
        # The number of threads of an operation is a setting of the thread that calls it.
        torch.set_num_threads(each)
        with clock:
            return job(replace(task, progress=_Part(display), clock=clock))

    try:
        with ThreadPoolExecutor(side_by_side, thread_name_prefix=stage) as pool:
            try:
                futures = [pool.submit(run, job) for job in jobs]
                for future in as_completed(futures):
                    future.result()
            except BaseException:
                display.cancelled = True
                pool.shutdown(wait=True, cancel_futures=True)
                raise
    finally:
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
    """One stage for all trainings, which are equally long unless they stop early; a line for each that ends."""

    def __init__(self, progress: Progress, stage: str, trainings: int):
        self.progress, self.stage, self.trainings = progress, stage, trainings
        self.lock = threading.Lock()
        self.cancelled = False
        self.parts: list[_Part] = []

    def show(self, **metrics: float) -> None:
        done = sum(part.done for part in self.parts)
        self.progress.update(min(done, self.progress.total), **metrics)

    def finish(self) -> None:
        if self.parts:
            self.progress.finish(count(self.trainings, "training"))


class _Part(Progress):
    """The progress of one training, told to the display."""

    def __init__(self, display: _Display):
        super().__init__()
        self.display = display

    def start(self, stage: str, total: int, unit: str = "step", done: int = 0) -> None:
        super().start(stage, total, unit, done)
        with self.display.lock:
            display = self.display
            first = not display.parts
            display.parts.append(self)
            if first:
                display.progress.start(display.stage, total * display.trainings, unit, done)

    def update(self, done: int, **metrics: float) -> None:
        with self.display.lock:
            if self.display.cancelled:
                raise _Cancelled
            super().update(done, **metrics)
            self.display.show(**metrics)

    def finish(self, summary: str = "") -> None:
        with self.display.lock:
            super().finish(summary)
            self.done = self.total  # where it stopped early as well
            self.display.show()
            self.display.progress.note(f"{self.stage}: {summary}")
