"""``ameir-fast bench population``: many children together against one at a time, step by step of the search.

Methods: ``shared`` is ``evaluate_population``; ``plan`` one child after the other through the plan of its derived
model, whose making is not counted (step 3); ``native`` one child after the other through the native operations (step 1);
``eager`` one child after the other through the supernet in plain PyTorch. All of them judge what they scored (AUC and log
loss). The slow ones evaluate some of the children, and a row's ``children`` says how many.
"""

from __future__ import annotations

import multiprocessing
import resource
import sys
from collections.abc import Callable

import numpy as np
import torch

from .. import Batch, InputError, native
from ..profile import random_batch
from ..search.environment import describe
from . import population_interactions, population_mlp, population_paths
from .suites import lengths

#: What measures a step: ``rows(layers, children, samples, quick)`` yields rows without the facts of ``run``.
STEPS = {1: population_paths.rows, 2: population_interactions.rows, 3: population_mlp.rows}
BATCH = 2048  # as the search evaluates
SAMPLES, QUICK_SAMPLES = 16_384, 4096  # paths: 4,096 and 2,048


def run(step: int, children: int | None = None, samples: int | None = None, layers: int | None = None,
        quick: bool = False, on_row: Callable[[dict], None] = lambda row: None) -> list[dict]:
    """Rows of a step.

    A row has ``children`` and ``samples`` that were evaluated in ``seconds``, ``children_per_s``; ``ratio``, that over
    the eager method's, ``ratio_plan``, over the plan's, and in steps 1 and 2 ``ratios``, over each that goes alone; ``max_abs_diff`` and ``max_auc_diff``, of logits and AUC
    from the eager ones, over ``compared`` children; ``peak_bytes``, the largest resident memory of a process that does
    nothing else (of ``shared`` with all children, of the others with one).

    Args:
        children: how many are evaluated together, drawn at random. Default: all; of step 1's paths 2,000.
        samples: default 16,384 (4,096 with ``quick``); for step 1 4,096 (2,048).
        layers: of the MLP (step 3). Default: 2 and 3; 2 with ``quick``.
        quick: under 45 seconds; not for quoting.

    Raises:
        InputError: a step that is not measured, or the native code is not there, naming the reason.
    """
    if step not in STEPS:
        raise InputError(f"unknown step {step}; known: {', '.join(map(str, STEPS))}")
    for name in ("_C", "_plan"):
        if native.why_not(name) is not None:
            raise InputError(f"bench population compares native code: {native.why_not(name)}")
    facts, found = _facts(), []
    for row in STEPS[step](layers, children, samples or _samples(step, quick), quick):
        found.append({"step": step, **row, **facts})
        on_row(found[-1])
    return found


def _samples(step: int, quick: bool) -> int:
    if step == 1:  # as many as the search ranks by: one path takes long in eager PyTorch
        return population_paths.QUICK_SAMPLES if quick else population_paths.SAMPLES
    return QUICK_SAMPLES if quick else SAMPLES


def labelled_batches(schema, samples: int, kind: str = "full") -> list[Batch]:
    """Batches of random ids and labels, histories of this kind of lengths."""
    found = []
    for seed, start in enumerate(range(0, samples, BATCH)):
        size = min(BATCH, samples - start)
        batch = random_batch(schema, size, lengths(kind, size, schema.max_history, seed), seed)
        label = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, size).astype(np.float32))
        found.append(Batch(batch.fields, batch.history, batch.history_offsets, label))
    return found


def peak_of(function: Callable, *arguments) -> int:
    """The largest resident memory, in bytes, of a process that does nothing but this. A new one counts what its parent
    has, so ask before there is much here."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measured, (function, arguments, torch.get_num_threads()))


def _measured(function: Callable, arguments: tuple, threads: int) -> int:
    torch.set_num_threads(threads)
    function(*arguments)
    return (1 if sys.platform == "darwin" else 1024) * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _facts() -> dict:
    about = describe("cpu")
    return {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(), "batch": BATCH,
            "versions": {"ameir_fast": about["version"],
                         **{name: about[name] for name in ("torch", "python", "numpy")}},
            **{name: about[name] for name in ("cpu", "platform", "git", "date")}}


def line(row: dict) -> str:
    """A row for people."""
    text = (f"step {row['step']}  {row['case']:<10} {row['method']:<7} {row['children']:>6,} children x "
            f"{row['samples']:,} samples  {row['seconds']:>8.2f} s  {row['children_per_s']:>9,.1f} children/s")
    if row["ratio"]:
        text += f"  {row['ratio']:,.1f}x eager"
    if row["method"] == "shared" and "native" in row.get("ratios", {}):
        text += f", {row['ratios']['native']:,.1f}x native"
    if row["ratio_plan"]:
        text += f", {row['ratio_plan']:,.1f}x plans"
    if row["max_abs_diff"] is not None:
        text += f"  difference {row['max_abs_diff']:.1e} ({row['compared']} children)"
    if row["peak_bytes"]:
        text += f"  peak {row['peak_bytes'] / 2**20:,.0f} MiB"
    return text


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| step | case | method | children | children/s ÷ eager | ÷ plans | ÷ native | largest difference | peak, MiB | with a tenth as many |",
             "|---" * 10 + "|"]
    for row in rows:
        number = lambda name, form, row=row: "–" if row[name] is None else format(row[name], form)
        native_ratio = row.get("ratios", {}).get("native") if row["method"] == "shared" else None
        native_ratio = "–" if native_ratio is None else f"{native_ratio:,.1f}"
        peak, of_tenth = ("–" if row.get(name) is None else f"{row[name] / 2**20:,.0f}"
                          for name in ("peak_bytes", "peak_bytes_of_a_tenth"))
        lines.append(f"| {row['step']} | {row['case']} | {row['method']} | {row['children']:,} | "
                     f"{number('ratio', ',.1f')} | {number('ratio_plan', ',.1f')} | {native_ratio} | "
                     f"{number('max_abs_diff', '.1e')} | {peak} | {of_tenth} |")
    return lines
