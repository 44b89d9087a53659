"""Forked children that are killed at random moments, one after the other until one comes to its end.

Forking costs milliseconds where a fresh interpreter would import everything every time.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence

from ameir_fast.progress import Progress


class Tell(Progress):
    """Writes the name of each stage into a pipe, and a dot for each step."""

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def _show_start(self):
        os.write(self.descriptor, f"{self.stage}\n".encode())

    def _show_update(self):
        os.write(self.descriptor, b".\n")


def attempt(work: Callable[[Progress], object]) -> tuple[int, int]:
    """A child that does the work; its pid and the reading end of its pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            work(Tell(writer))
        except BaseException as error:  # the parent sees the code; nothing may return into its frames
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    return child, reader


def kill_until_done(work: Callable[[Progress], object], stages: Sequence[str], kills: int, rng: random.Random,
                    events: Callable[[str | None], int], pause: float) -> list[str]:
    """The stages in which children were killed; a stage's kind is its name up to a dot.

    Kills are dealt out over the kinds. Each waits for its own, then for ``events`` stages or steps, then for up to
    ``pause`` seconds more, and so falls anywhere: in a step, while a file is written, between two stages."""
    killed: list[str] = []
    while True:
        child, reader = attempt(work)
        wanted = stages[len(killed) * len(stages) // kills] if len(killed) < kills else None
        patience, stage = events(wanted), ""
        with os.fdopen(reader) as lines:
            for line in lines:
                stage = stage if line == ".\n" else line.strip()
                if wanted is None or stages.index(stage.split(".")[0]) < stages.index(wanted):
                    continue
                patience -= 1
                if patience == 0:
                    time.sleep(rng.random() * pause)
                    os.kill(child, signal.SIGKILL)
                    killed.append(stage)
                    break
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit("the resumed work failed")
            return killed
