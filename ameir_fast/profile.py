"""Latency of a derived model: what one call costs, by batch size."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from .errors import InputError

#: What computes a model, with the dtype of those that are plans.
ENGINES = {"model": None, "plan": "float32", "plan-bfloat16": "bfloat16"}


def percentiles(seconds: list[float]) -> dict[str, float]:
    """``p50_ms`` and ``p99_ms`` of some timings."""
    milliseconds = np.asarray(seconds) * 1e3
    return {
        "p50_ms": float(np.percentile(milliseconds, 50)),
        "p99_ms": float(np.percentile(milliseconds, 99)),
    }


def time_calls(
    call: Callable[[], object], seconds: float, least: int = 5, synchronize: Callable[[], None] | None = None
) -> list[float]:
    """Seconds of each of many calls: as many as fit into ``seconds``, at least ``least``. Warm-up is the
    caller's."""
    taken: list[float] = []
    end = time.perf_counter() + seconds
    while len(taken) < least or time.perf_counter() < end:
        start = time.perf_counter()
        call()
        if synchronize is not None:
            synchronize()
        taken.append(time.perf_counter() - start)
    return taken


def random_batch(schema, rows: int, lengths: np.ndarray, seed: int = 0):
    """A CPU ``Batch`` of ``rows`` rows with uniform ids and the given history lengths (int, [rows]).

    Bags of multi-categorical fields hold one to three ids.
    """
    import torch

    from .batch import Batch

    generator = np.random.default_rng(seed)
    fields = np.zeros((rows, schema.num_fields), np.int32)
    for position, size in enumerate(schema.field_sizes):
        if position not in schema.multi_fields:
            fields[:, position] = generator.integers(0, size, rows)
    history = offsets = bag_ids = bag_offsets = None
    if schema.num_behavior:
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        columns = [generator.integers(0, size, offsets[-1]) for size in schema.behavior_sizes]
        history = torch.from_numpy(np.stack(columns, axis=1).astype(np.int32))
        offsets = torch.from_numpy(offsets)
    if schema.multi_fields:
        sizes = generator.integers(1, 4, rows * len(schema.multi_fields))
        ends = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        limits = np.array([schema.field_sizes[position] for position in schema.multi_fields])
        owners = np.tile(limits, rows).repeat(sizes)
        bag_ids = torch.from_numpy((generator.random(ends[-1]) * owners).astype(np.int32))
        bag_offsets = torch.from_numpy(ends)
    batch = Batch(torch.from_numpy(fields), history, offsets, None, bag_ids, bag_offsets)
    return batch.check(schema)


def profile_run(
    run_dir: str | Path,
    batch_sizes: list[int],
    device: str = "cpu",
    seconds: float = 2.0,
    on_row: Callable[[dict], None] | None = None,
    engine: str = "model",
    parts: bool = False,
) -> list[dict]:
    """Time ``model(batch)`` of a run's derived model in inference mode, or that of its plan, for each batch size.

    Ids are uniform and every history has its full length: the most work a batch of that size can be.
    Returns one row a batch size with ``batch, engine, backend, device, threads, p50_ms, p99_ms, samples_per_s,
    calls``, and with ``parts`` also what ``Plan.profile`` says, as ``parts``. ``engine`` is one of ``ENGINES``.

    Raises:
        InputError: the directory holds no finished model, a batch size is below 1, the device is not there, or
        there are no plans for it.
    """
    import torch

    from .model import Model

    directory = Path(run_dir) / "model"
    if not (directory / "model.json").is_file():
        raise InputError(
            f"{run_dir}: no derived model in it (model/model.json is missing); has the run finished?"
        )
    for size in batch_sizes:
        if size < 1:
            raise InputError(f"batch size {size} is below 1")
    on_gpu = check_device(device)
    if parts and (engine == "model" or on_gpu):
        raise InputError("parts are told of a plan on the CPU alone: --engine plan")
    model = Model.load(directory).to(device).eval()
    call = make_engine(model, engine, device)
    backend = backend_in_use(torch.device(device)) if engine == "model" else "cpp"
    rows = []
    with torch.inference_mode():
        for size in batch_sizes:
            lengths = np.full(size, model.schema.max_history)
            batch = random_batch(model.schema, size, lengths).to(device)
            synchronize = torch.cuda.synchronize if on_gpu else None
            time_calls(lambda batch=batch: call(batch), min(0.3, seconds / 4), 3, synchronize)
            taken = time_calls(lambda batch=batch: call(batch), seconds, 5, synchronize)
            row = {
                "batch": size,
                "engine": engine,
                "backend": backend,
                "device": device,
                "threads": torch.get_num_threads(),
                **percentiles(taken),
                "samples_per_s": size * len(taken) / sum(taken),
                "calls": len(taken),
            }
            if parts:
                threads = torch.get_num_threads()
                torch.set_num_threads(1)
                try:
                    row["parts"] = call.profile(batch)
                finally:
                    torch.set_num_threads(threads)
            rows.append(row)
            if on_row is not None:
                on_row(row)
    return rows


def make_engine(model, engine: str, device: str = "cpu"):
    """The model itself, or its plan; ``InputError`` for an engine that is none of ``ENGINES``, or why there is no plan."""
    if engine not in ENGINES:
        raise InputError(f"unknown engine {engine!r}; known: {', '.join(ENGINES)}")
    dtype = ENGINES[engine]
    return model if dtype is None else compiled(model, device, dtype)


def compiled(model, device: str = "cpu", dtype: str = "float32", fold_bytes: int | None = None):
    """The plan of a model; ``InputError`` says why there is none."""
    try:
        return model.compile(device, dtype, fold_bytes=fold_bytes)
    except RuntimeError as error:
        raise InputError(str(error)) from None


def check_device(device: str) -> bool:
    """Whether ``device`` is a GPU; InputError when it is no device of this machine."""
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"device {device!r} is unknown; known: cpu, cuda") from None
    if kind == "cpu":
        return False
    if kind != "cuda" or not torch.cuda.is_available():
        raise InputError(f"device {device!r} is not available here (ameir-fast doctor says why)")
    return True


def backend_in_use(device) -> str:
    """Name of the backend the operations resolve to on ``device``; several are joined by ``+``."""
    from . import ops

    used = {ops.resolve(name, None, device).value for name, op in ops.OPS.items() if op.differentiable}
    return "+".join(sorted(used))
