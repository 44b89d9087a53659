"""The workloads of the native bench: what each engine computes, and that they agree."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch

from .. import hostops, metrics, negatives, ranking
from .. import native as modules

REFERENCE = "native"


class Case(NamedTuple):
    """One workload: its engines, native first, and the check of an engine's result against the native one."""

    name: str
    engines: dict[str, Callable[[], object]]
    check: Callable[[object, object], None]


# ---- assembling ------------------------------------------------------------------------------------


def _assemble(
    name: str, rows: int, columns: int, bags: int, depth: int, max_history: int, batch: int
) -> Case:
    generator = np.random.default_rng(0)
    per_user = 100
    position = np.arange(rows)
    storage = {
        "columns": [generator.integers(0, 1000, rows, dtype=np.int32) for _ in range(columns)]
        + [None] * bags,
        "bags": [],
        "events": [generator.integers(0, 1000, rows, dtype=np.int32) for _ in range(depth)],
        "begin": position // per_user * per_user,
        "end": position,
    }
    for _ in range(bags):
        offsets = np.concatenate([[0], np.cumsum(generator.integers(0, 4, rows))])
        storage["bags"].append((generator.integers(0, 20, offsets[-1], dtype=np.int32), offsets))
    chosen = generator.integers(0, rows, batch)
    arguments = (chosen, *storage.values(), max_history)
    made = hostops.Storage(**storage)  # columns are checked once and not with every batch

    def check(got, expected) -> None:
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_array_equal(a, b)

    return Case(
        name,
        {
            REFERENCE: lambda: made.assemble(chosen, max_history),
            "numpy": lambda: hostops._assemble_numpy(*arguments),
            "python loop": lambda: _assemble_by_row(*arguments),
        },
        check,
    )


def _assemble_by_row(rows, columns, bags, events, begin, end, max_history):
    """A collate function as data loaders have it: slices of each row, concatenated."""
    fields = np.stack([np.zeros(len(rows), np.int32) if c is None else c[rows] for c in columns], axis=1)
    spans = [(max(begin[r], end[r] - max_history), end[r]) for r in rows]
    history = np.stack([np.concatenate([e[a:b] for a, b in spans]) for e in events], axis=1)
    parts = [ids[offsets[r] : offsets[r + 1]] for r in rows for ids, offsets in bags]
    bag_ids = np.concatenate(parts) if parts else np.empty(0, np.int32)
    return (
        fields,
        bag_ids,
        np.cumsum([0, *(len(p) for p in parts)]),
        history,
        np.cumsum([0, *(b - a for a, b in spans)]),
    )


def assemble_movielens() -> Case:
    return _assemble("assemble 512 of 100k rows, 10 fields, 1 bag, 2x20 history", 100_000, 10, 1, 2, 20, 512)


def assemble_large() -> Case:
    return _assemble("assemble 4096 of 1M rows, 12 fields, 2x50 history", 1_000_000, 12, 0, 2, 50, 4096)


# ---- negatives -------------------------------------------------------------------------------------


def _negatives(
    name: str, num_users: int, num_items: int, per_user: int, batch: int, n: int, popular: bool = False
) -> Case:
    generator = np.random.default_rng(0)
    lists = [
        np.sort(generator.choice(np.arange(1, num_items, dtype=np.int32), per_user, replace=False))
        for _ in range(num_users)
    ]
    offsets, items = np.arange(num_users + 1) * per_user, np.concatenate(lists)
    users = generator.integers(0, num_users, batch)
    positives = generator.integers(1, num_items, batch, dtype=np.int32)
    weights = (1e6 / np.arange(1, num_items + 1)).astype(np.int64)  # Zipf's law
    starts = negatives.item_starts(weights) if popular else None
    share = np.append(0, weights[1:] / weights[1:].sum())
    arguments = (users, offsets, items, num_items, n, 7, positives, None, starts, False)
    keys = np.repeat(np.arange(num_users), per_user) * num_items + items  # ascending; made once, not timed
    driver = modules.driver()

    def draw(shape) -> np.ndarray:
        if popular:
            return generator.choice(num_items, shape, p=share).astype(np.int32)
        return generator.integers(1, num_items, shape, dtype=np.int32)

    def by_rejection() -> np.ndarray:
        drawn = draw((batch, n))
        row, slot = np.divmod(np.arange(batch * n), n)
        while len(row):
            wanted = users[row] * num_items + drawn[row, slot]
            at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
            bad = (keys[at] == wanted) | (drawn[row, slot] == positives[row])
            row, slot = row[bad], slot[bad]
            drawn[row, slot] = draw(len(row))
        return drawn

    def check(got, expected) -> None:
        if np.array_equal(got, expected):
            return
        # Rejection draws other numbers: it must keep the same rules.
        assert got.shape == expected.shape
        assert got.min() >= 1
        assert got.max() < num_items
        assert not np.isin(users[:, None] * num_items + got, keys).any()
        assert not (got == positives[:, None]).any()

    return Case(
        name,
        {
            REFERENCE: lambda: driver.sample_negatives(*arguments),
            "numpy": lambda: negatives._sample_negatives_numpy(*arguments),
            "numpy rejection": by_rejection,
        },
        check,
    )


def negatives_few() -> Case:
    return _negatives("negatives 512 rows x 1, 1682 items, 100 own", 943, 1683, 100, 512, 1)


def negatives_many() -> Case:
    return _negatives("negatives 512 rows x 100, 54k items, 50 own", 20_000, 54_543, 50, 512, 100)


def negatives_popular() -> Case:
    return _negatives("popular negatives 512 rows x 100, 54k items, 50 own", 20_000, 54_543, 50, 512, 100, popular=True)


# ---- AUC -------------------------------------------------------------------------------------------


def _auc(name: str, columns: int, samples: int, levels: int | None = None) -> Case:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(columns, samples, generator=generator)
    if levels:
        scores = (scores * levels).round() / levels
    label = (torch.rand(samples, generator=generator) < 0.55).float()
    modules.ops_loaded()
    engines = {
        REFERENCE: lambda: torch.ops.ameir_fast.auc_columns(scores, label).numpy(),
        "torch": lambda: metrics.auc_columns_torch(scores, label).numpy(),
    }
    if importlib.util.find_spec("sklearn") is not None:
        from sklearn.metrics import roc_auc_score

        engines["scikit-learn"] = lambda: np.array([roc_auc_score(label, column) for column in scores])

    def check(got, expected) -> None:
        np.testing.assert_allclose(got, expected, rtol=0, atol=1e-12)

    return Case(name, engines, check)


def auc_ranking() -> Case:
    return _auc("AUC 200 columns x 10k samples", 200, 10_000)


def auc_mlp() -> Case:
    return _auc("AUC 880 columns x 2k samples", 880, 2_000)


def auc_single() -> Case:
    return _auc("AUC 1 column x 1M samples", 1, 1_000_000)


def auc_ties() -> Case:
    return _auc("AUC 100 columns x 10k samples, 40 distinct scores", 100, 10_000, levels=5)


# ---- ranks ------------------------------------------------------------------------------------------


def _rank(name: str, rows: int, items: int, width: int, candidates: int = 0) -> Case:
    generator = torch.Generator().manual_seed(0)
    # Small integers: every engine's scores are exact, so that ties and counts must agree.
    users = torch.randint(-3, 4, (rows, width), generator=generator).float()
    table = torch.randint(-3, 4, (items, width), generator=generator).float()
    positive = torch.randint(1, items, (rows,), generator=generator)
    drawn = torch.randint(1, items, (rows, candidates), generator=generator, dtype=torch.int32) if candidates else None
    modules.ops_loaded()

    def whole() -> torch.Tensor:
        """All scores at once, as libraries rank: [rows, items] in memory, compared with the positives' own."""
        if candidates:
            scores = (table[drawn.long()] @ users[..., None])[..., 0]
            own = (users * table[positive]).sum(1, keepdim=True)
            counts = drawn != positive[:, None]
        else:
            scores = (users @ table.t())[:, 1:]
            own = scores.gather(1, positive[:, None] - 1)
            counts = torch.arange(1, items) != positive[:, None]
        return torch.stack([((scores > own) & counts).sum(1), ((scores == own) & counts).sum(1) + 1], 1)

    def check(got, expected) -> None:
        assert torch.equal(got, expected)

    return Case(
        name,
        {
            REFERENCE: lambda: torch.ops.ameir_fast.rank_counts(users, table, positive, drawn, None, None),
            "torch in tiles": lambda: ranking.rank_counts_torch(users, table, positive, drawn),
            "torch": whole,
        },
        check,
    )


def rank_all() -> Case:
    return _rank("rank 512 rows among 54,542 items, K 16", 512, 54_543, 16)


def rank_wide() -> Case:
    return _rank("rank 512 rows among 54,542 items, K 64", 512, 54_543, 64)


def rank_sampled() -> Case:
    return _rank("rank 2048 rows among 100 sampled items each, K 64", 2048, 54_543, 64, candidates=100)


CASES = (
    assemble_movielens,
    assemble_large,
    negatives_few,
    negatives_many,
    negatives_popular,
    auc_ranking,
    auc_mlp,
    auc_single,
    auc_ties,
    rank_all,
    rank_wide,
    rank_sampled,
)
