"""Native host code against the NumPy and PyTorch ways it replaces: batches, negatives, AUC of many columns, ranks.

    python -m ameir_fast.bench.native [--quick] [--json FILE]

Every engine of a case gets the same inputs, and its result is checked before anything is timed. Engines take
turns within a round, so that a busy machine slows all of them; ``ratio`` is the median over rounds of the
engine's time divided by the native time of the same round. Each engine's best known form is shown, not only
the fallback that the package would use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .. import native as modules
from ..atomic import write_text
from ..errors import InputError
from ..search.environment import describe
from .native_cases import CASES, REFERENCE, Case

def run(quick: bool = False) -> list[dict]:
    """All cases, one row per case and engine.

    A row holds ``suite``, ``case``, ``engine``, ``threads``, ``rounds``, ``p20_ms``, ``p50_ms``, ``p80_ms``,
    ``ratio`` (above 1: the native code is that many times as fast), ``versions``, ``cpu``, ``platform``,
    ``git`` and ``date``. ``quick`` takes some 30 seconds in all, otherwise some two minutes.

    Raises:
        InputError: a native module cannot be used, so that there is nothing to compare.
        AssertionError: an engine's result differs.
    """
    for name in modules.MODULES:
        reason = modules.why_not(name)
        if reason:
            raise InputError(f"native module {name} cannot be used: {reason}")
    rows = []
    for make in CASES:
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
    parser.add_argument("--quick", action="store_true", help="some 30 seconds instead of 120")
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
