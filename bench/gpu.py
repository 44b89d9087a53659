"""``ameir-fast bench gpu``: whole models on a GPU, the plan against PyTorch three ways, and a supernet's training step.

Peers are PyTorch on the reference operations: eager, ``torch.compile`` with max-autotune, and eager captured into CUDA
graphs, one for each input, so that no launch costs host time. Inputs lie on the device. Every row is checked against the
fp64 reference on the same fp32-rounded weights and refused beyond 1e-4. Engines take turns; a call's device time is
measured with events, its latency from the host with a synchronisation after each. The share of the limit compares with the
rates of a float32 matrix product and of a copy, measured on the same card in the same run, as is what a launch costs the
host. ``launched`` is the plan kernel by kernel, without graphs: what its graphs save.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator

import torch

from .. import Batch, InputError, Model
from ..cost import forward_work
from ..profile import check_device, percentiles, random_batch, time_calls
from ..search.environment import describe
from .cpu import BATCHES, TOLERANCE, build_model, largest_error
from .suites import Case, cases, lengths

ENGINES = ("plan", "eager", "compile", "graph", "launched")
PLANS = {"plan": None, "launched": 0}  # and their graphs
BATCH_SIZES = (1, 16, 256, 1024, 4096, 16384, 65536)
QUICK_SIZES = (256, 4096)
KINDS = ("full", "ragged")
GEMM_SIZE = 8192
COPY_FLOATS = 256 * 2**20
TRAINING_BATCH = 4096


def run(suites: list[str] | None = None, names: list[str] | None = None, kinds: list[str] | None = None,
        batches: list[int] | None = None, engines: list[str] | None = None, quick: bool = False,
        on_row: Callable[[dict], None] = lambda row: None) -> list[dict]:
    """Rows of every case, kind of lengths, batch and engine, then of training.

    ``samples_per_s`` and ``device_ms`` are of calls one after the other, ``p50_ms`` and ``p99_ms`` of single calls that are
    waited for; ``ratio`` of the plan is its samples/s over the best peer's, ``ratio_compile`` over ``torch.compile``'s;
    ``share_of_limit`` the roofline's seconds by the measured rates over the call's, ``share_of_bandwidth`` and
    ``share_of_products`` the same of the bytes and of the operations alone. Training has ``steps_per_s``.

    Raises:
        InputError: no GPU, or an unknown suite, case, kind or engine.
    """
    check_device("cuda")
    engines, kinds = engines or list(ENGINES[:2] if quick else ENGINES), kinds or list(KINDS[:1] if quick else KINDS)
    for what, chosen, known in (("engine", engines, ENGINES), ("lengths", kinds, KINDS)):
        for name in chosen:
            if name not in known:
                raise InputError(f"unknown {what} {name!r}; known: {', '.join(known)}")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    facts = {**_facts(), "gemm_gflops": gemm_rate() / 1e9, "copy_gb_s": copy_rate() / 1e9, **launch_costs()}
    rows = []
    chosen = cases(suites or (["alimama"] if quick else None), names or (["din", "mixed"] if quick and not suites else None))
    for case in chosen:
        model = build_model(case).cuda()
        for kind in kinds if case.schema.num_behavior else kinds[:1]:
            for size in batches or (QUICK_SIZES if quick else BATCH_SIZES):
                for row in _measure(case, model, kind, size, engines, 0.1 if quick else 0.5, facts):
                    rows.append(row)
                    on_row(row)
        del model
        torch.cuda.empty_cache()
    if suites is None and names is None:
        for row in _training(20 if quick else 100):
            rows.append({**row, **facts})
            on_row(rows[-1])
    return rows


def gemm_rate() -> float:
    """FLOP/s of float32 matrix products without TF32."""
    a = torch.rand(GEMM_SIZE, GEMM_SIZE, device="cuda")
    return 2 * GEMM_SIZE**3 / statistics.median(_device_times(lambda: a @ a, 5))


def copy_rate() -> float:
    """Bytes/s, read plus written, of a copy on the device."""
    source = torch.zeros(COPY_FLOATS, device="cuda")
    target = torch.empty_like(source)
    return 8 * COPY_FLOATS / statistics.median(_device_times(lambda: target.copy_(source), 10))


def launch_costs() -> dict[str, float]:
    """Microseconds of the host for one launch: of a Triton kernel, of an operation of PyTorch, of a graph of one kernel."""
    from ..kernels import plan_head

    one = torch.zeros(1, 1, device="cuda")
    launch = lambda: plan_head.logits(one, None, one, one[0], one[:, 0])
    launch()
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    with torch.cuda.graph(graph, stream=side):
        launch()
    return {"triton_launch_us": _host_us(launch), "torch_launch_us": _host_us(one.zero_), "graph_launch_us": _host_us(graph.replay)}


def _host_us(call: Callable[[], object], calls: int = 200, rounds: int = 7) -> float:
    """Median microseconds of the host for a call that nothing waits for; fewer calls than a queue of the device holds."""
    taken = []
    for _ in range(rounds):
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(calls):
            call()
        taken.append((time.perf_counter() - began) / calls)
    torch.cuda.synchronize()
    return 1e6 * statistics.median(taken)


def _device_times(call: Callable[[], object], count: int, warm: int = 2) -> list[float]:
    """Seconds on the device of each of ``count`` calls, launched one after the other."""
    for _ in range(warm):
        call()
    marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    marks[0].record()
    for mark in marks[1:]:
        call()
        mark.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in zip(marks, marks[1:], strict=False)]


def _measure(case: Case, model: Model, kind: str, size: int, engines: list[str], seconds: float, facts: dict) -> list[dict]:
    sizes = [lengths(kind, size, case.schema.max_history, seed) for seed in range(BATCHES)]
    inputs = [random_batch(case.schema, size, one, seed).to("cuda") for seed, one in enumerate(sizes)]
    rows, calls = [], {}
    with torch.inference_mode():
        for engine in engines:
            row, call = _start(case, model, engine, kind, size, inputs)
            rows.append(row)
            if call:
                calls[engine] = call
        pipelined: dict[str, list[float]] = {engine: [] for engine in calls}
        waited: dict[str, list[float]] = {engine: [] for engine in calls}
        for _ in range(3):
            for engine, call in calls.items():
                one = statistics.median(_device_times(call, 2 * BATCHES))
                pipelined[engine] += _device_times(call, max(BATCHES, min(2000, int(seconds / 3 / max(one, 1e-6)))))
                waited[engine] += time_calls(call, seconds / 3, 2 * BATCHES, torch.cuda.synchronize)
    work = [forward_work(case.schema, case.architecture, case.embedding_dim, one) for one in sizes]
    needs = [[(part.bytes / (facts["copy_gb_s"] * 1e9), part.flops / (facts["gemm_gflops"] * 1e9)) for part in parts] for parts in work]
    least = {"share_of_limit": statistics.mean(sum(map(max, parts)) for parts in needs),
             "share_of_bandwidth": statistics.mean(sum(moving for moving, _ in parts) for parts in needs),
             "share_of_products": statistics.mean(sum(computing for _, computing in parts) for parts in needs)}
    for row in rows:
        if row["engine"] in calls:
            typical = statistics.median(pipelined[row["engine"]])
            row |= {"samples_per_s": size / typical, "device_ms": 1e3 * typical, **percentiles(waited[row["engine"]]),
                    **{share: seconds / typical for share, seconds in least.items()}}
    peers = [row["samples_per_s"] for row in rows if row["engine"] not in PLANS and row["samples_per_s"]]
    for row in rows:
        if row["engine"] == "plan" and row["samples_per_s"] and peers:
            row["ratio"] = row["samples_per_s"] / max(peers)
            compiled = [other["samples_per_s"] for other in rows if other["engine"] == "compile" and other["samples_per_s"]]
            row["ratio_compile"] = row["samples_per_s"] / compiled[0] if compiled else None
    return [{**row, **facts} for row in rows]


def _start(case: Case, model: Model, engine: str, kind: str, size: int,
           inputs: list[Batch]) -> tuple[dict, Callable[[], object] | None]:
    row = {"suite": case.suite, "case": case.name, "engine": engine,
           "backend": {"compile": "inductor", **dict.fromkeys(PLANS, "triton")}.get(engine, "reference"), "device": "cuda",
           "dtype": "float32", "threads": None, "lengths": kind if case.schema.num_behavior else "none", "batch": size,
           "samples_per_s": None, "device_ms": None, "p50_ms": None, "p99_ms": None, "max_abs_err": None,
           "share_of_limit": None, "share_of_bandwidth": None, "share_of_products": None, "seconds_to_first_result": None,
           "ratio": None, "ratio_compile": None, "refused": None}
    began = time.perf_counter()
    try:
        turns = _calls(model, engine, inputs)
        first = next(turns)()
        torch.cuda.synchronize()
        row["seconds_to_first_result"] = time.perf_counter() - began
        error = largest_error(model, inputs[0], first)
        # torch.compile compiles for each input's shapes, and captures at the second call of each.
        for _ in range(3 * len(inputs) - 1):
            next(turns)()
        torch.cuda.synchronize()
    except RuntimeError as error:  # of a peer: it cannot be compiled or captured; of all: out of memory
        if engine in PLANS and not isinstance(error, torch.OutOfMemoryError):
            raise
        return {**row, "refused": f"{engine} failed: {(str(error).strip() or repr(error)).splitlines()[0]}"}, None
    row["max_abs_err"] = error if error == error else None
    if not error <= TOLERANCE:
        return {**row, "refused": f"max |logit - fp64 reference| is {error:.3g}, more than {TOLERANCE:g}"}, None
    return row, lambda: next(turns)()


def _calls(model: Model, engine: str, inputs: list[Batch]) -> Iterator[Callable[[], torch.Tensor]]:
    """For ever, what computes the model's output of each input in turn; the first is that of the first input."""
    if engine in PLANS:
        plan = model.compile(device="cuda", graphs=PLANS[engine])
        ready = [lambda batch=batch: plan(batch) for batch in inputs]
    else:
        plain = copy.copy(model)  # shares the weights
        plain.backend = "reference"
        if engine == "compile":
            torch._dynamo.reset()
            plain = torch.compile(plain, mode="max-autotune", dynamic=False)
        ready = [_captured(plain, batch) if engine == "graph" else lambda batch=batch: plain(batch) for batch in inputs]
    while True:
        yield from ready


def _captured(model: Model, batch: Batch) -> Callable[[], torch.Tensor]:
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            model(batch)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = model(batch)

    def call() -> torch.Tensor:
        graph.replay()
        return out

    return call


def _training(steps: int) -> Iterator[dict]:
    """Steps/s of a supernet on uniformly drawn paths of the alimama shape, by the reference and by Triton kernels."""
    from .. import SearchSpace, Supernet
    from ..losses import ctr_loss

    case = cases(["alimama"], ["din"])[0]
    for kind in KINDS:
        inputs = [random_batch(case.schema, TRAINING_BATCH, lengths(kind, TRAINING_BATCH, case.schema.max_history, seed), seed)
                  .to("cuda") for seed in range(BATCHES)]
        label = (torch.rand(TRAINING_BATCH, device="cuda", generator=torch.Generator("cuda").manual_seed(0)) < 0.3).float()
        taken: dict[str, list[float]] = {}
        for backend in ("reference", "triton"):
            torch.manual_seed(0)
            net = Supernet(SearchSpace(case.schema), case.embedding_dim, backend).cuda().train()
            optimizer = torch.optim.Adam(net.parameters(), fused=True)
            times = []
            for step in range(steps + steps // 3):
                child = net.sample(torch.Generator().manual_seed(step))
                torch.cuda.synchronize()
                began = time.perf_counter()
                optimizer.zero_grad(set_to_none=True)
                ctr_loss(net(inputs[step % BATCHES], child), label).backward()
                optimizer.step()
                torch.cuda.synchronize()
                times.append(time.perf_counter() - began)
            taken[backend] = times[steps // 3:]  # what was compiled before is not counted
        for backend, times in taken.items():
            yield {"suite": "alimama", "case": "uniform paths", "engine": "training", "backend": backend, "device": "cuda",
                   "dtype": "float32", "threads": None, "lengths": kind, "batch": TRAINING_BATCH,
                   "samples_per_s": TRAINING_BATCH * len(times) / sum(times), "steps_per_s": len(times) / sum(times), "device_ms": None, **percentiles(times),
                   "max_abs_err": None, "share_of_limit": None, "seconds_to_first_result": None,
                   "ratio": sum(taken["reference"]) / sum(times) if backend == "triton" else None, "refused": None}


def line(row: dict) -> str:
    start = f"{row['suite']:<8} {row['case']:<13} {row['engine']:<9} {row['lengths']:<7} batch {row['batch']:>6}"
    if row["refused"]:
        return f"{start}  refused: {row['refused']}"
    share = "" if row["share_of_limit"] is None else f"  {100 * row['share_of_limit']:>5.1f}% of the limit"
    return (f"{start}  {row['backend']:<9} {row['samples_per_s']:>13,.0f} samples/s  p50 {row['p50_ms']:>8.3f} ms{share}"
            + (f"  {row['ratio']:.1f}x" if row["ratio"] else ""))


def summary(rows: list[dict]) -> list[str]:
    """Geometric means of the plan's ratios by suite, lengths and batch: over the best peer, and over ``torch.compile``."""
    found = []
    for key, peer in (("ratio", "the best peer's"), ("ratio_compile", "torch.compile's")):
        groups: dict[tuple, list[float]] = {}
        for row in rows:
            if row["engine"] == "plan" and row.get(key):
                groups.setdefault((row["suite"], row["lengths"], row["batch"]), []).append(row[key])
        found += [f"{suite}, {kind}, batch {batch}: the plan has {statistics.geometric_mean(ratios):.1f} times {peer} samples/s "
                  f"in the geometric mean of {len(ratios)}, least {min(ratios):.1f}" for (suite, kind, batch), ratios in groups.items()]
    return found


def _facts() -> dict:
    import triton

    about = describe("cuda")
    return {"versions": {"ameir_fast": about["version"], "torch": about["torch"], "triton": triton.__version__},
            **{name: about[name] for name in ("gpu", "platform", "git", "date")}}
