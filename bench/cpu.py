"""``ameir-fast bench cpu``: throughput and latency of derived models on the CPU, engine by engine.

Every row is checked against the fp64 reference on the same fp32-rounded weights and refused beyond 1e-4; it
carries the share of the machine's measured limit that was reached. The engines of a case take turns, repeat by
repeat, so that a busy machine slows all of them.
"""

from __future__ import annotations

import copy
import logging
import math
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from .. import Batch, InputError, Model
from ..profile import percentiles, random_batch, time_calls
from ..search.environment import describe
from . import limits
from .suites import EMBEDDING_DEVIATION, Case, cases, lengths

PLANS = {"plan": "float32", "plan-unfolded": "float32", "plan-bfloat16": "bfloat16"}
ENGINES = (*PLANS, "eager", "compile", "onnxruntime")
TOLERANCE = 1e-4
KINDS = ("full", "ragged", "candidates")
CANDIDATES = 200
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

    Of lengths ``candidates`` a batch is one user with a full history and 200 (or ``batch``) candidates, which differ in
    the target fields: plans score them with ``plan.score``, the others get the same rows as a batch. ``quick`` means
    one repeat of a quarter of a second with the plan and the eager engine and full lengths, under 45 seconds in all;
    without it three repeats of a second, all kinds of lengths, all engines. A row of a plan holds ``ratio``, its
    samples/s over the best peer's that was measured.

    Raises:
        InputError: an unknown suite, case, kind of lengths or engine, or an engine that is not installed.
    """
    chosen = cases(suites, names)
    chosen_engines, engines = engines, engines or (["plan", "eager"] if quick else list(ENGINES))
    kinds = kinds or (["full"] if quick else list(KINDS))
    check_choices(engines, kinds)
    repeats = repeats or (1 if quick else 3)
    seconds = 0.25 if quick else 1.0
    facts = _facts(engines)
    rows = []
    for case in chosen:
        model = build_model(case)
        # By default only where the two differ.
        used = [e for e in engines if e != "plan-unfolded" or chosen_engines or model.compile().folded]
        # Without a history there is nothing to be ragged.
        for kind in kinds if case.schema.num_behavior else ["full"]:
            if kind == "candidates" and not case.schema.target:
                continue
            rows_of_batch = batch or (CANDIDATES if kind == "candidates" else case.batch)
            for row in measure(case, model, used, kind, rows_of_batch, repeats, seconds):
                rows.append({**row, **facts})
                if on_row is not None:
                    on_row(rows[-1])
    return rows


def check_choices(engines: list[str], kinds: list[str]) -> None:
    """Raise InputError for engines and kinds of lengths that do not exist, or that are not installed."""
    for engine in engines:
        if engine not in ENGINES:
            raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"unknown lengths {kind!r}; known: {', '.join(KINDS)}")
    if any(engine in PLANS for engine in engines):
        from ..plan import instruction_sets

        try:
            instruction_sets()
        except RuntimeError as error:
            raise InputError(f"engine 'plan': {error}") from None
    if "onnxruntime" in engines:
        try:
            import onnx  # noqa: F401
            import onnxruntime  # noqa: F401
        except ImportError as error:
            raise InputError(f"engine 'onnxruntime': {error}; install the extra `bench`, or choose with --engines") from None


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
    case: Case, model: Model, engines: list[str], kind: str, batch: int, repeats: int, seconds: float
) -> list[dict]:
    """One row an engine, without the facts about the machine."""
    sizes = [lengths("ragged" if kind == "ragged" else "full", batch, case.schema.max_history, seed)
             for seed in range(BATCHES)]
    inputs = [random_batch(case.schema, batch, size, seed) for seed, size in enumerate(sizes)]
    if kind == "candidates":
        inputs = [of_one_user(one, case.schema) for one in inputs]
    rows, turns = [], {}
    with torch.inference_mode():
        for engine in engines:
            row, turn = _start(case, model, engine, kind, batch, inputs)
            rows.append(row)
            if turn:
                turns[engine] = turn
        taken: dict[str, list[float]] = {engine: [] for engine in turns}
        gemm, copied = [], []
        for _ in range(repeats):
            gemm.append(limits.gemm_rate())
            copied.append(limits.copy_rate())
            for engine, turn in turns.items():
                time_calls(turn, seconds / 4, BATCHES)
                taken[engine] += time_calls(turn, seconds, 2 * BATCHES)
    _, weights = model.parameter_counts()
    flop = statistics.mean(limits.flops(case, size) for size in sizes)
    moved = statistics.mean(limits.bytes_moved(case, size, weights) for size in sizes)
    rate, bandwidth = statistics.median(gemm), statistics.median(copied)
    for row in rows:
        if row["engine"] in taken:
            times = taken[row["engine"]]
            typical = statistics.median(times)
            row |= {
                "samples_per_s": batch / typical,
                **percentiles(times),
                "share_of_limit": limits.shortest(flop, moved, rate, bandwidth) / typical,
                "calls": len(times),
                "gemm_gflops": rate / 1e9,
                "copy_gb_s": bandwidth / 1e9,
                "flops_per_batch": flop,
                "bytes_per_batch": moved,
            }
    peers = [row["samples_per_s"] for row in rows if row["engine"] not in PLANS and row["samples_per_s"]]
    for row in rows:
        if row["engine"] in PLANS and row["samples_per_s"] and peers:
            row["ratio"] = row["samples_per_s"] / max(peers)
    return rows


def _start(case: Case, model: Model, engine: str, kind: str, batch: int, inputs: list[Batch]) -> tuple[dict, _Turn | None]:
    """The first call of an engine: its row so far, and where its result is right, what to time."""
    row = {
        "suite": case.suite,
        "case": case.name,
        "engine": engine,
        "backend": "cpp" if engine in PLANS else "inductor" if engine == "compile" else "reference" if engine == "eager" else engine,
        "device": "cpu",
        "dtype": PLANS.get(engine, "float32"),
        "threads": torch.get_num_threads(),
        "lengths": kind if case.schema.num_behavior else "none",
        "batch": batch,
        "samples_per_s": None,
        "p50_ms": None,
        "p99_ms": None,
        "max_abs_err": None,
        "share_of_limit": None,
        "seconds_to_first_result": None,
        "ratio": None,
        "refused": None,
    }
    started = time.perf_counter()
    try:
        call, form = make_engine(model, engine, kind)
        first = call(form(inputs[0]))
    except torch._dynamo.exc.TorchDynamoException as error:
        # Whether torch.compile works depends on the machine's compiler; that is a result, not a fault of the
        # bench.
        return {**row, "refused": f"torch.compile failed: {str(error).splitlines()[0]}"}, None
    except NotImplementedError as error:
        return {**row, "refused": str(error)}, None
    row["seconds_to_first_result"] = time.perf_counter() - started
    error = largest_error(model, inputs[0], first)
    row["max_abs_err"] = error
    if not error <= TOLERANCE:  # also catches NaN, which the JSON form has no number for
        row["max_abs_err"] = error if np.isfinite(error) else None
        return {**row, "refused": f"max |logit - fp64 reference| is {error:.3g}, more than {TOLERANCE:g}"}, None
    return row, _Turn(call, [form(one) for one in inputs])


class _Turn:
    """Calls an engine on each of some inputs in turn."""

    def __init__(self, call: Callable, inputs: list):
        self.call, self.inputs, self.next = call, inputs, 0

    def __call__(self) -> object:
        batch = self.inputs[self.next]
        self.next = (self.next + 1) % len(self.inputs)
        return self.call(batch)


def make_engine(model: Model, engine: str, kind: str) -> tuple[Callable, Callable]:
    """A function that computes the model's output, and one that makes its input of a ``Batch`` (not timed)."""
    if engine in PLANS:
        plan = model.compile(dtype=PLANS[engine], fold_bytes=0 if engine == "plan-unfolded" else None)
        if kind != "candidates":
            return plan, lambda batch: batch
        columns = list(model.schema.target_positions)
        return (lambda pair: plan.score(*pair)), lambda batch: (batch.slice(0, 1), batch.fields[:, columns].contiguous())
    if engine == "onnxruntime":
        return _onnxruntime(model, kind)
    plain = copy.copy(model)  # shares the weights
    plain.backend = "reference"
    if engine == "eager":
        return plain, lambda batch: batch
    torch._dynamo.reset()
    # The jagged batch's longest length is read as a number, so dynamo splits the graph there and says so at
    # length.
    torch._logging.set_logs(dynamo=logging.ERROR)
    return torch.compile(plain), lambda batch: batch


def of_one_user(batch: Batch, schema) -> Batch:
    """The rows with the first one's history and all of its fields but the target's."""
    fields = batch.fields[:1].repeat(len(batch), 1)
    columns = list(schema.target_positions)
    fields[:, columns] = batch.fields[:, columns]
    length = int(batch.history_offsets[1])
    return Batch(fields, batch.history[:length].repeat(len(batch), 1), torch.arange(len(batch) + 1) * length, None)


def _onnxruntime(model: Model, kind: str) -> tuple[Callable, Callable]:
    """The session on as many threads as torch has; histories are padded beforehand, at no cost to it."""
    import onnxruntime

    from .onnx_export import export

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    ragged = kind == "ragged" and model.schema.num_behavior > 0
    session = onnxruntime.InferenceSession(export(model, ragged).SerializeToString(), options,
                                           providers=["CPUExecutionProvider"])

    def form(batch: Batch) -> dict[str, np.ndarray]:
        feed = {"fields": batch.fields.numpy()}
        if model.schema.num_behavior:
            feed["history"] = batch.to_padded()[0].numpy()
        if ragged:
            feed["lengths"] = batch.lengths.to(torch.int32).numpy()
        return feed

    return lambda feed: torch.from_numpy(session.run(None, feed)[0]), form


def largest_error(model: Model, batch, output: torch.Tensor) -> float:
    """max |output − fp64 reference| on the same fp32-rounded weights, a few rows at a time."""
    exact = copy.deepcopy(model).double()
    exact.backend = "reference"
    largest = torch.zeros((), dtype=torch.float64, device=output.device)
    for start in range(0, len(batch), CHECK_ROWS):
        stop = min(start + CHECK_ROWS, len(batch))
        gap = (exact(batch.slice(start, stop)) - output[start:stop].double()).abs().max()
        largest = torch.maximum(largest, gap)  # a NaN stays
    return float(largest.detach())


def summary(rows: list[dict]) -> list[str]:
    """Of each plan, the geometric mean and the least of its ratios in each suite and kind of lengths."""
    found: dict[tuple, list[dict]] = {}
    for row in rows:
        if row["ratio"]:
            found.setdefault((row["suite"], row["lengths"], row["batch"], row["engine"]), []).append(row)
    lines = []
    for (suite, kind, batch, engine), group in found.items():
        mean = math.exp(statistics.mean(math.log(row["ratio"]) for row in group))
        least = min(group, key=lambda row: row["ratio"])
        lines.append(f"{suite}, {kind}, batch {batch}: {engine} {mean:.1f} times the best peer's samples/s in the geometric "
                     f"mean of {len(group)}, least {least['ratio']:.1f} ({least['case']})")
    return lines


def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table: for each case the engines' share of the limit, and the plan's ratio."""
    engines = [name for name in ENGINES if any(row["engine"] == name for row in rows)]
    lines = ["| case | lengths | batch | " + " | ".join(f"{name}, % of the limit" for name in engines) +
             " | plan ÷ best peer |", "|---" * (len(engines) + 4) + "|"]
    groups: dict[tuple, dict[str, dict]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["lengths"], row["batch"]), {})[row["engine"]] = row
    for (case, kind, batch), group in groups.items():
        shares = [f"{100 * group[e]['share_of_limit']:.1f}" if e in group and not group[e]["refused"] else "–"
                  for e in engines]
        ratio = group.get("plan", {}).get("ratio")
        lines.append(f"| {case} | {kind} | {batch} | {' | '.join(shares)} | {f'{ratio:.1f}' if ratio else '–'} |")
    return lines


def _facts(engines: list[str]) -> dict:
    about = describe("cpu")
    versions = {
        "ameir_fast": about["version"],
        **{name: about[name] for name in ("torch", "python", "numpy")},
    }
    if "onnxruntime" in engines:
        import onnxruntime

        versions["onnxruntime"] = onnxruntime.__version__
    return {"versions": versions, **{name: about[name] for name in ("cpu", "platform", "git", "date")}}
