"""Runs a search in forked children that are killed at random moments, and resumes it until it is done.

``python kill_worker.py DATA RUN KILLS SEED`` prints a JSON object: how many kills were delivered and in which
stages. Forking costs milliseconds where a fresh interpreter would import torch every time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import torch

from ameir_fast.data import Dataset
from ameir_fast.progress import Progress
from ameir_fast.search import search

sys.path.insert(0, str(Path(__file__).resolve().parent))
from tiny import CONFIG  # noqa: E402


STEPS = ("behavior", "interactions", "mlp", "retrain")


class Tell(Progress):
    """Writes the name of each stage into a pipe, and then each step done."""

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def _show_start(self):
        os.write(self.descriptor, f"{self.stage}\n".encode())

    def _show_update(self):
        os.write(self.descriptor, b".\n")


def attempt(data: Dataset, run: Path) -> tuple[int, int]:
    """A child that resumes the run; its pid and the reading end of its pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            search(data, run, CONFIG, resume=True, progress=Tell(writer))
        except BaseException as error:  # the parent sees the code; nothing may return into its frames
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    return child, reader


def main(data_dir: str, run_dir: str, kills: int, seed: int) -> None:
    torch.set_num_threads(2)  # trainings side by side are killed as well
    data, run, rng = Dataset.open(data_dir), Path(run_dir), random.Random(seed)
    killed: list[str] = []
    while True:
        child, reader = attempt(data, run)
        lines = os.fdopen(reader)
        stage = ""
        # Kills are dealt out over the steps; each waits for its step, then some events, then a moment more, and
        # so falls anywhere in a training step, an evaluation or the writing of a file.
        wanted = STEPS[len(killed) * len(STEPS) // kills] if len(killed) < kills else None
        patience = rng.randrange(1, 12)
        for line in lines:
            stage = stage if line == ".\n" else line.strip()
            if wanted is None or STEPS.index(stage.split(".")[0]) < STEPS.index(wanted):
                continue
            patience -= 1
            if patience == 0:
                time.sleep(rng.random() * 0.02)
                os.kill(child, signal.SIGKILL)
                killed.append(stage)
                break
        lines.close()
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit("the resumed search failed")
            break
    print(json.dumps({"kills": len(killed), "stages": killed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
