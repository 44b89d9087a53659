"""Feeding: rows per second of shuffled batches at the benchmark shapes, against the training of a supernet.

    python -m ameir_fast.bench.batches [--quick] [--rows N] [--work DIR] [--json FILE]

The data is made up and lies in files that are mapped, as prepared data does; it was just written, so it comes from the
system's page cache. Rows are in time order: the user of each is drawn at random, 100 rows a user, and the history is
what lies before. Engines take turns (feeding.py says what they are and what ``ratio`` means).
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from ..atomic import write_text
from ..data import Dataset
from ..data.files import VERSION
from ..errors import InputError
from ..schema import FeatureSchema
from ..search.environment import describe
from . import suites
from .feeding import feeding

ROWS, QUICK_ROWS, FEWEST = 20_000_000, 1_500_000, 1000
PER_USER = 100
ENGINES = ("batches", "training", "permutation", "numpy", "stored")
#: The suite of a case and what is compared there. A permutation of retrieval data would come without negatives.
CASES = {
    "criteo": ENGINES,
    "alimama": ENGINES,
    "beauty": tuple(engine for engine in ENGINES if engine != "permutation"),
}


def run(
    rows: int | None = None,
    quick: bool = False,
    work: str | Path | None = None,
    on_row: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """A row for each case and engine; ``on_row`` sees each case's as soon as they are there.

    A row holds ``suite``, ``case``, ``embedding_dim``, ``load`` (of the machine, in the last minute), what
    ``feeding`` says, and the machine.

    Args:
        rows: of each case; default 20 million, 1.5 million with ``quick``.
        quick: under 45 seconds, not for quoting.
        work: where the files lie meanwhile; default the system's place for temporary files.

    Raises:
        InputError: fewer than 1000 rows, or the disk hasn't enough room.
    """
    rows = rows or (QUICK_ROWS if quick else ROWS)
    if rows < FEWEST:
        raise InputError(f"{rows} rows are fewer than {FEWEST}")
    about = describe()
    facts = {
        "versions": {k: about[k] for k in ("python", "torch", "numpy", "version")},
        **{k: about[k] for k in ("cpu", "platform", "git", "date")},
    }
    found = []
    for name, engines in CASES.items():
        case = suites.SUITES[name]()[0]
        with tempfile.TemporaryDirectory(prefix="ameir-fast-bench-", dir=work) as directory:
            data = made_up(Path(directory), case.schema, rows)
            made = feeding(data, 5.0 if quick else 30.0, engines, case.embedding_dim)
            # How busy the machine was, with this and with anything else: rates depend on it, ratios hardly.
            load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
            for row in made:
                shape = {"case": name, "embedding_dim": case.embedding_dim, "load": load}
                found.append({"suite": "batches", **shape, **row, **facts})
                on_row(found[-1])
    return found


def made_up(directory: Path, schema: FeatureSchema, rows: int, seed: int = 0) -> Dataset:
    """A prepared directory of random ids, without vocabularies and checksums."""
    needed = rows * (4 * (len(schema.fields) + len(schema.behavior) + 3) + 16)
    if (free := shutil.disk_usage(directory).free) < needed:
        raise InputError(f"{rows:,} rows need {needed / 1e9:.1f} GB of disk, {free / 1e9:.1f} are free in {directory}")
    generator = np.random.default_rng(seed)
    (directory / "columns").mkdir()

    def column(name: str, values: np.ndarray) -> None:
        np.save(directory / "columns" / f"{name}.npy", values)

    def ids(vocabulary: str, first: int) -> np.ndarray:
        return generator.integers(first, schema.size(vocabulary), rows, dtype=np.int32)

    for f in schema.fields:
        column(f"field.{f.name}", ids(f.vocabulary, 0))
    user = generator.integers(0, max(1, rows // PER_USER), rows, dtype=np.int32)
    column("row_user", user)
    if schema.task == "ctr":
        column("label", (generator.random(rows, np.float32) < 0.25).astype(np.float32))
    else:
        column("items", ids(schema.item_vocabulary, 1))
    if schema.behavior:
        by_user = np.argsort(user, kind="stable")
        place = np.empty(rows, np.int64)
        place[by_user] = np.arange(rows)
        first = np.searchsorted(user[by_user], np.arange(user.max() + 1))
        column("history_begin", first[user].astype(np.int64))
        column("history_end", place)
        for b in schema.behavior:
            column(f"events.{b.name}", ids(b.vocabulary, 1))
    about = schema.to_dict()
    ends = [0, rows * 8 // 10, rows * 9 // 10, rows]
    splits = dict(zip(("train", "valid", "test"), (ends[k : k + 2] for k in range(3)), strict=True))
    files = {
        "schema.json": about,
        "statistics.json": {"rows": rows},
        "dataset.json": {
            "version": VERSION, "kind": "synthetic", "task": schema.task, "rows": rows, "splits": splits,
            "all_fields": about["fields"], "vocabularies": about["vocabularies"], "options": {}, "checksums": {},
        },
    }
    for name, content in files.items():
        (directory / name).write_text(json.dumps(content), encoding="utf-8")
    return Dataset.open(directory, verify=False)


def line(row: dict) -> str:
    """A row as text."""
    what = {
        "batches": f"{row['ratio']:.1f} times the rate of training, first batch {row.get('first_batch_s', 0):.2f} s",
        "training": f"a supernet of width {row['embedding_dim']}, {row['threads']} threads",
    }
    ratio = what.get(row["engine"], f"batches are {row['ratio']:.2f} times as fast")
    return f"{row['case']:<8} {row['rows']:>11,} rows  {row['engine']:<12} {row['rows_per_s']:>12,.0f} rows/s   {ratio}"


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print, and write the rows as JSON lines if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rows", type=int, metavar="N", help="of each case; default 20 million")
    parser.add_argument("--work", metavar="DIR", help="where the files lie meanwhile")
    parser.add_argument("--quick", action="store_true", help="under 45 seconds, not for quoting")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, one JSON object a line")
    arguments = parser.parse_args(argv)
    try:
        rows = run(arguments.rows, arguments.quick, arguments.work, on_row=lambda row: print(line(row), flush=True))
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main(sys.argv[1:])
