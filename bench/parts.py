"""Where a plan's time goes: of each case the share of each part, and how near that part is to the machine's GEMM rate.

``python -m ameir_fast.bench.parts`` takes ``Plan.profile`` of each case on one thread, with the machine's GEMM rate on one
thread measured in turn. It says why a case of ``bench cpu`` is below its limit: a part that is nearly all multiply-adds comes
near 100%, one of exponentials, norms or single numbers does not, however well it runs.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from pathlib import Path

import torch

from ..atomic import write_text
from ..profile import random_batch, time_calls
from ..search.environment import describe
from . import limits
from .cpu import BATCHES, build_model
from .suites import Case, cases, lengths

REPEATS = 3
LEAST = 0.03  # parts below this share of a call are not in the table


def measure(case: Case, kind: str, batch: int, calls: int = 20) -> list[dict]:
    """A row for each part on one thread, medians of ``REPEATS`` turns; part ``call`` is a whole ``plan(batch)``."""
    plan = build_model(case).compile()
    inputs = [random_batch(case.schema, batch, lengths(kind, batch, case.schema.max_history, seed), seed)
              for seed in range(BATCHES)]
    taken: dict[str, list[float]] = {}
    flops: dict[str, list[int]] = {}
    gemm = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for _ in range(REPEATS):
            gemm.append(limits.gemm_rate())
            for one in inputs:
                plan(one)
                for part in plan.profile(one, calls):
                    taken.setdefault(part["part"], []).append(part["seconds"])
                    flops.setdefault(part["part"], []).append(part["flops"])
                taken.setdefault("call", []).append(statistics.median(time_calls(lambda one=one: plan(one), 0.1)))
    finally:
        torch.set_num_threads(threads)
    rate = statistics.median(gemm)
    seconds = {part: statistics.median(times) for part, times in taken.items()}
    total = sum(spent for part, spent in seconds.items() if part != "call")
    work = {part: statistics.mean(found) for part, found in flops.items()}
    work["call"] = sum(work.values())
    return [{"suite": case.suite, "case": case.name, "lengths": kind if case.schema.num_behavior else "none", "batch": batch,
             "part": part, "microseconds": 1e6 * spent, "share": spent / total, "flops": work[part],
             "share_of_gemm": work[part] / spent / rate if spent else 0.0, "gemm_gflops": rate / 1e9, "threads": 1,
             "instruction_set": plan.instruction_set} for part, spent in seconds.items()]


def table(rows: list[dict]) -> list[str]:
    """Markdown: a line for each case, its parts with their share of the time and of the GEMM rate."""
    lines = ["| case | lengths | batch | part: share of the time (its share of the GEMM rate) | the others |", "|---|---|---|---|---|"]
    for case, kind, batch in dict.fromkeys((row["case"], row["lengths"], row["batch"]) for row in rows):
        own = [row for row in rows if (row["case"], row["lengths"], row["batch"]) == (case, kind, batch) and row["part"] != "call"]
        told = [row for row in own if row["share"] >= LEAST]
        cells = ", ".join(f"{row['part']} {100 * row['share']:.0f}%"
                          + (f" ({100 * row['share_of_gemm']:.0f}%)" if row["flops"] else "") for row in told)
        lines.append(f"| {case} | {kind} | {batch} | {cells} | {100 * (1 - sum(row['share'] for row in told)):.0f}% |")
    return lines


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--suite", default="alimama,criteo,beauty", help="with commas between (default: %(default)s)")
    parser.add_argument("--lengths", default="full,ragged", help="full, ragged or both (default: %(default)s)")
    parser.add_argument("--batch", type=int, help="samples of a batch (default: the case's own)")
    parser.add_argument("--calls", type=int, default=20, help="calls of a turn (default: %(default)s)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows as JSON lines")
    args = parser.parse_args(argv)
    kinds = args.lengths.split(",")
    if not set(kinds) <= {"full", "ragged"}:
        parser.error(f"--lengths {args.lengths}: known are full and ragged")
    if args.calls < 1 or (args.batch is not None and args.batch < 1):
        parser.error("--calls and --batch are 1 or more")
    facts = {k: v for k, v in describe("cpu").items() if k in ("torch", "cpu", "git", "date")}
    rows = []
    for case in cases(args.suite.split(",")):
        for kind in kinds if case.schema.num_behavior else ["full"]:
            rows += [{**row, **facts} for row in measure(case, kind, args.batch or case.batch, args.calls)]
    print("\n".join(table(rows)))
    if args.json is not None:
        write_text(args.json, "".join(json.dumps(row) + "\n" for row in rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
