"""How fast batches come out of prepared data, against how fast a supernet trains on them."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import torch

from .. import SearchSpace, Supernet
from ..batch import Batch
from ..data import Dataset, order
from ..search.config import SearchConfig
from ..search.objective import make_objective

BATCH, EMBEDDING, NEGATIVES = 512, 16, 4
ENGINES = ("batches", "training")
_KEPT = 16  # batches in turn, so that the rows looked up are not the ones just used
_ROUNDS = 5


def feeding(
    data: Dataset, seconds: float, engines: Sequence[str] = ENGINES, embedding: int = EMBEDDING, batch: int = BATCH
) -> list[dict]:
    """A row for each engine, of ``seconds`` in all, the engines taking turns; ``batches`` and ``training`` are among
    them.

    ``batches`` is ``Dataset.batches("train", batch, seed=0)``, for retrieval with 4 negatives, without its first batch,
    whose time (it includes shuffling the first rows) is ``first_batch_s``; ``training`` is the search's step on batches
    that are there already: forward, backward and Adam of uniformly drawn children of ``Supernet`` (the reference's
    operations). ``permutation`` is the same rows in the order of one permutation of them all, which is made before and
    not timed; ``numpy`` is ``batches`` without native code; ``stored`` is the order of the files. Rows hold
    ``rows_per_s``, the median over rounds, and ``ratio``, the median of ``batches``' rate over the engine's, and for
    ``batches`` itself over ``training``'s.
    """
    began = time.perf_counter()
    batches = _endless(data, batch)
    kept = [next(batches)]
    first = time.perf_counter() - began
    kept += [next(batches) for _ in range(_KEPT - 1)]
    stored = _endless(data, batch, None)
    works = {
        "batches": lambda: len(next(batches)),
        "training": _trainer(data, kept, embedding),
        "permutation": _permuted(data, batch),
        "numpy": _without_native(_endless(data, batch)),
        "stored": lambda: len(next(stored)),
    }
    turn = seconds / len(engines) / _ROUNDS
    rates: dict[str, list[float]] = {engine: [] for engine in engines}
    for engine in engines:
        works[engine]()
    for _ in range(_ROUNDS):
        for engine in engines:
            rates[engine].append(_rate(works[engine], turn))

    def ratio(engine: str) -> float:
        versus = "training" if engine == "batches" else engine
        return statistics.median(a / b for a, b in zip(rates["batches"], rates[versus], strict=True))

    return [
        {"engine": engine, "rows": data.size("train"), "batch": batch, "rows_per_s": statistics.median(rates[engine]),
         "rounds": _ROUNDS, "threads": torch.get_num_threads(), "backend": "reference", "ratio": ratio(engine),
         **({"first_batch_s": first} if engine == "batches" else {})}
        for engine in engines
    ]


def _negatives(data: Dataset) -> dict:
    return {"negatives": NEGATIVES} if data.task == "retrieval" else {}


def _endless(data: Dataset, size: int, seed: int | None = 0) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from data.batches("train", size, seed=seed, epoch=epoch, **_negatives(data))
        epoch += 1


def _permuted(data: Dataset, size: int) -> Callable[[], int]:
    """Without negatives, which depend on the number of the batch."""
    rows, at = None, 0

    def work() -> int:
        nonlocal rows, at
        if rows is None:
            rows = order.permutation(data.size("train"), 0, 0)
        at = at + size if at + 2 * size <= len(rows) else 0
        return len(data.batch("train", rows[at : at + size]))

    return work


def _without_native(batches: Iterator[Batch]) -> Callable[[], int]:
    def work() -> int:
        before = os.environ.get("AMEIR_FAST_NATIVE")
        os.environ["AMEIR_FAST_NATIVE"] = "0"
        try:
            return len(next(batches))
        finally:
            if before is None:
                del os.environ["AMEIR_FAST_NATIVE"]
            else:
                os.environ["AMEIR_FAST_NATIVE"] = before

    return work


def _trainer(data: Dataset, kept: list[Batch], embedding: int) -> Callable[[], int]:
    space = SearchSpace(data.schema)
    net = Supernet(space, embedding_dim=embedding, backend="reference").train()
    objective = make_objective(data.schema, SearchConfig())
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    done = 0

    def step() -> int:
        nonlocal done
        batch, child = kept[done % len(kept)], net.sample(generator)
        done += 1
        optimizer.zero_grad(set_to_none=True)
        objective.loss(lambda b, items: net(b, child, items), batch).backward()
        optimizer.step()
        return len(batch)

    return step


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Rows per second of ``work``, which does some rows and says how many."""
    rows, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not rows:
        rows += work()
    return rows / spent
