"""``ameir-fast bench cpu``: throughput and latency of derived models on the CPU, engine by engine.

Every row is checked against the fp64 reference on the same fp32-rounded weights and refused beyond 1e-4; it
carries the share of the machine's measured limit that was reached.
"""

from __future__ import annotations

import copy
import logging
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from .. import InputError, Model
from ..profile import backend_in_use, percentiles, random_batch, time_calls
from ..search.environment import describe
from . import limits
from .suites import EMBEDDING_DEVIATION, Case, cases, lengths

ENGINES = ("eager", "compile", "plan", "onnxruntime")
NOT_YET = ("plan", "onnxruntime")
TOLERANCE = 1e-4
BATCHES = 4  # inputs in turn, so that the looked-up rows are not the ones just used
CHECK_ROWS = 256  # rows a time in fp64


def run(
    suites: list[str] | None = None,
    names: list[str] | None = None,
    kinds: list[str] | None = None,
    batch: int | None = None,
    engines: list[str] | None = None,
    repeats: int | None = None,
    quick: bool = False,
    on_row: Callable[[dict], None] | None = None,
) -> list[dict]:
    """Measure the chosen cases and return their rows; ``on_row`` sees each as soon as it is there.

    ``quick`` means one repeat of half a second with the eager engine and full lengths, under 45 seconds in
    all; without it three repeats of two seconds, both kinds of lengths, eager and compiled.

    Raises:
        InputError: an unknown suite, case, kind of lengths or engine, or an engine that this version does
        not have.
    """
    chosen = cases(suites, names)
    engines = engines or (["eager"] if quick else ["eager", "compile"])
    kinds = kinds or (["full"] if quick else ["full", "ragged"])
    check_choices(engines, kinds)
    repeats = repeats or (1 if quick else 3)
    seconds = 0.5 if quick else 2.0
    facts = _facts()
    rows = []
    for case in chosen:
        model = build_model(case)
        # Without a history there is nothing to be ragged.
        for kind in kinds if case.schema.num_behavior else ["full"]:
            for engine in engines:
                row = {**measure(case, model, engine, kind, batch or case.batch, repeats, seconds), **facts}
                rows.append(row)
                if on_row is not None:
                    on_row(row)
    return rows


def check_choices(engines: list[str], kinds: list[str]) -> None:
    """Raise InputError for engines and kinds of lengths that do not exist (yet)."""
    for engine in engines:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
        if engine in NOT_YET:
            there = ", ".join(name for name in ENGINES if name not in NOT_YET)
            raise InputError(f"engine {engine!r} is not available yet; available: {there}")
    for kind in kinds:
        if kind not in ("full", "ragged"):
            raise InputError(f"unknown lengths {kind!r}; known: full, ragged")


def build_model(case: Case, seed: int = 0) -> Model:
    """The case's model with seeded weights; embeddings N(0, 0.1²) and norms of gain 1, as after training."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Model(case.schema, case.architecture, case.embedding_dim)
    with torch.no_grad():
        model.embedding.weight.normal_(0, EMBEDDING_DEVIATION, generator=generator)
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.fill_(1)
    return model.eval()


def measure(
    case: Case, model: Model, engine: str, kind: str, batch: int, repeats: int, seconds: float
) -> dict:
    """One row without the facts about the machine."""
    sizes = [lengths(kind, batch, case.schema.max_history, seed) for seed in range(BATCHES)]
    inputs = [random_batch(case.schema, batch, size, seed) for seed, size in enumerate(sizes)]
    row = {
        "suite": case.suite,
        "case": case.name,
        "engine": engine,
        "backend": "inductor" if engine == "compile" else backend_in_use(torch.device("cpu")),
        "device": "cpu",
        "dtype": "float32",
        "threads": torch.get_num_threads(),
        "lengths": kind if case.schema.num_behavior else "none",
        "batch": batch,
        "samples_per_s": None,
        "p50_ms": None,
        "p99_ms": None,
        "max_abs_err": None,
        "share_of_limit": None,
        "seconds_to_first_result": None,
        "refused": None,
    }
    with torch.inference_mode():
        started = time.perf_counter()
        try:
            call = make_engine(model, engine)
            first = call(inputs[0])
        except torch._dynamo.exc.TorchDynamoException as error:
            # Whether torch.compile works depends on the machine's compiler; that is a result, not a fault
            # of the bench.
            return {**row, "refused": f"torch.compile failed: {str(error).splitlines()[0]}"}
        row["seconds_to_first_result"] = time.perf_counter() - started
        error = largest_error(model, inputs[0], first)
        row["max_abs_err"] = error
        if not error <= TOLERANCE:  # also catches NaN, which the JSON form has no number for
            row["max_abs_err"] = error if np.isfinite(error) else None
            return {**row, "refused": f"max |logit - fp64 reference| is {error:.3g}, more than {TOLERANCE:g}"}
        del first
        taken: list[float] = []
        gemm, copied = [], []
        turn = _Turn(call, inputs)
        for _ in range(repeats):
            gemm.append(limits.gemm_rate())
            copied.append(limits.copy_rate())
            time_calls(turn, seconds / 4, BATCHES)
            taken += time_calls(turn, seconds, 2 * BATCHES)
    mean_seconds = sum(taken) / len(taken)
    rate, bandwidth = statistics.median(gemm), statistics.median(copied)
    _, weights = model.parameter_counts()
    flop = statistics.mean(limits.flops(case, size) for size in sizes)
    moved = statistics.mean(limits.bytes_moved(case, size, weights) for size in sizes)
    return {
        **row,
        "samples_per_s": batch / mean_seconds,
        **percentiles(taken),
        "share_of_limit": limits.shortest(flop, moved, rate, bandwidth) / mean_seconds,
        "calls": len(taken),
        "gemm_gflops": rate / 1e9,
        "copy_gb_s": bandwidth / 1e9,
        "flops_per_batch": flop,
        "bytes_per_batch": moved,
    }


class _Turn:
    """Calls an engine on each of some inputs in turn."""

    def __init__(self, call: Callable, inputs: list):
        self.call, self.inputs, self.next = call, inputs, 0

    def __call__(self) -> object:
        batch = self.inputs[self.next]
        self.next = (self.next + 1) % len(self.inputs)
        return self.call(batch)


def make_engine(model: Model, engine: str) -> Callable:
    """A function of a Batch that computes the model's output with ``engine``."""
    if engine == "eager":
        return model
    torch._dynamo.reset()
    # The jagged batch's longest length is read as a number, so dynamo splits the graph there and says so at
    # length.
    torch._logging.set_logs(dynamo=logging.ERROR)
    return torch.compile(model)


def largest_error(model: Model, batch, output: torch.Tensor) -> float:
    """max |output − fp64 reference| on the same fp32-rounded weights, a few rows at a time."""
    exact = copy.deepcopy(model).double()
    exact.backend = "reference"
    largest = torch.zeros((), dtype=torch.float64)
    for start in range(0, len(batch), CHECK_ROWS):
        stop = min(start + CHECK_ROWS, len(batch))
        gap = (exact(batch.slice(start, stop)) - output[start:stop].double()).abs().max()
        largest = torch.maximum(largest, gap)  # a NaN stays
    return float(largest)


def _facts() -> dict:
    about = describe("cpu")
    versions = {
        "ameir_fast": about["version"],
        **{name: about[name] for name in ("torch", "python", "numpy")},
    }
    return {"versions": versions, **{name: about[name] for name in ("cpu", "platform", "git", "date")}}
