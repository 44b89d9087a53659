"""Step 2 by crosses, and the initial scale of products."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from ameir_fast import Batch, FeatureSchema, InputError
from ameir_fast.data import Dataset, Interaction, SyntheticOptions, prepare_synthetic
from ameir_fast.model import Model
from ameir_fast.progress import Progress
from ameir_fast.report import build_report
from ameir_fast.search import SearchConfig, search
from ameir_fast.search.context import FIXED, fresh_model
from ameir_fast.search.crosses import Crosses, _values, nothing_added
from ameir_fast.search.driver import make_context
from ameir_fast.search.interactions import search_interactions
from ameir_fast.search.store import RunDirectory
from ameir_fast.space import Architecture

from . import tiny

ROWS = 20_000


def crosses_of(ids, sizes, residual: np.ndarray, training: int) -> Crosses:
    """With labels that no pair explains."""
    return Crosses(ids, sizes, residual, training, np.full(residual.shape, 0.5))


@pytest.fixture(scope="module")
def drawn() -> tuple[np.ndarray, np.ndarray]:
    """ids [6, R] below 6; residuals that the parity of fields 0, 1 and 2 moves, and nothing else."""
    rng = np.random.default_rng(0)
    ids = rng.integers(6, size=(6, ROWS))
    probability = 0.5 + 0.2 * (1 - 2 * (ids[:3].sum(0) % 2))
    return ids, (rng.random(ROWS) < probability) - 0.5


def test_a_product_shows_and_its_parts_do_not(drawn):
    ids, residual = drawn
    crosses = crosses_of(ids, [6] * 6, residual, ROWS // 2)
    assert crosses.score((0, 1, 2)) > 30 and crosses.score((0, 1, 2, 5)) > 5
    for part in ((0,), (1,), (0, 1), (1, 2), (0, 2), (3, 4), (2, 3, 5)):
        assert abs(crosses.score(part)) < 4.5, part


def test_what_a_single_field_leaves_is_no_interaction():
    """The base fits the ids of a large field late, predicts too little everywhere, and clicks drift."""
    rng = np.random.default_rng(2)
    sizes = [500, 2, 3, 10, 10]
    ids = [rng.integers(size, size=100_000) for size in sizes]
    effect, product = 0.3 * rng.normal(size=500), rng.choice([-0.1, 0.1], size=(10, 10))
    residual = effect[ids[0]] + product[ids[3], ids[4]] + rng.normal(size=100_000)
    residual += np.where(np.arange(100_000) < 50_000, -0.01, 0.03)
    crosses = crosses_of(ids, sizes, residual, 50_000)
    assert crosses.score((3, 4)) > 12
    for pair in ((0, 1), (0, 2), (1, 2), (1, 3), (2, 4)):
        assert abs(crosses.score(pair)) < 4, pair


@pytest.mark.parametrize("rows_per_user", [5, 20, 200])
def test_what_few_rows_tell_of_an_id_is_no_interaction(rows_per_user):
    """Users click more or less, whatever is shown. Gender is a function of the user, and together they are the user."""
    rng = np.random.default_rng(rows_per_user)
    rows, users = 100_000, 100_000 // rows_per_user
    user = (users * rng.random(rows) ** 2).astype(int)  # some have many rows
    gender, coin, slot, page = rng.integers(2, size=users)[user], *rng.integers([[2], [10], [10]], size=(3, rows))
    pair = 0.3 * rng.normal(size=(10, 10))
    label = (rng.random(rows) < 1 / (1 + np.exp(1 - rng.normal(size=users)[user] - pair[slot, page]))).astype(float)
    crosses = Crosses([user, gender, coin, slot, page], [users, 2, 2, 10, 10], label - label.mean(), 90_000, label)
    products = [c for order in (2, 3) for c in itertools.combinations(range(5), order)]
    assert max(crosses.score(c) for c in products if not {3, 4} <= set(c)) < 3
    assert [fields for fields, _ in crosses.choose(products, 5)] == [(3, 4)]


def test_rare_clicks_are_no_interactions():
    """One id has most of the clicks, a thirtieth of the rows; and cells that both parts know may hold no click."""
    rng = np.random.default_rng(7)
    ids = rng.integers(20, size=(6, 100_000))
    ids[0] = np.where(rng.random(100_000) < 0.02, 0, 1 + ids[0] % 19)
    for rare, hot in ((0.02, 0.3), (0.04, 0.5), (0.002, 0.002)):
        probability = np.where(ids[0] == 0, hot, rare)
        label = (rng.random(100_000) < probability).astype(float)
        crosses = Crosses(ids, [20] * 6, label - probability, 80_000, label)
        products = [c for order in (2, 4, 5) for c in itertools.combinations(range(6), order)]
        assert max(map(crosses.score, products)) < 4 and crosses.choose(products, 5) == []


def test_residuals_that_are_not_finite_are_refused():
    with pytest.raises(InputError, match="not finite"):
        crosses_of([np.zeros(4, np.int64)], [1], np.array([0.0, np.nan, 0.0, 0.0]), 2)


def test_scores_without_any_effect_are_standard_normal():
    rng = np.random.default_rng(1)
    ids, residual = rng.integers(10, size=(40, 2000)), rng.normal(size=2000) * rng.choice([0.1, 2.0], size=2000)
    crosses = crosses_of(ids, [10] * 40, residual, 1000)
    found = np.array([crosses.score((a, b)) for a in range(40) for b in range(a)])
    assert abs(found.mean()) < 0.25 and 0.8 < found.std() < 1.2


def test_many_cells_are_hashed_into_fewer(drawn):
    ids, residual = drawn
    exact, hashed = (crosses_of(ids, [size] * 6, residual, ROWS // 2) for size in (6, 1_000_000))
    unknown, large = (crosses_of(ids * 1_000_003, [size] * 6, residual, ROWS // 2) for size in (None, 6_000_018))
    for fields in ((0, 1, 2), (1, 4), (0, 1, 2, 3)):
        # Two of some hundred cells may meet in one of a million.
        assert hashed.score(fields) == pytest.approx(exact.score(fields), rel=0.02, abs=0.2)
        assert large.score(fields) == unknown.score(fields) == exact.score(fields)  # numbered anew


@pytest.mark.parametrize("vocabulary", [6, 30, 100])
def test_what_is_chosen_adds_to_what_was_chosen_before(vocabulary):
    """Fields 3, 4 and 5 are mostly copies of field 0: with field 1 they show its product with field 0 once more. Cells
    hold from a thousand rows to five."""
    rng = np.random.default_rng(3)
    ids = rng.integers(vocabulary, size=(8, 50_000))
    ids[3:6] = np.where(rng.random((3, 50_000)) < 0.8, ids[0], ids[3:6])
    strong, weak = rng.normal(size=(2, vocabulary, vocabulary))
    residual = strong[ids[0], ids[1]] + 0.4 * weak[ids[6], ids[7]] + rng.normal(size=50_000)
    crosses = crosses_of(ids, [vocabulary] * 8, residual, 40_000)
    echoes, candidates = [(1, 3), (1, 4), (1, 5)], [(0, 1), (1, 3), (1, 4), (1, 5), (6, 7), (0, 2), (2, 6)]
    assert min(crosses.score(e) for e in echoes) > 10
    (first, high), (second, low) = crosses.choose(candidates, 5)
    assert (first, second) == ((0, 1), (6, 7)) and high == crosses.score((0, 1))
    assert low > crosses.score((6, 7)) > 5  # the strong product was noise to it
    assert crosses.choose(candidates, 1) == [(first, high)] and crosses.choose([(0, 2), (2, 6)], 5) == []


def test_what_does_not_last_does_not_count(drawn):
    """However strong it is in training rows, and however few validation rows there are."""
    ids, residual = drawn
    turned = residual * np.where(np.arange(ROWS) < ROWS // 2, 1, -1)
    assert crosses_of(ids, [6] * 6, turned, ROWS // 2).score((0, 1, 2)) < -30
    for training in (ROWS // 2, ROWS - 100):
        scores = []
        for seed in range(60):
            late = np.random.default_rng(seed).permutation(residual[training:])
            scores.append(crosses_of(ids, [6] * 6, np.concatenate([residual[:training], late]), training).score((0, 1, 2)))
        assert abs(np.mean(scores)) < 0.5 and 0.7 < np.std(scores) < 1.3 and np.max(np.abs(scores)) < 4
    assert crosses_of(ids, [6] * 6, np.zeros(ROWS), ROWS // 2).score((0, 1)) == 0.0


def test_a_bag_counts_whatever_its_order():
    schema = FeatureSchema.from_dict({
        "version": 1, "task": "ctr", "max_history": 0, "behavior": [], "target": [],
        "vocabularies": [{"name": "a", "size": 5}, {"name": "tag", "size": 9}],
        "fields": [{"name": "a", "kind": "categorical", "vocabulary": "a"},
                   {"name": "one", "kind": "multi_categorical", "vocabulary": "tag"},
                   {"name": "two", "kind": "multi_categorical", "vocabulary": "tag"}]})
    bags = [[1, 2], [3], [2, 1], [], [1, 2, 2], [4, 5], [], [3], [0], [5, 4]]
    batch = Batch(fields=torch.tensor([[v, 0, 0] for v in range(5)], dtype=torch.int32), history=None,
                  history_offsets=None, label=torch.zeros(5), bag_ids=torch.tensor(sum(bags, []), dtype=torch.int32),
                  bag_offsets=torch.tensor(np.cumsum([0, *map(len, bags)])))
    single, one, two = _values(schema, batch)
    assert single.tolist() == [0, 1, 2, 3, 4]
    # By row: one = [1,2] [2,1] [1,2,2] [] [0]; two = [3] [] [4,5] [3] [5,4].
    assert one[0] == one[1] and len(set(one.tolist())) == 4
    assert two[0] == two[3] and two[2] == two[4] and len(set(two.tolist())) == 3
    assert two[1] == one[3]


def test_candidates_that_contain_a_better_one_are_left_out():
    def ranking(*found):
        return [{"fields": list(f), "score": s} for f, s in found]

    found = ranking(((1, 2), 50.0), ((1, 2, 3), 20.0), ((4,), 9.0), ((4, 5), 8.0), ((3, 4, 5), 7.5), ((0, 1), 2.0),
                    ((0, 1, 3), 1.0))
    assert [tuple(r["fields"]) for r in nothing_added(found)] == [(1, 2), (4,), (4, 5), (0, 1), (0, 1, 3)]
    larger_first = ranking(((1, 2, 3), 50.0), ((1, 2), 20.0))
    assert nothing_added(larger_first) == larger_first


def test_step_2_finds_a_product_without_any_trace_in_pairs(tmp_path):
    prepare_synthetic(SyntheticOptions(rows=30_000, fields=6, vocabulary=(8,), history_mean=0.0, main=0.5,
                                       interactions=(Interaction((1, 3, 4), 1.5),)), tmp_path / "data")
    data = Dataset.open(tmp_path / "data")
    config = tiny.CONFIG.changed(interaction_ranking="crosses", cycles=3, keep_interactions=30)

    def run() -> dict:
        with RunDirectory(tmp_path / "run", {"version": 1}, resume=True) as run:
            return search_interactions(make_context(data, config, run.scope(0), None, Progress(), "cpu"))

    with RunDirectory(tmp_path / "rows", {"version": 1}) as place:
        crosses = Crosses.of(make_context(data, config, place.scope(0), None, Progress(), "cpu"))
    wanted = np.concatenate([b.fields.numpy() for split in ("train", "valid") for b in data.batches(split, 1000)])
    assert np.array_equal(np.stack(crosses.values, 1), wanted)

    two = run()
    best = two["ranking"][0]
    assert best["fields"] == [1, 3, 4] and best["score"] > 15 and best["names"] == ["field_1", "field_3", "field_4"]
    assert (1, 3, 4) in two["found"] and all(2 <= len(f) for f in two["found"])
    assert not any({1, 3, 4} < set(f) for f in two["found"])
    next((tmp_path / "run").rglob("*scores*")).unlink()  # as if killed in the ranking
    again = run()
    assert again == {**two, "seconds": again["seconds"], "device_seconds": again["device_seconds"]}


def test_a_whole_search_ranks_by_crosses(tmp_path):
    data = tiny.prepared_fields(tmp_path)
    metrics = search(data, tmp_path / "run", tiny.CONFIG.changed(interaction_ranking="crosses", product_scale=30.0),
                     variants=("AMEIR-B", "AMEIR-C"))
    assert [0, 2] in metrics["found"][0]["AMEIR-B"]["interactions"]
    page = build_report(tmp_path / "run").read_text(encoding="utf-8")
    assert "found by z" in page and "none found" not in page


def test_crosses_rank_by_default_where_there_are_clicks(tmp_path):
    usual = SearchConfig(embedding_dim=4)
    cases = ((tiny.prepared_fields(tmp_path / "fields"), {}, True),
             (tiny.prepared_fields(tmp_path / "plain"), {"interaction_warmup_epochs": 0}, False),
             (tiny.prepared_fields(tmp_path / "paper"), {"interaction_ranking": "shared"}, False),
             (tiny.prepared_sequences(tmp_path / "sequences"), {}, False))
    for number, (data, changes, wanted) in enumerate(cases):
        with RunDirectory(tmp_path / f"run-{number}", {"version": 1}) as run:
            context = make_context(data, usual.changed(**changes), run.scope(0), None, Progress(), "cpu")
            assert context.ranks_by_crosses is wanted


def test_settings_that_cannot_be(tmp_path):
    for changes, message in (({"interaction_ranking": "best"}, "neither 'shared' nor 'crosses'"),
                             ({"interaction_ranking": "crosses", "interaction_warmup_epochs": 0}, "above 0"),
                             ({"product_scale": 1e30}, "product_scale is 1e.30, above 100"),
                             ({"product_scale": 0.0}, "product_scale is 0.0, not positive")):
        with pytest.raises(InputError, match=message):
            SearchConfig(**changes)
    data = tiny.prepared_sequences(tmp_path)
    with pytest.raises(InputError, match="needs a click label"):
        search(data, tmp_path / "run", SearchConfig(interaction_ranking="crosses"))
    assert not (tmp_path / "run").exists()


def test_a_context_builds_its_models_with_larger_products(tmp_path):
    data, arch = tiny.prepared_fields(tmp_path), Architecture((), ((0, 1),), FIXED, "se")

    def first_weight(scale: float, inherit: bool) -> torch.Tensor:
        config = tiny.CONFIG.changed(product_scale=scale)
        with RunDirectory(tmp_path / "run", {"version": 1}, overwrite=True) as run:
            context = make_context(data, config, run.scope(0), None, Progress(), "cpu")
            return context.build(arch, inherit, run.scope(0, "model")).state_dict()["mlp.0.weight"]

    width = tiny.CONFIG.embedding_dim
    plain, scaled = first_weight(1.0, False), first_weight(10.0, False)
    torch.testing.assert_close(scaled[:, -width:], 10 * plain[:, -width:])
    assert torch.equal(scaled[:, :-width], plain[:, :-width])
    assert torch.equal(first_weight(10.0, True), first_weight(1.0, True))


def test_products_start_larger():
    schema = FeatureSchema.from_dict({
        "version": 1, "task": "ctr", "max_history": 0, "behavior": [], "target": [],
        "vocabularies": [{"name": n, "size": 4} for n in "abcd"],
        "fields": [{"name": n, "kind": "categorical", "vocabulary": n} for n in "abcd"]})
    arch = Architecture((), ((0, 1), (1, 2, 3)), FIXED, "se")
    torch.manual_seed(3)
    plain = Model(schema, arch, 2).state_dict()
    torch.manual_seed(3)
    scaled = fresh_model(schema, arch, SearchConfig(embedding_dim=2, product_scale=10.0)).state_dict()
    torch.manual_seed(3)
    same = fresh_model(schema, arch, SearchConfig(embedding_dim=2)).state_dict()
    assert all(torch.equal(same[k], v) for k, v in plain.items())
    first = plain.pop("mlp.0.weight")
    factor = torch.tensor([1.0] * 8 + [10.0] * 2 + [100.0] * 2)
    torch.testing.assert_close(scaled.pop("mlp.0.weight"), first * factor)
    assert all(torch.equal(scaled[k], v) for k, v in plain.items())


@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_a_product_inside_another_is_found_beside_it(tmp_path, strength):
    prepare_synthetic(SyntheticOptions(rows=60_000, fields=6, vocabulary=(8,), history_mean=0.0, interactions=(
        Interaction((1, 2), 1.0), Interaction((1, 2, 3), strength))), tmp_path / "data")
    config = tiny.CONFIG.changed(interaction_ranking="crosses", cycles=2, keep_interactions=30)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(Dataset.open(tmp_path / "data"), config, run.scope(0), None, Progress(), "cpu")
        assert search_interactions(context)["found"] == [(1, 2), (1, 2, 3)]


@pytest.mark.parametrize("triple", [False, True])
def test_a_product_beside_a_strong_field_is_no_larger_product(triple):
    """Where effects add up as logits, what a pair does to probabilities depends on any strong third field."""
    rng = np.random.default_rng(0)
    ids = rng.integers(8, size=(5, 60_000))
    field, pair, three = 1.5 * rng.normal(size=8), rng.normal(size=(8, 8)), 0.7 * rng.normal(size=(8, 8, 8))
    known = field[ids[2]]
    logit = known + pair[ids[0], ids[1]] + triple * three[ids[0], ids[1], ids[2]]
    label = (rng.random(60_000) < 1 / (1 + np.exp(-logit))).astype(float)
    crosses = Crosses(ids, [8] * 5, label - 1 / (1 + np.exp(-known)), 48_000, label)
    found = [fields for fields, _ in crosses.choose([(0, 1), (3, 4)], 2, larger=[(0, 1, 2), (0, 1, 3)])]
    assert found == [(0, 1), (0, 1, 2)][:1 + triple]


def test_places_that_are_left_go_to_pairs_that_the_base_explains():
    """Labels with strong fields, one pair and one triple. The base explains fields and pair; on the logit scale the
    strong fields add up, so no other pair shows."""
    rng = np.random.default_rng(5)
    ids = rng.integers(8, size=(7, 100_000))
    sign = 1 - 2 * (ids % 2)
    effects = rng.normal(size=(7, 8))
    known = sum(effects[f][ids[f]] for f in range(7)) + 0.8 * sign[1] * sign[2]
    label = (rng.random(100_000) < 1 / (1 + np.exp(-known - 0.8 * sign[3] * sign[4] * sign[5]))).astype(float)
    residual = label - 1 / (1 + np.exp(-known))
    crosses = Crosses(ids, [8] * 7, residual, 80_000, label)
    assert [fields for fields, _ in crosses.choose([(1, 2), (3, 4, 5), (0, 6)], 5)] == [(3, 4, 5), (1, 2)]
    assert [fields for fields, _ in crosses.choose([(1, 2), (3, 4, 5), (0, 6)], 1)] == [(3, 4, 5)]
