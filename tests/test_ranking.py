"""Ranking metrics against plain Python on random ties, scikit-learn, and between native code and PyTorch."""

from __future__ import annotations

import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import ndcg_score

from ameir_fast import native, ranking
from ameir_fast.errors import InputError

NEEDS_OPS = pytest.mark.skipif(native.why_not("_C") is not None, reason=str(native.why_not("_C")))


@pytest.fixture(params=[pytest.param("native", marks=NEEDS_OPS), "torch"])
def engine(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    return request.param


def problem(seed: int, rows: int, items: int, width: int, candidates: int = 0, dtype=torch.float32):
    """Small integers: every product and sum is exact, and ties abound."""
    g = torch.Generator().manual_seed(seed)
    users = torch.randint(-2, 3, (rows, width), generator=g).to(dtype)
    table = torch.randint(-2, 3, (items, width), generator=g).to(dtype)
    positive = torch.randint(1, items, (rows,), generator=g)
    drawn = torch.randint(0, items, (rows, candidates), generator=g, dtype=torch.int32) if candidates else None
    return users, table, positive, drawn


def expected_counts(users, table, positive, candidates) -> list[list[int]]:
    """One row and one item at a time, in Python's own arithmetic."""
    result = []
    for b, user in enumerate(users.tolist()):
        def score(i, user=user):
            return sum(x * y for x, y in zip(user, table[i].tolist(), strict=True))
        own = int(positive[b])
        others = range(1, len(table)) if candidates is None else candidates[b].tolist()
        scores = [score(i) for i in others if i not in (0, own)]
        result.append([sum(s > score(own) for s in scores), 1 + sum(s == score(own) for s in scores)])
    return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "items", "width", "candidates"), [
    (1, 2, 1, 0), (7, 17, 3, 0), (13, 16, 8, 0), (5, 18, 5, 0), (40, 133, 4, 0), (12, 33, 16, 0), (3, 2, 2, 5),
    (9, 30, 6, 1), (20, 50, 11, 100), (6, 40, 24, 7)])
def test_counts_by_definition(engine, rows, items, width, candidates, dtype):
    for seed in range(3):
        arguments = problem(seed, rows, items, width, candidates, dtype)
        assert ranking.rank_counts(*arguments).tolist() == expected_counts(*arguments)


def seen_items(seed: int, rows: int, items: int, most: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Distinct ascending items a row, id 0 among them now and then."""
    generator = np.random.default_rng(seed)
    lists = [np.sort(generator.choice(items, generator.integers(0, min(most, items) + 1), replace=False))
             for _ in range(rows)]
    offsets = torch.tensor([0, *np.cumsum([len(x) for x in lists])])
    return offsets, torch.tensor(np.concatenate(lists), dtype=torch.int32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("rows", "items", "width"), [(7, 17, 3), (13, 16, 8), (40, 133, 4), (1, 2, 1), (12, 33, 16)])
def test_seen_items_are_left_out(engine, rows, items, width, dtype):
    for seed in range(3):
        users, table, positive, _ = problem(seed, rows, items, width, dtype=dtype)
        offsets, ids = seen_items(seed, rows, items, 40)
        expected = []
        for b in range(rows):
            out = set(ids[offsets[b]:offsets[b + 1]].tolist()) - {int(positive[b])}
            left = torch.tensor([[i for i in range(1, items) if i not in out]], dtype=torch.int32)
            expected += expected_counts(users[b:b + 1], table, positive[b:b + 1], left)
        assert ranking.rank_counts(users, table, positive, seen=(offsets, ids)).tolist() == expected


@NEEDS_OPS
def test_the_portable_kernel_counts_the_same():
    """ATEN_CPU_CAPABILITY turns vector instructions off, as on a processor without them."""
    code = """
import torch
from tests.test_ranking import problem, seen_items
from ameir_fast import native, ranking
assert native.ops_loaded()
for dtype in (torch.float32, torch.float64):
    users, table, positive, drawn = problem(1, 57, 403, 9, 30, dtype)
    for among in ({}, {"candidates": drawn}, {"seen": seen_items(1, 57, 403, 40)}):
        flat = dict(zip(("seen_offsets", "seen"), among["seen"])) if "seen" in among else among
        got = ranking.rank_counts(users, table, positive, **among)
        assert torch.equal(got, ranking.rank_counts_torch(users, table, positive, **flat))
"""
    for capability in ("default", "avx2"):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False,
                              cwd=Path(__file__).resolve().parents[1],
                              env={**os.environ, "ATEN_CPU_CAPABILITY": capability})
        assert done.returncode == 0, done.stderr


@NEEDS_OPS
@pytest.mark.parametrize("threads", [1, 2])
def test_native_equals_torch_on_larger_problems(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for seed, width in enumerate((1, 7, 16, 64, 200)):  # 200 leaves room for few panels in a tile
            arguments = problem(seed, 101, 3001, width)
            assert torch.equal(ranking.rank_counts(*arguments), ranking.rank_counts_torch(*arguments))
    finally:
        torch.set_num_threads(before)


@NEEDS_OPS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [5, 16, 33])
def test_equal_items_tie_exactly_wherever_they_lie(width, dtype):
    """With real numbers, a product's rounding must not depend on an item's or a user's place."""
    g = torch.Generator().manual_seed(width)
    users, table = torch.randn(50, width, generator=g, dtype=dtype), torch.randn(300, width, generator=g, dtype=dtype)
    copies = torch.randperm(299, generator=g)[:60] + 1
    table[copies] = table[copies[0]].clone()
    for positive in copies[:20]:
        counts = ranking.rank_counts(users, table, positive.expand(50))
        assert (counts[:, 1] == 60).all()
    everything = copies.to(torch.int32).expand(50, -1)
    assert (ranking.rank_counts(users, table, copies[:50], everything)[:, 1] == 60).all()
    # Left out wherever it lies, an item takes itself and nothing else away.
    some = copies[1:31].sort().values
    offsets, ids = torch.arange(51) * 30, some.to(torch.int32).repeat(50)
    left = ranking.rank_counts(users, table, copies[0].expand(50), seen=(offsets, ids))
    assert (left[:, 1] == 30).all()
    assert torch.equal(left[:, 0], ranking.rank_counts(users, table, copies[0].expand(50))[:, 0])
    # Nor on the rows around it: one at a time as all together.
    positive = torch.randint(1, 300, (50,), generator=g)
    together = ranking.rank_counts(users, table, positive)
    alone = torch.cat([ranking.rank_counts(users[b:b + 1], table, positive[b:b + 1]) for b in range(50)])
    assert torch.equal(together, alone)


def test_strided_and_half_inputs(engine):
    users, table, positive, drawn = problem(4, 12, 60, 8, 20)
    wide = torch.zeros(60, 16)
    wide[:, ::2] = table
    expected = ranking.rank_counts(users, table, positive, drawn)
    assert torch.equal(ranking.rank_counts(users.t().contiguous().t(), wide[:, ::2], positive, drawn), expected)
    assert torch.equal(ranking.rank_counts(users.half(), table.half(), positive.to(torch.int32), drawn), expected)
    assert ranking.rank_counts(users[:0], table, positive[:0]).shape == (0, 2)


def test_what_does_not_fit_is_named(engine):
    users, table, positive, drawn = problem(5, 6, 20, 3, 4)
    for arguments, message in (
        ((users[:, :2], table, positive), "are not .B, K. and .V, K."),
        ((users, table, positive[:-1]), "positive is .5. for 6 rows"),
        ((users, table, torch.where(torch.arange(6) == 2, 0, positive)), "positive 0 of row 2 is outside 1..19"),
        ((users, table, torch.where(torch.arange(6) == 3, 20, positive)), "positive 20 of row 3 is outside 1..19"),
        ((users, table, positive, drawn[:-1]), "candidates are"),
        ((users, table, positive, drawn.clone().fill_(20)), "candidate 20 of row 0 is outside 0..19"),
    ):
        with pytest.raises(InputError, match=message):
            ranking.rank_counts(*arguments)
    offsets, ids = torch.tensor([0, 2, 2, 4, 4, 4, 5]), torch.tensor([3, 4, 1, 2, 9], dtype=torch.int32)
    for seen, message in (
        ((offsets[:-1], ids), "do not rise from 0 to 5 over 6 rows"), ((offsets, ids[:-1]), "do not rise from 0 to 4"),
        ((offsets.flip(0), ids), "do not rise"), ((offsets, ids + 11), "seen items of row 5 are not ascending"),
        ((offsets, torch.tensor([3, 4, 2, 2, 9])), "seen items of row 2 are not ascending and distinct in 0..19"),
        ((offsets, torch.tensor([3, 4, 1, 2, -1])), "seen items of row 5"),
    ):
        with pytest.raises(InputError, match=message):
            ranking.rank_counts(users, table, positive, seen=seen)
    with pytest.raises(InputError, match="not of candidates"):
        ranking.rank_counts(users, table, positive, drawn, (offsets, ids))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("candidates", [0, 19])
def test_scores_that_are_not_finite_raise(engine, value, candidates):
    """A NaN compares with nothing: without the check it would put the positive first."""
    users, table, positive, drawn = problem(5, 6, 20, 3, candidates)
    if candidates:
        drawn = torch.arange(1, 20, dtype=torch.int32).expand(6, -1)
    users = users.abs() + 1
    broken = users.clone()
    broken[4, 1] = value
    with pytest.raises(InputError, match="row 4 has a score that is not finite"):
        ranking.rank_counts(broken, table.abs() + 1, positive, drawn)
    table[7, 2] = value
    with pytest.raises(InputError, match="row 0 has a score that is not finite"):
        ranking.rank_counts(users, table, positive, drawn)


@NEEDS_OPS
class TestOperation:
    def test_opcheck(self):
        assert native.ops_loaded()
        for arguments in ((*problem(1, 9, 40, 5), None, None), (*problem(1, 9, 40, 5, 7), None, None),
                          (*problem(1, 9, 40, 5), *seen_items(1, 9, 40, 20))):
            # Not differentiable: a step function of the scores.
            torch.library.opcheck(torch.ops.ameir_fast.rank_counts.default, arguments,
                                  test_utils=("test_schema", "test_faketensor"))

    def test_compiles_without_a_graph_break(self):
        assert native.ops_loaded()
        arguments = (*problem(2, 9, 40, 5), *seen_items(2, 9, 40, 20))
        compiled = torch.compile(lambda *a: torch.ops.ameir_fast.rank_counts(*a), fullgraph=True, backend="aot_eager")
        assert torch.equal(compiled(*arguments), torch.ops.ameir_fast.rank_counts(*arguments))

    def test_wrong_tensors_raise(self):
        assert native.ops_loaded()
        users, table, positive, drawn = problem(3, 9, 40, 5, 7)
        op = torch.ops.ameir_fast.rank_counts
        for arguments in (
            (users[0], table, positive, None), (users, table[:, :4], positive, None),
            (users, table.double(), positive, None), (users.half(), table.half(), positive, None),
            (users, table, positive.int(), None), (users, table, positive[:-1], None),
            (users, table, positive * 0, None), (users, table, positive + 40, None),
            (users, table, positive, drawn.long()), (users, table, positive, drawn[1:]),
            (users, table, positive, drawn + 40), (users, table, positive, drawn - 40),
        ):
            with pytest.raises(RuntimeError, match="rank_counts"):
                op(*arguments, None, None)
        offsets, ids = seen_items(3, 9, 40, 20)
        for candidates, *seen in ((drawn, offsets, ids), (None, offsets, None), (None, None, ids),
                                  (None, offsets.int(), ids), (None, offsets, ids.long()), (None, offsets[1:], ids),
                                  (None, offsets + 1, ids), (None, offsets.flip(0), ids), (None, offsets, ids * 0 + 7),
                                  (None, offsets, ids + 40), (None, offsets, ids - 40)):
            with pytest.raises(RuntimeError, match="rank_counts"):
                op(users, table, positive, candidates, *seen)


# ---- metrics from counts --------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_metrics_are_expectations_over_the_orders_of_ties(seed):
    """Against every possible rank of the positive, in plain Python."""
    generator = np.random.default_rng(seed)
    scores = generator.integers(0, 4, (30, 12))
    positive = generator.integers(0, 12, 30)
    found = ranking.hit_rate_ndcg(scores.astype(np.float32), positive, k=(1, 3, 5, 20))
    for k in (1, 3, 5, 20):
        hits, gains = [], []
        for row, own in zip(scores, positive, strict=True):
            above = sum(s > row[own] for s in row)
            ranks = [above + place + 1 for place in range(sum(s == row[own] for s in row))]
            hits.append(np.mean([rank <= k for rank in ranks]))
            gains.append(np.mean([(rank <= k) / math.log2(rank + 1) for rank in ranks]))
        assert found[f"hr@{k}"] == pytest.approx(np.mean(hits), abs=1e-12)
        assert found[f"ndcg@{k}"] == pytest.approx(np.mean(gains), abs=1e-12)


def test_row_metrics_are_those_of_each_row():
    counts = np.array([[0, 1], [4, 1], [5, 1], [3, 4]])
    rows = ranking.row_metrics(counts, (5,))
    assert rows["hr@5"].tolist() == [1, 1, 0, 0.5]
    assert ranking.rank_metrics(counts, (5,)) == {k: v.mean() for k, v in rows.items()}
    for bad, k, message in ((counts[:0], (5,), "no rows"), (counts, (0,), "at least 1")):
        with pytest.raises(InputError, match=message):
            ranking.rank_metrics(bad, k)


def test_hit_rate_and_ndcg_without_ties():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(40, 30, generator=generator)
    positive = torch.randint(30, (40,), generator=generator)
    result = ranking.hit_rate_ndcg(scores, positive, k=(1, 5, 10))
    relevant = torch.zeros(40, 30).scatter_(1, positive[:, None], 1).numpy()
    rank = (scores > scores.gather(1, positive[:, None])).sum(1)
    for k in (1, 5, 10):
        assert result[f"hr@{k}"] == pytest.approx(float((rank < k).double().mean()))
        assert result[f"ndcg@{k}"] == pytest.approx(
            ndcg_score(relevant, scores.numpy(), k=k, ignore_ties=True)
        )


def test_ties_are_shared_evenly():
    same = ranking.hit_rate_ndcg(torch.zeros(3, 20), 0, k=(5,))
    assert same["hr@5"] == pytest.approx(5 / 20)
    # Ranks 2, 3 and 4 with equal probability, of which 2 and 3 count.
    tied = ranking.hit_rate_ndcg(np.array([[3.0, 2.0, 2.0, 2.0, 1.0]]), np.array([2]), k=(3,))
    assert tied["hr@3"] == pytest.approx(2 / 3)
    assert tied["ndcg@3"] == pytest.approx((1 / math.log2(3) + 1 / math.log2(4)) / 3)


def test_excluded_candidates_and_bad_input():
    scores = torch.tensor([[-math.inf, 1.0, 0.5]])
    assert ranking.hit_rate_ndcg(scores, 2, k=(2,))["hr@2"] == 1.0
    assert ranking.hit_rate_ndcg(scores, 1, k=(100,))["hr@100"] == 1.0
    for bad_scores, positive, k, message in (
        (scores, 0, (5,), "row 0 has a NaN score"),
        (torch.tensor([[0.0, math.nan]]), 0, (5,), "row 0 has a NaN score"),
        (scores, 3, (5,), "positive 3 of row 0 is outside 0..2"),
        (scores, -1, (5,), "positive -1 of row 0"),
        (scores[:0], 0, (5,), "at least one row"),
        (scores, 1, (0,), "at least 1"),
    ):
        with pytest.raises(InputError, match=message):
            ranking.hit_rate_ndcg(bad_scores, positive, k=k)
