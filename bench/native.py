"""Native host code against the NumPy and PyTorch ways it replaces: batches, negatives, AUC of many columns.

    python -m ameir_fast.bench.native [--quick] [--json FILE]

Every engine of a case gets the same inputs, and its result is checked before anything is timed. Engines take
turns within a round, so that a busy machine slows all of them; ``ratio`` is the median over rounds of the
engine's time divided by the native time of the same round. Each engine's best known form is shown, not only
the fallback that the package would use.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from .. import hostops, metrics, negatives
from .. import native as modules
from ..atomic import write_text
from ..errors import InputError
from ..search.environment import describe

REFERENCE = "native"


class Case(NamedTuple):
    """One workload: its engines, native first, and the check of an engine's result against the native one."""

    name: str
    engines: dict[str, Callable[[], object]]
    check: Callable[[object, object], None]


def run(quick: bool = False) -> list[dict]:
    """All cases, one row per case and engine.

    A row holds ``suite``, ``case``, ``engine``, ``threads``, ``rounds``, ``p20_ms``, ``p50_ms``, ``p80_ms``,
    ``ratio`` (above 1: the native code is that many times as fast), ``versions``, ``cpu``, ``platform``,
    ``git`` and ``date``. ``quick`` takes some 20 seconds in all, otherwise some 90.

    Raises:
        InputError: a native module cannot be used, so that there is nothing to compare.
        AssertionError: an engine's result differs.
    """
    for name in modules.MODULES:
        reason = modules.why_not(name)
        if reason:
            raise InputError(f"native module {name} cannot be used: {reason}")
    rows = []
    for make in (
        _assemble_movielens,
        _assemble_large,
        _negatives_few,
        _negatives_many,
        _auc_ranking,
        _auc_mlp,
        _auc_single,
        _auc_ties,
    ):
        case = make()
        rows += _measure(case, seconds=1.5 if quick else 10.0)
    return rows


def _measure(case: Case, seconds: float) -> list[dict]:
    expected = case.engines[REFERENCE]()
    for function in case.engines.values():
        case.check(function(), expected)
    times: dict[str, list[float]] = {engine: [] for engine in case.engines}
    stop = time.perf_counter() + seconds
    while time.perf_counter() < stop or len(times[REFERENCE]) < 3:
        for engine, function in case.engines.items():
            start = time.perf_counter()
            function()
            times[engine].append(time.perf_counter() - start)
    about = describe()
    common = {
        "rounds": len(times[REFERENCE]),
        "versions": {k: about[k] for k in ("python", "torch", "numpy", "version")},
        **{k: about[k] for k in ("threads", "cpu", "platform", "git", "date")},
    }
    rows = []
    for engine, taken in times.items():
        p20, p50, p80 = (1e3 * float(q) for q in np.quantile(taken, (0.2, 0.5, 0.8)))
        ratio = statistics.median(a / b for a, b in zip(taken, times[REFERENCE], strict=True))
        rows.append(
            {
                "suite": "native",
                "case": case.name,
                "engine": engine,
                "p20_ms": p20,
                "p50_ms": p50,
                "p80_ms": p80,
                "ratio": ratio,
                **common,
            }
        )
    return rows


# ---- assembling ------------------------------------------------------------------------------------


def _assemble(
    name: str, rows: int, columns: int, bags: int, depth: int, max_history: int, batch: int
) -> Case:
    generator = np.random.default_rng(0)
    per_user = 100
    position = np.arange(rows)
    storage = {
        "columns": [generator.integers(0, 1000, rows, dtype=np.int32) for _ in range(columns)]
        + [None] * bags,
        "bags": [],
        "events": [generator.integers(0, 1000, rows, dtype=np.int32) for _ in range(depth)],
        "begin": position // per_user * per_user,
        "end": position,
    }
    for _ in range(bags):
        offsets = np.concatenate([[0], np.cumsum(generator.integers(0, 4, rows))])
        storage["bags"].append((generator.integers(0, 20, offsets[-1], dtype=np.int32), offsets))
    chosen = generator.integers(0, rows, batch)
    arguments = (chosen, *storage.values(), max_history)
    driver = modules.driver()

    def check(got, expected) -> None:
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)

    return Case(
        name,
        {
            REFERENCE: lambda: driver.assemble(*arguments),
            "numpy": lambda: hostops._assemble_numpy(*arguments),
            "python loop": lambda: _assemble_by_row(*arguments),
        },
        check,
    )


def _assemble_by_row(rows, columns, bags, events, begin, end, max_history):
    """A collate function as data loaders have it: slices of each row, concatenated."""
    fields = np.stack([np.zeros(len(rows), np.int32) if c is None else c[rows] for c in columns], axis=1)
    spans = [(max(begin[r], end[r] - max_history), end[r]) for r in rows]
    history = np.stack([np.concatenate([e[a:b] for a, b in spans]) for e in events], axis=1)
    parts = [ids[offsets[r] : offsets[r + 1]] for r in rows for ids, offsets in bags]
    bag_ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return (
        fields,
        bag_ids,
        np.cumsum([0, *(len(p) for p in parts)]),
        history,
        np.cumsum([0, *(b - a for a, b in spans)]),
    )


def _assemble_movielens() -> Case:
    return _assemble("assemble 512 of 100k rows, 10 fields, 1 bag, 2x20 history", 100_000, 10, 1, 2, 20, 512)


def _assemble_large() -> Case:
    return _assemble("assemble 4096 of 1M rows, 12 fields, 2x50 history", 1_000_000, 12, 0, 2, 50, 4096)


# ---- negatives -------------------------------------------------------------------------------------


def _negatives(name: str, num_users: int, num_items: int, per_user: int, batch: int, n: int) -> Case:
    generator = np.random.default_rng(0)
    lists = [
        np.sort(generator.choice(np.arange(1, num_items, dtype=np.int32), per_user, replace=False))
        for _ in range(num_users)
    ]
    offsets, items = np.arange(num_users + 1) * per_user, np.concatenate(lists)
    users = generator.integers(0, num_users, batch)
    positives = generator.integers(1, num_items, batch, dtype=np.int32)
    arguments = (users, offsets, items, num_items, n, 7, positives, None, None, False)
    keys = np.repeat(np.arange(num_users), per_user) * num_items + items  # ascending; made once, not timed
    driver = modules.driver()

    def by_rejection() -> np.ndarray:
        drawn = generator.integers(1, num_items, (batch, n), dtype=np.int32)
        row, slot = np.divmod(np.arange(batch * n), n)
        while len(row):
            wanted = users[row] * num_items + drawn[row, slot]
            at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            bad = (keys[at] == wanted) | (drawn[row, slot] == positives[row])
            row, slot = row[bad], slot[bad]
            drawn[row, slot] = generator.integers(1, num_items, len(row), dtype=np.int32)
        return drawn

    def check(got, expected) -> None:
        if np.array_equal(got, expected):
            return
        # Rejection draws other numbers: it must keep the same rules.
        assert got.shape == expected.shape
        assert got.min() >= 1
        assert got.max() < num_items
        assert not np.isin(users[:, None] * num_items + got, keys).any()
        assert not (got == positives[:, None]).any()

    return Case(
        name,
        {
            REFERENCE: lambda: driver.sample_negatives(*arguments),
            "numpy": lambda: negatives._sample_negatives_numpy(*arguments),
            "numpy rejection": by_rejection,
        },
        check,
    )


def _negatives_few() -> Case:
    return _negatives("negatives 512 rows x 1, 1682 items, 100 own", 943, 1683, 100, 512, 1)


def _negatives_many() -> Case:
    return _negatives("negatives 512 rows x 100, 54k items, 50 own", 20_000, 54_543, 50, 512, 100)


# ---- AUC -------------------------------------------------------------------------------------------


def _auc(name: str, columns: int, samples: int, levels: int | None = None) -> Case:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(columns, samples, generator=generator)
    if levels:
        scores = (scores * levels).round() / levels
    label = (torch.rand(samples, generator=generator) < 0.55).float()
    modules.ops_loaded()
    engines = {
        REFERENCE: lambda: torch.ops.ameir_fast.auc_columns(scores, label).numpy(),
        "torch": lambda: metrics.auc_columns_torch(scores, label).numpy(),
    }
    if importlib.util.find_spec("sklearn") is not None:
        from sklearn.metrics import roc_auc_score

        engines["scikit-learn"] = lambda: np.array([roc_auc_score(label, column) for column in scores])

    def check(got, expected) -> None:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)

    return Case(name, engines, check)


def _auc_ranking() -> Case:
    return _auc("AUC 200 columns x 10k samples", 200, 10_000)


def _auc_mlp() -> Case:
    return _auc("AUC 880 columns x 2k samples", 880, 2_000)


def _auc_single() -> Case:
    return _auc("AUC 1 column x 1M samples", 1, 1_000_000)


def _auc_ties() -> Case:
    return _auc("AUC 100 columns x 10k samples, 40 distinct scores", 100, 10_000, levels=5)


# ---- command line ----------------------------------------------------------------------------------


def table(rows: list[dict]) -> str:
    """The rows as text, one line each under the name of their case."""
    lines = []
    for i, row in enumerate(rows):
        if i == 0 or rows[i - 1]["case"] != row["case"]:
            lines.append(f"{row['case']} ({row['threads']} threads, {row['rounds']} rounds)")
        versus = "" if row["engine"] == REFERENCE else f"native is {row['ratio']:.1f} times as fast"
        lines.append(f"  {row['engine']:16} {row['p50_ms']:10.3f} ms   {versus}".rstrip())
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print the table, and write the rows as JSON lines if asked."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="some 20 seconds instead of 90")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, one JSON object a line")
    arguments = parser.parse_args(argv)
    try:
        rows = run(arguments.quick)
    except InputError as error:
        parser.exit(2, f"error: {error}\n")
    sys.stdout.write(table(rows) + "\n")
    if arguments.json:
        Path(arguments.json).parent.mkdir(parents=True, exist_ok=True)
        write_text(arguments.json, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


if __name__ == "__main__":
    main()
