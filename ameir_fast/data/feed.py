"""Batches made ahead of the training that uses them, and on their way to its device."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar

import torch

from ..batch import Batch
from ..errors import InputError

T = TypeVar("T")
_END = object()


def feed(
    batches: Iterator[Batch], device: str | torch.device | None = None, prefetch: int = 0, pin_memory: bool = False
) -> Iterator[Batch]:
    """The same batches on ``device``, up to ``prefetch`` of them made ahead in a thread.

    With ``pin_memory`` they are made in page-locked memory, from which a GPU copies them while the caller goes on
    (the copy is ordered before whatever the caller's stream does next).
    """
    if pin_memory and not torch.cuda.is_available():
        raise InputError("pin_memory needs a GPU, and torch sees none")
    made = (batch.pin_memory() for batch in batches) if pin_memory else batches
    with closing(ahead(made, prefetch)) as ready:
        for batch in ready:
            yield batch if device is None else batch.to(device, non_blocking=pin_memory)


def ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, each made in a thread of its own while earlier ones are used, up to
    ``depth`` ahead; with a ``depth`` of 0 there is no thread.

    An error of ``items`` is raised where its item would have come. When the caller stops early and lets go of the
    iterator (or calls ``close``), the thread ends with the item it is making.
    """
    if depth < 1:
        yield from items
        return
    # One worker, so the items are made one after another. A pool and not a bare thread that fills a queue: each task
    # ends by itself, so nothing waits for a consumer that is gone, not even when the interpreter exits.
    pool = ThreadPoolExecutor(1, thread_name_prefix="feed")
    try:
        pending = deque(pool.submit(next, items, _END) for _ in range(depth))
        while (item := pending.popleft().result()) is not _END:
            pending.append(pool.submit(next, items, _END))
            yield item
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
