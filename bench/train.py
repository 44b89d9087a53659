"""``ameir-fast bench train``: a supernet's training step against the reference backend, and as the embedding grows.

A step is the search's own (``search.stepper.Stepper``): one uniformly drawn path forward and backward, and an update of
every weight by Adam, the native engine's of the embedding always by the rows that were read. The reference is PyTorch alone: its operations, a dense gradient of the embedding, a dense step of
the optimizer. Both get the same batches and the same paths in the same order, and take turns.

Growth compares the native step for embeddings of different numbers of rows, also in turn: on ids as frequent as those
of real data (Zipf's law), and on uniform ones, of which nearly every one is another row; peak memory is that of a process
of its own.
"""

from __future__ import annotations

import multiprocessing
import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .. import Batch, FeatureSchema, InputError, SearchSpace, Supernet, native
from ..forward import rows_read
from ..profile import backend_in_use, percentiles, random_batch
from ..progress import Progress
from ..search.config import SearchConfig
from ..search.environment import describe
from ..search.objective import make_objective
from ..search.training import Stepper, Task
from .suites import alimama, lengths

BATCH = 1024
ROWS = (100_000, 10_000_000)  # of the embedding, where growth is measured
WIDTH = 16  # of it
ZIPF = 1.05  # exponent: the k-th most frequent id of a vocabulary has a share proportional to k^-1.05
BATCHES = 32  # in turn
STEPS, QUICK_STEPS = 64, 6
#: Steps before growth is measured: a row that was last read in the first 128 is followed step by step (EmbeddingAdam),
#: which a longer training does not notice.
GROWN = 192
SPARE = 2**30  # bytes that a step may need beside the matrix and the optimizer's state of it


@dataclass(frozen=True)
class _Data:
    """All that a task asks of data when it is given its batches."""

    schema: FeatureSchema

    @property
    def task(self) -> str:
        return self.schema.task


class Training:
    """A supernet in training, by the reference or by what the search takes by default."""

    def __init__(self, schema: FeatureSchema, embedding_dim: int, engine: str):
        backend = "reference" if engine == "reference" else None
        config = SearchConfig(embedding_dim=embedding_dim, batch_size=BATCH, backend=backend)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = Supernet(SearchSpace(schema), embedding_dim, backend).train()
        self.net.dropout, self.net.generator = config.dropout, torch.Generator().manual_seed(0)
        task = Task(_Data(schema), make_objective(schema, config), config, Progress())
        self.stepper = Stepper(task, self.net, by_rows=engine != "reference")

    def step(self, batch: Batch, path: int) -> float:
        """Seconds of one step on the path drawn with this seed."""
        child = self.net.sample(torch.Generator().manual_seed(path))
        began = time.perf_counter()
        self.stepper.step(batch, 1e-3, lambda b, items: self.net(b, child, items))
        return time.perf_counter() - began


def run(quick: bool = False, steps: int | None = None, on_row: Callable[[dict], None] = lambda row: None) -> list[dict]:
    """Rows of every kind of lengths and engine, then of every number of embedding rows.

    A row has ``samples_per_s`` (over all its steps), ``p50_ms`` and ``p99_ms`` of a step and ``ratio``: of the native
    engine its samples/s over the reference's; of a number of embedding rows, the median over steps of its seconds over
    those of the smallest. Rows of growth also have ``rows_read``, how many different rows a batch reads in the mean,
    ``peak_bytes`` of a process that does nothing else, and ``limit_bytes``: the matrix, the optimizer's two moments of it,
    and 1 GiB.

    Args:
        quick: a few steps and no large embedding, under 45 seconds; not for quoting.
        steps: of each engine, after a third as many that are not counted.

    Raises:
        InputError: the native operations are not there, naming the reason.
    """
    if native.why_not("_C") is not None:
        raise InputError(f"bench train compares with the native operations: {native.why_not('_C')}")
    steps = steps or (QUICK_STEPS if quick else STEPS)
    facts = _facts()
    rows = []
    kinds = ("zipf",) if quick else ("zipf", "uniform")
    # Before large ones are here: a new process counts what its parent has.
    peaks = {} if quick else {(ids, size): _peak(size, ids) for ids in kinds for size in ROWS}

    def add(found: list[dict]) -> None:
        for row in found:
            rows.append({**row, **facts})
            on_row(rows[-1])

    case = alimama()[0]
    for kind in ("full", "ragged"):
        add(_engines(case.schema, case.embedding_dim, kind, steps))
    for ids in kinds:
        add(_growth((ROWS[0], 10 * ROWS[0]) if quick else ROWS, ids, steps, steps if quick else GROWN, peaks))
    return rows


def _engines(schema: FeatureSchema, embedding_dim: int, kind: str, steps: int) -> list[dict]:
    batches = [_labelled(random_batch(schema, BATCH, lengths(kind, BATCH, schema.max_history, seed), seed), seed)
               for seed in range(BATCHES)]
    engines = {name: Training(schema, embedding_dim, name) for name in ("reference", "native")}
    taken = _take_turns(engines, {name: batches for name in engines}, steps, steps // 3)
    total = {name: sum(times) for name, times in taken.items()}
    return [{"suite": "alimama", "case": "uniform paths", "engine": name,
             "backend": "reference" if name == "reference" else backend_in_use(torch.device("cpu")), "lengths": kind,
             "ids": "uniform", "embedding_rows": schema.num_embeddings, "embedding_dim": embedding_dim, **_speed(times),
             "ratio": total["reference"] / total[name] if name != "reference" else None,
             "rows_read": _rows_read(schema, batches), "peak_bytes": None, "limit_bytes": None}
            for name, times in taken.items()]


def _growth(sizes: tuple[int, ...], ids: str, steps: int, before: int, peaks: dict) -> list[dict]:
    schemas = {rows: resized(alimama()[0].schema, rows) for rows in sizes}
    batches = {rows: _ragged(schema, ids) for rows, schema in schemas.items()}
    engines = {rows: Training(schema, WIDTH, "native") for rows, schema in schemas.items()}
    taken = _take_turns(engines, batches, steps, before)
    smallest = taken[sizes[0]]
    return [{"suite": "alimama", "case": "growth", "engine": "native", "backend": backend_in_use(torch.device("cpu")),
             "lengths": "ragged", "ids": ids, "embedding_rows": schemas[rows].num_embeddings, "embedding_dim": WIDTH,
             **_speed(times),
             "ratio": statistics.median(a / b for a, b in zip(times, smallest, strict=True)) if rows != sizes[0] else None,
             "rows_read": _rows_read(schemas[rows], batches[rows]), "peak_bytes": peaks.get((ids, rows)),
             "limit_bytes": 3 * 4 * WIDTH * schemas[rows].num_embeddings + SPARE}
            for rows, times in taken.items()]


def _take_turns(engines: dict, batches: dict, steps: int, before: int) -> dict:
    """Seconds of ``steps`` steps of each engine, on the same paths, after ``before`` others."""
    taken = {name: [] for name in engines}
    for step in range(before + steps):
        for name, engine in engines.items():
            taken[name].append(engine.step(batches[name][step % BATCHES], step))
    return {name: times[before:] for name, times in taken.items()}


def resized(schema: FeatureSchema, rows: int) -> FeatureSchema:
    """The schema with vocabularies in the same proportions that have about ``rows`` entries in all."""
    about = schema.to_dict()
    total = sum(v["size"] for v in about["vocabularies"])
    about["vocabularies"] = [{**v, "size": max(2, round(v["size"] * rows / total))} for v in about["vocabularies"]]
    return FeatureSchema.from_dict(about)


def _ragged(schema: FeatureSchema, ids: str) -> list[Batch]:
    """Ragged batches with ids of this distribution."""
    found = []
    for seed in range(BATCHES):
        batch = random_batch(schema, BATCH, lengths("ragged", BATCH, schema.max_history, seed), seed)
        if ids == "zipf":
            drawn = np.random.default_rng(seed)
            batch = Batch(_zipf(drawn, tuple(batch.fields.shape), schema.field_sizes),
                          _zipf(drawn, tuple(batch.history.shape), schema.behavior_sizes), batch.history_offsets).check(schema)
        found.append(_labelled(batch, seed))
    return found


def _zipf(drawn: np.random.Generator, shape: tuple[int, ...], sizes: tuple[int, ...]) -> torch.Tensor:
    """Ids int32, the most frequent one first, by the inverse of the continuous law's distribution on [1, size + 1)."""
    end = (np.array(sizes) + 1.0) ** (1 - ZIPF)
    rank = (1 + drawn.random(shape) * (end - 1)) ** (1 / (1 - ZIPF))
    return torch.from_numpy(np.minimum(rank.astype(np.int64) - 1, np.array(sizes) - 1).astype(np.int32))


def _rows_read(schema: FeatureSchema, batches: list[Batch]) -> float:
    return statistics.mean(len(torch.cat([part.flatten() for part in rows_read(schema, batch) if part is not None]).unique())
                           for batch in batches)


def _labelled(batch: Batch, seed: int) -> Batch:
    label = torch.from_numpy(np.random.default_rng(seed).integers(0, 2, len(batch)).astype(np.float32))
    return Batch(batch.fields, batch.history, batch.history_offsets, label)


def _peak(rows: int, ids: str) -> int:
    """The largest resident memory, in bytes, of a process that trains an embedding of that many rows for some steps."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(1) as pool:
        return pool.apply(_trained, (rows, ids, torch.get_num_threads()))


def _trained(rows: int, ids: str, threads: int) -> int:
    torch.set_num_threads(threads)
    schema = resized(alimama()[0].schema, rows)
    batches, training = _ragged(schema, ids), Training(schema, WIDTH, "native")
    for step in range(BATCHES):
        training.step(batches[step], step)
    unit = 1 if sys.platform == "darwin" else 1024
    return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def _speed(times: list[float]) -> dict:
    return {"batch": BATCH, "samples_per_s": BATCH * len(times) / sum(times), **percentiles(times), "steps": len(times)}


def _facts() -> dict:
    about = describe("cpu")
    return {"device": "cpu", "dtype": "float32", "threads": torch.get_num_threads(),
            "versions": {"ameir_fast": about["version"], **{name: about[name] for name in ("torch", "python", "numpy")}},
            **{name: about[name] for name in ("cpu", "platform", "git", "date")}}


def line(row: dict) -> str:
    """A row for people."""
    start = (f"{row['case']:<14} {row['engine']:<10} {row['lengths']:<7} {row['ids']:<8} {row['embedding_rows']:>11,} rows x {row['embedding_dim']:<3}"
             f" {row['samples_per_s']:>9,.0f} samples/s  p50 {row['p50_ms']:>8.2f} ms")
    if row["peak_bytes"] is not None:
        start += f"  peak {row['peak_bytes'] / 2**30:.2f} of {row['limit_bytes'] / 2**30:.2f} GiB"
    if row["ratio"] is None:
        return start
    if row["case"] == "growth":
        return f"{start}  {row['ratio']:.2f} times the seconds of the smallest"
    return f"{start}  {row['ratio']:.1f} times the reference's samples/s"

def table(rows: list[dict]) -> list[str]:
    """Lines of a Markdown table."""
    lines = ["| case | backend | lengths | ids | embedding | samples/s | ratio | rows read | peak, GiB (limit) |", "|---" * 9 + "|"]
    for row in rows:
        ratio = "–" if row["ratio"] is None else f"{row['ratio']:.2f} × the time" if row["case"] == "growth" else \
            f"{row['ratio']:.1f} × the samples/s"
        peak = "–" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 2**30:.2f} ({row['limit_bytes'] / 2**30:.2f})"
        lines.append(f"| {row['case']} | {row['backend']} | {row['lengths']} | {row['ids']} | {row['embedding_rows']:,} × "
                     f"{row['embedding_dim']} | {row['samples_per_s']:,.0f} | {ratio} | {row['rows_read']:,.0f} | {peak} |")
    return lines
