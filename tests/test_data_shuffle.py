"""The order of an epoch: fixed for small data, windows of blocks for large."""

from __future__ import annotations

import numpy as np
import pytest

from ameir_fast.data import order
from ameir_fast.data.shuffle import BLOCK, WINDOW, Shuffle

SIZES = [0, 1, 5, 11, 12, 13, 24, 25, 47, 48, 49, 100, 144, 1000, 1001]  # for blocks of 4 and windows of 3


def small(count: int, seed: int = 7, epoch: int = 2, **options) -> Shuffle:
    return Shuffle(count, seed, epoch, block=4, window=3, **options)


def whole(shuffle: Shuffle, count: int) -> list[int]:
    return shuffle.rows(0, count).tolist()


def test_the_order_of_data_that_fits_in_a_window_never_changes():
    """Stored results were computed with it."""
    assert whole(Shuffle(12, 3, 1), 12) == [2, 1, 4, 0, 11, 5, 10, 8, 7, 9, 6, 3]
    assert Shuffle(79_999, 1, 2).rows(79_995, 79_999).tolist() == [39762, 74757, 51021, 5640]
    largest = Shuffle(2**20, 0, 0)
    assert BLOCK * WINDOW == 2**20
    assert largest.rows(0, 6).tolist() == [541655, 39873, 502969, 930780, 640661, 173540]
    for count in (1, 2, BLOCK - 1, BLOCK, BLOCK + 1, 300_000):
        expected = np.random.Generator(np.random.PCG64(order.mixed("permutation", 5, 4))).permutation(count)
        assert whole(Shuffle(count, 5, 4), count) == expected.tolist()


def by_hand(count: int, seed: int, epoch: int, block: int, window: int) -> list[list[int]]:
    """The order, window by window, in plain Python around the permutations; for more than one window."""
    blocks = [list(range(first, min(first + block, count))) for first in range(0, count, block)]
    dealt = order.permutation(len(blocks), seed, epoch, "blocks").tolist()
    windows = -(-len(blocks) // window)
    few, longer = divmod(len(blocks), windows)  # of the windows, ``longer`` have one block more than ``few``
    found = []
    for number in range(windows):
        size = few + (number < longer)
        mine, dealt = sorted(dealt[:size]), dealt[size:]
        rows = [row for b in mine for row in blocks[b]]
        found.append([rows[k] for k in order.permutation(len(rows), seed, epoch, "window", number)])
    return found


@pytest.mark.parametrize("count", [count for count in SIZES if count > 12])
def test_large_data_is_dealt_in_blocks_and_permuted_within_windows(count):
    windows = by_hand(count, 7, 2, block=4, window=3)
    assert whole(small(count), count) == [row for rows in windows for row in rows]
    assert len(windows) >= 2
    for rows in windows:
        assert 1 <= len({row // 4 for row in rows}) <= 3
    sizes = [len({row // 4 for row in rows}) for rows in windows]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.parametrize("count", SIZES)
def test_it_is_a_permutation_of_seed_and_epoch(count):
    rows = whole(small(count), count)
    assert sorted(rows) == list(range(count))
    assert rows == whole(small(count), count)
    if count > 10:
        others = [whole(small(count, *other), count) for other in ((7, 3), (8, 2), (2, 7))]
        assert len({tuple(found) for found in (rows, *others)}) == 4


@pytest.mark.parametrize("count", SIZES)
def test_it_can_be_read_from_any_place(count):
    rows = whole(small(count), count)
    for step in (1, 3, 5, 64):
        for start in range(0, count, step):
            stop = min(count, start + step)
            assert small(count).rows(start, stop).tolist() == rows[start:stop]
    backwards = small(count)
    assert [backwards.rows(k, k + 1).tolist() for k in reversed(range(count))] == [[row] for row in reversed(rows)]
    assert backwards.rows(0, 0).dtype == np.int64 and backwards.rows(0, 0).tolist() == []


def test_a_place_far_on_costs_one_window(monkeypatch):
    """Whatever lies before it is not computed, nor is there ever an array of all rows."""
    count, made = 100_000_000, []
    real = order.permutation
    monkeypatch.setattr(order, "permutation", lambda n, *where: made.append(n) or real(n, *where))
    late = Shuffle(count, 1, 0)
    rows = late.rows(count - 512, count)
    assert len(set(rows.tolist())) == 512 and rows.min() >= 0 and rows.max() < count
    assert made[0] == -(-count // BLOCK) and len(made) == 2 and 2**19 < made[1] <= 2**20
    late.rows(count - 1024, count - 512)
    assert len(made) == 2


def test_batches_are_nearly_as_random_as_of_a_full_permutation():
    """Means over a batch vary by the factor that shuffle.py states, labels and times alike."""
    block, window, batch, count = 16, 64, 128, 16 * 64 * 64
    generator = np.random.default_rng(0)
    time = np.arange(count) / count
    drifting = (generator.random(count) < 0.2 + 0.1 * time).astype(float)
    for values, share in ((drifting, 0.1**2 / 12 / 0.1883), (time, 1.0)):
        variances = []
        for seed in range(8):
            shuffle = Shuffle(count, seed, 0, block=block, window=window)
            means = values[shuffle.rows(0, count)].reshape(-1, batch).mean(1)
            variances.append(means.var())
        expected = values.var() / batch * (1 + share * batch / window)
        # 4,096 means in 512 windows: a standard error of some 5% where windows differ.
        assert 0.85 < np.mean(variances) / expected < 1.15
    # Neighbours in the data don't stay neighbours, and places don't tell rows.
    rows = Shuffle(count, 0, 0, block=block, window=window).rows(0, count)
    assert abs(np.corrcoef(rows, np.arange(count))[0, 1]) < 0.1
    assert (np.abs(np.diff(rows)) == 1).mean() < 0.01


@pytest.mark.parametrize("count", [5, 12, 49, 144, 1001])
@pytest.mark.parametrize("start", [0, 3, 30])
def test_rows_are_announced_once_before_they_are_read(count, start):
    known: list[int] = []

    def announce(first, last):
        assert first.dtype == last.dtype == np.int64 and len(first) == len(last) > 0
        for a, b in zip(first.tolist(), last.tolist(), strict=True):
            assert 0 <= a < b <= count
            known.extend(range(a, b))

    shuffle = small(count, announce=announce)
    ahead = []
    for place in range(start, count):
        assert shuffle.rows(place, place + 1)[0] in known
        ahead.append(len(known))
    assert len(known) == len(set(known))
    # Of the next window, no more than has been read of this one, so that nothing waits for all of it at once.
    if start == 0 and count > 24:
        assert len(known) == count
        first = len(by_hand(count, 7, 2, 4, 3)[0])
        assert ahead[0] <= first + 4 and ahead[first // 2] < 2 * first and ahead[first - 1] >= first + 4
