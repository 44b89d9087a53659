"""Prepares rows in forked children that are killed at random moments, until one comes to its end.

``python kill_prepare.py OUTPUT INPUT KILLS SEED`` prints a JSON list: in which stages children were killed. The parent
uses no threads.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

from ameir_fast.progress import Progress

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.killing import kill_until_done  # noqa: E402

STAGES = ("read", "split", "vocabularies", "write")


def prepare(output: Path, file: Path, progress: Progress | None) -> None:
    """Reads a row count and a seed from ``file`` and prepares such rows."""
    from ameir_fast.data import pieces
    from ameir_fast.data.build import build
    from tests.test_data_build import PLANS, Chunks, make_frame

    pieces.ROWS = 60
    frame = make_frame(*map(int, file.read_text().split()))
    build(Chunks(frame, 25, (file,)), PLANS["built history"], output, kind="k", options={}, overwrite=True,
          on_progress=progress)


def main(output: str, file: str, kills: int, seed: int) -> None:
    import ameir_fast.data.build  # noqa: F401 - once, for all children
    from tests import test_data_build  # noqa: F401

    rng = random.Random(seed)
    print(json.dumps(kill_until_done(lambda progress: prepare(Path(output), Path(file), progress), STAGES, kills, rng,
                                     lambda stage: rng.randrange(1, 9 if stage != "write" else 70), 0.05)))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
