"""A whole search with the reference backend and with the default one: wall time and test AUC, the same budget of training.

``python -m ameir_fast.bench.whole_search --data DIR`` searches once with each, one after the other with all threads, and writes a row each
to ``bench/results/whole-search.jsonl``. The reference is PyTorch's own operations, dense steps of the optimizer; both draw the same
children and rank them together.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

BACKENDS = ("reference", None)


def main(argv: list[str] | None = None) -> int:
    from ameir_fast.cli.common import write_rows
    from ameir_fast.data import Dataset
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data") / "movielens-100k", help="prepared data")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="one setting of both; may be repeated")
    parser.add_argument("--json", type=Path, default=Path("bench") / "results" / "whole-search.jsonl")
    args = parser.parse_args(argv)
    data = Dataset.open(args.data)
    rows = [search_once(data, backend, args.set) for backend in BACKENDS]
    rows = [{**row, "ratio": rows[0]["seconds"] / row["seconds"]} for row in rows]
    for row in rows:
        print(line(row))
    write_rows(str(args.json), rows)
    return 0


def search_once(data, backend: str | None, settings: list[str] | None = None) -> dict:
    """``seconds`` of the search, of its ``steps``, and what it found."""
    from ameir_fast.cli.run import make_config
    from ameir_fast.progress import make_progress
    from ameir_fast.search import search
    config = make_config(None, settings, task=data.task).changed(backend=backend)
    with tempfile.TemporaryDirectory() as place:
        found = search(data, Path(place) / "run", config, progress=make_progress(sys.stderr))
    return {"data": found["data"]["kind"], "backend": found["environment"]["backend"], "seconds": found["seconds"],
            "steps": {name: step["seconds"] for name, step in found["steps"].items()},
            "auc": {name: row["auc"]["mean"] for name, row in found["variants"].items()}, "environment": found["environment"]}


def line(row: dict) -> str:
    """A row for people."""
    steps = ", ".join(f"{name} {seconds:.0f}" for name, seconds in row["steps"].items())
    return f"{row['backend']:<10} {row['seconds']:>7.1f} s ({steps}), AMEIR-C {row['auc']['AMEIR-C']:.4f}, {row['ratio']:.1f} times as fast"


if __name__ == "__main__":
    raise SystemExit(main())
