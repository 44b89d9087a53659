"""Whether dropout helps a table's found paths: each trained once with some rates, and beside it the plain path.

    python -m ameir_fast.bench.blocks --data data/beauty20 --table bench/results/beauty.json --seeds 1,2,3 \
        --rates 0,0.3 --json bench/results/beauty-blocks.jsonl

Trainings are those of ``ameir-fast train`` with the settings of the table and ``block_dropout``; the score is the best
validation's, and the test split is not read. A line says one training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

from ..atomic import write_text
from ..data import Dataset
from ..progress import Progress
from ..search import SearchConfig
from ..search.context import fresh_model, train_model
from ..search.environment import describe
from ..search.objective import make_objective
from ..search.seeds import seeded_initialization
from ..search.store import RunDirectory
from ..search.training import Task
from ..space import Architecture


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared data, that of the table")
    parser.add_argument("--table", type=Path, required=True, help="written by bench.quality")
    parser.add_argument("--seeds", default="0", help="whose found AMEIR-A is trained")
    parser.add_argument("--rates", default="0,0.3")
    parser.add_argument("--json", type=Path, required=True)
    args = parser.parse_args(argv)
    table, data = json.loads(args.table.read_text(encoding="utf-8")), Dataset.open(args.data)
    jobs = []
    for seed in map(int, args.seeds.split(",")):
        found = Architecture.from_dict(table["found"][seed]["AMEIR-A"])
        config = SearchConfig.from_dict(table["config"]).changed(seed=seed)
        plain = {**found.to_dict(), "behavior": [{"norm": "none", "layer": "zero", "activation": "identity"}] * 3}
        jobs += [(Architecture.from_dict(plain), config),
                 *((found, config.changed(block_dropout=float(rate))) for rate in args.rates.split(","))]
    about = describe()
    rows = []
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for row in pool.map(lambda job: one(data, *job), jobs):
            rows.append({**row, **{name: about[name] for name in ("cpu", "torch", "git", "date")}})
            print(f"seed {row['seed']}, {' '.join(row['blocks'])}, block_dropout {row['block_dropout']}: "
                  f"{row['metric']} {row['valid']:.4f}", flush=True)
    write_text(args.json, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


def one(data: Dataset, arch: Architecture, config: SearchConfig) -> dict:
    """One training's row, on one thread."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place, RunDirectory(Path(place) / "run", {"version": 1}) as run:
        scope = run.scope(0, "train")
        with seeded_initialization(config.seed, *scope.names, "model"):
            model = fresh_model(data.schema, arch, config)
        objective = make_objective(data.schema, config)
        outcome = train_model(Task(data, objective, config, Progress()), model, scope)
    return {"seed": config.seed, "blocks": [block.layer for block in arch.behavior], "block_dropout": config.block_dropout,
            "metric": f"validation {objective.primary}", "valid": outcome.score, "curve": outcome.curve}


if __name__ == "__main__":
    sys.exit(main())
