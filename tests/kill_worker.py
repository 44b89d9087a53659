"""Runs a search in forked children that are killed at random moments, and resumes it until it is done.

``python kill_worker.py DATA RUN KILLS SEED`` prints a JSON object: how many kills were delivered and in which
stages.
"""

from __future__ import annotations

import json
import random
import sys
from pathlib import Path

import torch

from ameir_fast.data import Dataset
from ameir_fast.search import search

sys.path.insert(0, str(Path(__file__).resolve().parent))
from killing import kill_until_done  # noqa: E402
from tiny import CONFIG  # noqa: E402


STEPS = ("behavior", "interactions", "mlp", "retrain")


def main(data_dir: str, run_dir: str, kills: int, seed: int) -> None:
    torch.set_num_threads(2)  # trainings side by side are killed as well
    data, run, rng = Dataset.open(data_dir), Path(run_dir), random.Random(seed)
    killed = kill_until_done(lambda progress: search(data, run, CONFIG, resume=True, progress=progress), STEPS, kills,
                             rng, lambda step: rng.randrange(1, 12), 0.02)
    print(json.dumps({"kills": len(killed), "stages": killed}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
