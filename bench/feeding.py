"""How fast batches come out of prepared data, against how fast a supernet trains on them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator

import torch

from .. import SearchSpace, Supernet
from ..batch import Batch
from ..data import Dataset
from ..losses import ctr_loss

BATCH, EMBEDDING = 512, 16
ENGINES = ("batches", "training")
_KEPT = 16  # batches in turn, so that the rows looked up are not the ones just used
_ROUNDS = 5


def feeding(data: Dataset, seconds: float) -> list[dict]:
    """Two rows, ``batches`` and ``training``, of ``seconds`` in all, the two taking turns.

    ``batches`` is ``Dataset.batches("train", 512, seed=0)`` without its first batch, whose time (it includes shuffling
    the whole split) is ``first_batch_s``; ``training`` is the search's step on batches that are there already: forward,
    backward and Adam of uniformly drawn children of ``Supernet`` (K 16, the reference's operations). Rows hold
    ``rows_per_s``, the median over rounds, and ``ratio``, the median of ``batches``' rate over ``training``'s.
    """
    began = time.perf_counter()
    batches = _endless(data)
    kept = [next(batches)]
    first = time.perf_counter() - began
    kept += [next(batches) for _ in range(_KEPT - 1)]
    step = _trainer(data, kept)
    step()
    turn = seconds / 2 / _ROUNDS
    rates: dict[str, list[float]] = {engine: [] for engine in ENGINES}
    for _ in range(_ROUNDS):
        rates["batches"].append(_rate(lambda: len(next(batches)), turn))
        rates["training"].append(_rate(step, turn))
    ratio = statistics.median(a / b for a, b in zip(rates["batches"], rates["training"], strict=True))
    return [
        {"engine": engine, "rows": data.size("train"), "rows_per_s": statistics.median(rates[engine]),
         "rounds": _ROUNDS, "threads": torch.get_num_threads(), "backend": "reference", "ratio": ratio,
         **({"first_batch_s": first} if engine == "batches" else {})}
        for engine in ENGINES
    ]


def _endless(data: Dataset) -> Iterator[Batch]:
    epoch = 0
    while True:
        yield from data.batches("train", BATCH, seed=0, epoch=epoch)
        epoch += 1


def _trainer(data: Dataset, kept: list[Batch]) -> Callable[[], int]:
    space = SearchSpace(data.schema)
    net = Supernet(space, embedding_dim=EMBEDDING, backend="reference").train()
    optimizer = torch.optim.Adam(net.parameters(), fused=True)
    generator = torch.Generator().manual_seed(0)
    done = 0

    def step() -> int:
        nonlocal done
        batch = kept[done % len(kept)]
        done += 1
        optimizer.zero_grad(set_to_none=True)
        ctr_loss(net(batch, net.sample(generator)), batch.label).backward()
        optimizer.step()
        return len(batch)

    return step


def _rate(work: Callable[[], int], seconds: float) -> float:
    """Rows per second of ``work``, which does some rows and says how many."""
    rows, began = 0, time.perf_counter()
    while (spent := time.perf_counter() - began) < seconds or not rows:
        rows += work()
    return rows / spent
