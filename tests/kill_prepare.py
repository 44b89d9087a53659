"""Prepares rows in forked children that are killed at random moments, until one comes to its end.

``python kill_prepare.py OUTPUT INPUT KILLS SEED`` prints a JSON object: in which stages children were killed. Forking
costs milliseconds where a fresh interpreter would import everything every time; the parent uses no threads.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
import time
from pathlib import Path

from ameir_fast.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
STAGES = ("read", "split", "vocabularies", "write")


class Tell(Progress):
    """Writes the name of each stage into a pipe, and a dot for each step."""

    def __init__(self, descriptor: int):
        super().__init__()
        self.descriptor = descriptor

    def _show_start(self):
        os.write(self.descriptor, f"{self.stage}\n".encode())

    def _show_update(self):
        os.write(self.descriptor, b".\n")


def prepare(output: Path, file: Path, progress: Progress | None) -> None:
    """Reads a row count and a seed from ``file`` and prepares such rows."""
    from ameir_fast.data import pieces
    from ameir_fast.data.build import build
    from tests.test_data_build import PLANS, Chunks, make_frame

    pieces.ROWS = 60
    frame = make_frame(*map(int, file.read_text().split()))
    build(Chunks(frame, 25, (file,)), PLANS["built history"], output, kind="k", options={}, overwrite=True,
          on_progress=progress)


def attempt(output: Path, file: Path) -> tuple[int, int]:
    """A child that prepares; its pid and the reading end of its pipe."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            prepare(output, file, Tell(writer))
        except BaseException as error:  # the parent sees the code; nothing may return into its frames
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    os.close(writer)
    return child, reader


def main(output: str, file: str, kills: int, seed: int) -> None:
    import ameir_fast.data.build  # noqa: F401 - once, for all children
    from tests import test_data_build  # noqa: F401

    rng, killed = random.Random(seed), []
    while True:
        child, reader = attempt(Path(output), Path(file))
        # Kills are dealt out over the stages; each waits for its stage, some steps of it, and a moment more, and so
        # falls anywhere: while a piece is written, between two stages, while the output is moved into its place.
        wanted = STAGES[len(killed) * len(STAGES) // kills] if len(killed) < kills else None
        patience, stage = rng.randrange(1, 9 if wanted != "write" else 70), ""
        with os.fdopen(reader) as lines:
            for line in lines:
                stage = stage if line == ".\n" else line.strip()
                if wanted is None or STAGES.index(stage) < STAGES.index(wanted):
                    continue
                patience -= 1
                if patience == 0:
                    time.sleep(rng.random() * 0.05)
                    os.kill(child, signal.SIGKILL)
                    killed.append(stage)
                    break
        _, status = os.waitpid(child, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise SystemExit("the resumed preparation failed")
            break
    print(json.dumps(killed))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
