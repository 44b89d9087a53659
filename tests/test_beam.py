"""``--strategy beam``: step 1's best beginnings first, against all children of a small space and against random ones."""

from __future__ import annotations

import pytest
import torch

import ameir_fast as af
from ameir_fast.progress import Progress
from ameir_fast.search import BeamStrategy, RandomStrategy, behavior, proposals
from ameir_fast.search.driver import make_context
from ameir_fast.search.store import RunDirectory
from ameir_fast.space.architecture import ZERO
from tests import tiny

BUDGET = 500


@pytest.fixture(scope="module", params=[0, 1])
def data(tmp_path_factory, request):
    raw = tmp_path_factory.mktemp("raw")
    tiny.write_raw(raw / "raw", users=60, items=60, ratings=3000, seed=request.param)
    tiny.prepare_movielens(raw / "raw", raw / "data", max_history=8)
    return tiny.Dataset.open(raw / "data")


def context_of(data, run, strategy, seed: int = 0):
    config = tiny.CONFIG.changed(blocks=2, behavior_children=BUDGET, top_k=1, seed=seed, validation_subset=100_000)
    return make_context(data, config, run.scope(0), strategy, Progress(), "cpu")


@pytest.fixture(scope="module")
def trained(data, tmp_path_factory):
    """A trained supernet's weights, and the scores of all children with them."""
    with RunDirectory(tmp_path_factory.mktemp("run") / "run", {"version": 1}) as run:
        context = context_of(data, run, RandomStrategy())
        behavior.train_supernet(context)
        paths = list(context.space.enumerate_behavior())
        found = context.score_children([context.behavior_child(p) for p in paths], None)
    return context.net.state_dict(), {path: f[context.primary] for path, f in zip(paths, found, strict=True)}


def ranked(data, tmp_path, strategy, weights, seed: int = 0) -> list[dict]:
    with RunDirectory(tmp_path, {"version": 1}) as run:
        context = context_of(data, run, strategy, seed)
        context.net.load_state_dict(weights)
        return behavior.rank(context)


def path_of(entry: dict) -> tuple:
    data = {"version": 1, "behavior": entry["behavior"], "interactions": [], "mlp": []}
    return af.Architecture.from_dict(data).behavior


def test_nearly_as_good_as_all_children_and_better_than_random_ones(data, trained, tmp_path):
    weights, scores = trained
    assert len(scores) == 89 ** 2
    best = {BeamStrategy: [], RandomStrategy: []}
    for strategy, found in best.items():
        for seed in range(3):
            ranking = ranked(data, tmp_path / f"{strategy.__name__}{seed}", strategy(), weights, seed)
            assert len(ranking) == len({path_of(r) for r in ranking}) == BUDGET
            found.append(max(scores[path_of(r)] for r in ranking))
    assert all(b >= r for b, r in zip(best[BeamStrategy], best[RandomStrategy], strict=True))
    order = sorted(scores.values(), reverse=True)
    assert min(best[BeamStrategy]) >= order[len(order) // 1000]  # of a thousand children one is as good


def test_levels_and_surroundings():
    """On scores by hand: the beam's beginnings, then the best child's neighbours; the whole space in the end."""
    choices = [["0", "a", "b", "c"]] * 3
    worth = {"0": 0.0, "a": 1.0, "b": 2.0, "c": 3.0}
    score = lambda child: sum(worth[c] * 10 ** -i for i, c in enumerate(child))
    beam, g, seen = BeamStrategy(width=2), torch.Generator().manual_seed(0), {("0", "0", "0"): 0.0}
    rounds = []
    while new := [c for c in beam.expand(choices, seen, g, 1000) if c not in seen]:
        rounds.append(set(new))
        seen.update((c, score(c)) for c in new)
    assert rounds[0] == {(c, "0", "0") for c in "abc"}
    assert rounds[1] == {(c, d, "0") for c in "bc" for d in "abc"}
    assert rounds[2] == {("c", d, e) for d in "bc" for e in "abc"}
    assert rounds[3] == {("a", "c", "c"), ("0", "c", "c"), ("b", "c", "c"), ("c", "a", "c"), ("c", "0", "c")}
    assert len(seen) == 64


def test_its_width_follows_from_the_budget():
    choices = [[str(i) for i in range(10)]] * 3
    g = torch.Generator()
    for budget, width in ((10, 1), (100, 3), (1000, 37)):
        seen = {(c, "0", "0"): float(c) for c in choices[0]}
        seconds = BeamStrategy().expand(choices, seen, g, budget)
        assert len({child[0] for child in seconds}) == min(10, width)


class Killed(Exception):
    pass


def test_a_killed_ranking_goes_on(data, trained, tmp_path, monkeypatch):
    weights, _ = trained
    whole = ranked(data, tmp_path / "whole", BeamStrategy(), weights)
    score, calls = proposals._Ledger._score, []

    def dying(self, children):
        if len(calls) == 2:
            raise Killed
        calls.append(len(children))
        score(self, children)

    monkeypatch.setattr(proposals._Ledger, "_score", dying)
    with pytest.raises(Killed):
        ranked(data, tmp_path / "killed", BeamStrategy(), weights)
    monkeypatch.setattr(proposals._Ledger, "_score", score)
    with RunDirectory(tmp_path / "killed", {"version": 1}, resume=True) as run:
        context = context_of(data, run, BeamStrategy())
        context.net.load_state_dict(weights)
        assert behavior.rank(context) == whole
    assert calls[0] == 89 and (ZERO, ZERO) in {path_of(r) for r in whole}


class Few(BeamStrategy):
    """A few at a time."""

    def expand(self, choices, seen, generator, budget):
        return super().expand(choices, seen, generator, budget)[:5]


def test_few_children_of_a_round_are_scored_at_once(data, trained, tmp_path):
    """It asks for others only when it has seen these."""
    assert len(ranked(data, tmp_path / "few", Few(), trained[0])) == BUDGET
