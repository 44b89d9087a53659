"""The order of an epoch, made a window at a time.

A full permutation of many rows costs an array of all of them before the first batch, and then every row of a batch
lies somewhere else in every column: a cache miss for each number while the columns are in memory, a read of the disk
for each while they aren't. Here rows are dealt out in blocks of neighbours: blocks in random order make up
windows, and the rows of a window are permuted among themselves. What is read lies within some hundred stretches of
each column, small enough to stay in memory and known beforehand.

What that costs in randomness: a batch comes from one window, so the variance of means over it is that of a full
permutation times 1 + rho * B / W, with B the batch size, W the number of blocks in a window (128 to 256), and rho the
share of the variance that lies between blocks (for labels of a rate that drifts from 20% to 30%: 0.004). Blocks are
drawn over the whole data, so a window holds all times of it. Data that fits in one window is permuted as a whole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import order

#: Rows of a block: 16 KB of an int32 column, enough for a disk to read in one go.
BLOCK = 4096
#: Most blocks of a window: 1,048,576 rows, 164 MB of 39 int32 columns. Twice that read up to 1.5 times as slowly from
#: memory: the page tables of a window no longer stay in the caches.
WINDOW = 256

#: Told which rows come soon: ranges ``first``, ``last`` (exclusive), int64, ascending.
Announce = Callable[[np.ndarray, np.ndarray], None]


class Shuffle:
    """A permutation of 0..count-1 that is a function of (count, seed, epoch), readable from any place at once.

    A ``count`` of at most ``block * window`` gives ``order.permutation(count, seed, epoch)``. ``announce`` hears of
    the blocks of the next window while those of this one are read, a few at a time.
    """

    def __init__(
        self,
        count: int,
        seed: int,
        epoch: int,
        announce: Announce | None = None,
        *,
        block: int = BLOCK,
        window: int = WINDOW,
    ):
        self._count, self._where, self._announce, self._block = count, (seed, epoch), announce, block
        self._made: tuple[int, np.ndarray] | None = None  # the window in use and its permutation
        self._known: dict[int, int] = {}  # how many blocks of a window were announced
        blocks = -(-count // block)
        number = -(-blocks // window)
        dealt = np.arange(blocks) if number <= 1 else order.permutation(blocks, seed, epoch, "blocks")
        # Windows of equal size: one of a few left over blocks would be less random than the others. Ascending blocks
        # are kinder to a disk, and put the short one, which is the last of all, at the end of its window.
        self._blocks = [np.sort(part).astype(np.int64) for part in np.array_split(dealt, max(1, number))]
        # How far each block of a window lies from where it is among the window's rows.
        self._moved = [(part - np.arange(len(part))) * block for part in self._blocks]
        sizes = [int(np.minimum(block, count - part * block).sum()) for part in self._blocks]
        self._starts = np.concatenate([[0], np.cumsum(sizes)])

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Places ``start`` to ``stop`` (exclusive) of the order, int64."""
        parts = []
        while start < stop:
            window = int(np.searchsorted(self._starts, start, side="right")) - 1
            first, last = (int(place) for place in self._starts[window : window + 2])
            end = min(stop, last)
            inside = self._permutation(window)[start - first : end - first]
            parts.append(inside + self._moved[window][inside // self._block])
            if self._announce is not None:
                self._tell(window, 1.0)
                self._tell(window + 1, (end - first) / (last - first))
            start = end
        return np.concatenate(parts) if parts else np.zeros(0, np.int64)

    def _permutation(self, window: int) -> np.ndarray:
        if self._made is None or self._made[0] != window:
            self._made = None  # never two of them in memory
            size = int(self._starts[window + 1] - self._starts[window])
            where = self._where if len(self._blocks) == 1 else (*self._where, "window", window)
            self._made = window, order.permutation(size, *where)
        return self._made[1]

    def _tell(self, window: int, share: float) -> None:
        """Announces the blocks of a window up to a share of them, where that has not been done."""
        if window == len(self._blocks):
            return
        blocks, known = self._blocks[window], self._known.get(window, 0)
        now = round(share * len(blocks))
        if now > known:
            first = blocks[known:now] * self._block
            self._announce(first, np.minimum(first + self._block, self._count))
            self._known[window] = now
