"""Step 1's strategies with the same shared weights and as many children: how good those they find are.

``python -m ameir_fast.bench.strategies --data DIR`` trains a supernet for each seed and ranks its paths with each strategy. A row
has the ``best`` validation AUC with shared weights (of all of validation), the mean of the ``top`` re-evaluated ones, the
validation AUC ``trained`` of a full training of the best one alone, the plain path's own (``plain``), and the ``seconds`` of the
ranking.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev


def main(argv: list[str] | None = None) -> int:
    from ..cli.common import write_rows
    from ..cli.run import make_config
    from ..data import Dataset
    from ..search.strategy import STRATEGIES
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data") / "movielens-100k", help="prepared data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--children", type=int, default=2000, help="that each strategy may have scored")
    parser.add_argument("--strategies", metavar="S,…", help="those to rank with (default: all)")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="a setting of the search; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("bench") / "results" / "strategies.jsonl")
    args = parser.parse_args(argv)
    names = tuple(args.strategies.split(",")) if args.strategies else tuple(STRATEGIES)
    if unknown := set(names) - set(STRATEGIES):
        parser.error(f"--strategies: {', '.join(sorted(unknown))} unknown; there are {', '.join(STRATEGIES)}")
    data = Dataset.open(args.data)
    config = make_config(None, args.set, task=data.task).changed(behavior_children=args.children)
    rows = [row for seed in range(args.seeds) for row in rows_of_seed(data, config.changed(seed=seed), names)]
    for row in rows:
        print(line(row))
    if "random" in names:
        print(*table(rows), sep="\n")
    write_rows(str(args.json), rows)
    return 0


def rows_of_seed(data, config, names: tuple[str, ...]) -> Iterator[dict]:
    """Of each of these strategies, with one supernet."""
    from ..progress import make_progress
    from ..search import behavior
    from ..search.context import train_model
    from ..search.driver import make_context
    from ..search.environment import describe
    from ..search.store import RunDirectory
    from ..search.strategy import STRATEGIES
    from ..space import Architecture

    with tempfile.TemporaryDirectory() as place, RunDirectory(Path(place) / "run", {"version": 1}) as run:
        context = make_context(data, config, run.scope(0), None, make_progress(sys.stderr), "cpu")
        behavior.train_supernet(context)

        def trained(arch: Architecture, scope) -> float:
            return train_model(context.task, context.build(arch, False, scope), scope).score

        plain = trained(context.behavior_child(context.zero_path()), run.scope("plain"))
        for name in names:
            own = replace(context, strategy=STRATEGIES[name](), scope=run.scope(name))
            began = time.perf_counter()
            ranking = behavior.rank(own)
            seconds = time.perf_counter() - began
            blocks = Architecture.from_dict({"version": 1, "behavior": ranking[0]["behavior"], "interactions": [], "mlp": []}).behavior
            yield {"data": data.kind, "seed": config.seed, "strategy": name, "children": len(ranking), "seconds": seconds,
                   "best": ranking[0]["score"], "top": mean(r["score"] for r in ranking[:config.top_k]),
                   "trained": trained(context.behavior_child(blocks), own.scope.scope("trained")), "plain": plain,
                   "behavior": ranking[0]["behavior"], "environment": describe("cpu", config.backend)}


def line(row: dict) -> str:
    """A row for people."""
    return (f"seed {row['seed']} {row['strategy']:<10} {row['children']:>6,} children in {row['seconds']:>6.1f} s: best {row['best']:.4f}, "
            f"top {row['top']:.4f}, trained alone {row['trained']:.4f} (plain path {row['plain']:.4f})")


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table: means over the seeds, differences from random paired by seed."""
    lines = ["| strategy | children | seconds ÷ random | best by shared weights | − random | best, trained alone | − random |", "|---" * 7 + "|"]
    drawn = {row["seed"]: row for row in rows if row["strategy"] == "random"}
    for name in dict.fromkeys(row["strategy"] for row in rows):
        own = [row for row in rows if row["strategy"] == name]
        first = lambda key, own=own: f"{mean(row[key] for row in own):.4f}"

        def difference(key: str, own=own, name=name) -> str:
            found = [row[key] - drawn[row["seed"]][key] for row in own]
            error = stdev(found) / len(found) ** 0.5 if len(found) > 1 else 0.0
            return "–" if name == "random" else f"{mean(found):+.4f} ± {error:.4f}"

        seconds = mean(row["seconds"] / drawn[row["seed"]]["seconds"] for row in own)
        lines.append(f"| {name} | {own[0]['children']:,} | {seconds:.1f} | {first('best')} | {difference('best')} | "
                     f"{first('trained')} | {difference('trained')} |")
    return lines


if __name__ == "__main__":
    raise SystemExit(main())
