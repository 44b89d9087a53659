"""Synthetic data: what is planted shows where it should, and nowhere else; the best possible AUC is that."""

from __future__ import annotations

import itertools
import json

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ameir_fast import InputError
from ameir_fast.data import Dataset, Interaction, SyntheticOptions, planted, prepare_synthetic
from ameir_fast.data.planted import BLOCK, Planted
from ameir_fast.data.synthetic import BayesAuc, SyntheticSource

from .data_helpers import files_below, histories

SMALL = {"rows": 3000, "fields": 10, "vocabulary": (7,)}


def frame_of(**options) -> pl.DataFrame:
    return pl.concat(SyntheticSource(SyntheticOptions(**options)).chunks())


def excess(keys: np.ndarray, label: np.ndarray) -> float:
    """How far the label's means over the groups of equal keys differ beyond chance, in standard errors: the
    chi-square of the groups' means, standardised."""
    _, group = np.unique(keys, return_inverse=True, axis=0)
    count, positive = np.bincount(group.ravel()), np.bincount(group.ravel(), label)
    rate = label.mean()
    chi = (np.square(positive - count * rate) / (count * rate * (1 - rate)))[count >= 20]
    return float((chi.sum() - chi.size) / np.sqrt(2 * chi.size))


# ---- what shows where ----------------------------------------------------------------------------------

@pytest.mark.parametrize("exponent", [0.0, 1.0])
@pytest.mark.parametrize("interaction", [(1, 3, 4), (0, 1, 2, 4)])
def test_an_interaction_shows_in_its_own_order_alone(interaction, exponent):
    frame = frame_of(rows=100_000, fields=5, vocabulary=(6,), exponent=exponent, history_mean=0.0, main=0.0,
                     interactions=(Interaction(interaction),), seed=3)
    ids, label = frame.drop("label").to_numpy(), frame["label"].to_numpy()
    for order in range(1, len(interaction)):
        for part in itertools.combinations(range(5), order):
            assert abs(excess(ids[:, part], label)) < 4.5, part
    assert excess(ids[:, interaction], label) > 40


def test_with_heredity_parts_show_as_well():
    frame = frame_of(rows=50_000, fields=4, vocabulary=(6,), history_mean=0.0, main=0.0, heredity=0.5,
                     interactions=(Interaction((0, 1, 2)),))
    ids, label = frame.drop("label").to_numpy(), frame["label"].to_numpy()
    assert excess(ids[:, :2], label) > 40 and excess(ids[:, :1], label) > 10 and abs(excess(ids[:, 3:], label)) < 4.5


@pytest.fixture(scope="module")
def behaviors() -> dict[str, dict[str, np.ndarray]]:
    """Of each signal the label, the target and the history of one row a user: its newest three events, four items."""
    found = {}
    for name in planted.BEHAVIORS:
        frame = frame_of(rows=500_000, fields=1, vocabulary=(5,), exponent=0.5, interactions=(), main=0.0,
                         behavior=(name,), behavior_strength=1.5, history_mean=4.0, max_history=3, base_rate=0.5)
        frame = frame.with_columns(
            *(pl.col("item").shift(k).over("user").alias(f"before_{k}") for k in (1, 2, 3)),
            pl.int_range(pl.len()).over("user").alias("place"))
        rows = frame.filter(pl.col("place") == 3)  # rows of one user share events: their labels are not independent
        found[name] = {"label": rows["label"].to_numpy(), "target": rows.select("item").to_numpy(),
                       "history": rows.select("before_3", "before_2", "before_1").to_numpy()}
    return found


def test_order_is_invisible_to_bags(behaviors):
    rows = behaviors["order"]
    assert len(rows["label"]) > 40_000
    assert abs(excess(np.sort(rows["history"]), rows["label"])) < 4.5
    assert abs(excess(np.hstack([np.sort(rows["history"]), rows["target"]]), rows["label"])) < 4.5
    assert excess(rows["history"], rows["label"]) > 40
    # Read backwards a history says the opposite.
    history, label = rows["history"], rows["label"]
    rate = {tuple(h): label[(history == h).all(1)].mean() - 0.5 for h in np.unique(history, axis=0)}
    pairs = np.array([[r, rate[h[::-1]]] for h, r in rate.items() if h != h[::-1] and h[::-1] in rate])
    assert np.corrcoef(pairs.T)[0, 1] < -0.9


def test_sums_are_visible_to_bags_and_indifferent_to_order(behaviors):
    rows = behaviors["sum"]
    assert excess(np.sort(rows["history"]), rows["label"]) > 40
    # Within a bag the order tells nothing.
    whole, bag = excess(rows["history"], rows["label"]), np.unique(np.sort(rows["history"]), axis=0, return_inverse=True)
    rate = np.bincount(bag[1].ravel(), rows["label"]) / np.bincount(bag[1].ravel())
    left = rows["label"] - rate[bag[1].ravel()]
    _, group = np.unique(rows["history"], axis=0, return_inverse=True)
    count, total = np.bincount(group.ravel()), np.bincount(group.ravel(), left)
    chi, free = (np.square(total) / (count * 0.25)).sum(), count.size - rate.size
    assert whole > 30 and chi < free + 4.5 * np.sqrt(2 * free)


def test_interest_needs_target_and_history(behaviors):
    rows = behaviors["target"]
    bag = np.sort(rows["history"])
    together = excess(np.hstack([bag, rows["target"]]), rows["label"])
    # In the logit one alone tells nothing (next test); what is left here is its spread, bent by the sigmoid.
    assert together > 40 and abs(excess(bag, rows["label"])) < 0.2 * together
    assert abs(excess(rows["target"], rows["label"])) < 0.2 * together


def test_interest_has_no_mean_given_target_or_history():
    truth = Planted(SyntheticOptions(fields=1, vocabulary=(5,), exponent=0.5, interactions=(), behavior=("target",),
                                     history_mean=4.0, max_history=2))
    found = []
    for block in range(6):
        ids, user, signals, _ = truth._draw(block, BLOCK)
        frame = pl.DataFrame({"user": user, "item": ids[0], "signal": signals["target"]}).with_columns(
            *(pl.col("item").shift(k).over("user").alias(f"before_{k}") for k in (1, 2)),
            pl.int_range(pl.len()).over("user").alias("place"))
        found.append(frame.filter(pl.col("place") == 2))
    frame = pl.concat(found)
    for given in (["item"], ["before_1", "before_2"]):
        groups = frame.group_by(given).agg(pl.col("signal").mean(), error=pl.col("signal").std() / pl.len().sqrt())
        assert groups.height >= 5 and (groups["signal"] / groups["error"]).abs().max() < 4.5
    both = frame.group_by("item", "before_1").agg(pl.col("signal").mean(), error=pl.col("signal").std() / pl.len().sqrt())
    assert (both["signal"] / both["error"]).abs().max() > 40


def test_hidden_levels_are_balanced():
    truth = Planted(SyntheticOptions(**{**SMALL, "vocabulary": (3, 10, 100, 1000, 20_001, *(7,) * 5)}, seed=5))
    for level, own, p in zip(truth.sign, truth.own, truth.probability, strict=True):
        assert p.sum() == pytest.approx(1) and (np.diff(p) <= 0).all()
        for values in (level, own):
            assert values @ p == pytest.approx(0, abs=1e-9) and np.square(values) @ p == pytest.approx(1)
        # As likely above as below, at the same distance.
        size = np.abs(level[level != 0])
        assert size.min() == pytest.approx(size.max()) and p[level > 0].sum() == pytest.approx(p[level < 0].sum())
        assert (level == 0).sum() == p.size % 2
    assert np.bincount(truth.place).size == planted.CIRCLE


# ---- labels and the best possible AUC ------------------------------------------------------------------

def test_labels_have_the_base_rate_and_the_noise():
    rows = 200_000
    for noise in (0.0, 0.4):
        source = SyntheticSource(SyntheticOptions(rows=rows, fields=10, vocabulary=(20,), noise=noise, base_rate=0.2,
                                                  behavior=planted.BEHAVIORS))
        label = pl.concat(source.chunks())["label"].to_numpy()
        assert abs(label.mean() - 0.2) < 5 * np.sqrt(0.16 / rows) + 0.003  # the intercept is set on a sample
        blocks = [source.planted.block(b) for b in range(source.planted.blocks)]
        p = np.concatenate([b.probability for b in blocks])
        logit = np.concatenate([b.logit for b in blocks])
        np.testing.assert_allclose(p, (1 - noise) / (1 + np.exp(-logit)) + noise * 0.2)
        # Calibrated in every tenth of the probabilities.
        for part in np.array_split(np.argsort(p), 10):
            error = np.sqrt((p[part] * (1 - p[part])).sum()) / part.size
            assert abs(label[part].mean() - p[part].mean()) < 4.5 * error


def test_the_best_auc_is_that_of_the_true_logits():
    options = SyntheticOptions(rows=20_000, fields=10, vocabulary=(12,), behavior=("sum",), history_mean=4.0, noise=0.1)
    source = SyntheticSource(options)
    label = pl.concat(source.chunks())["label"].to_numpy()
    blocks = [source.planted.block(b) for b in range(source.planted.blocks)]
    logit, p = (np.concatenate([getattr(b, name) for b in blocks]) for name in ("logit", "probability"))
    for name, part in {"train": slice(0, 16_000), "valid": slice(16_000, 18_000), "test": slice(18_000, None)}.items():
        found = source.truth()["bayes_auc"][name]
        assert found["drawn"] == pytest.approx(roc_auc_score(label[part], logit[part]), abs=1e-5)
    # Of the test rows, the expectation pair by pair: i positive and j negative, for all i other than j.
    x, q = logit[18_000:], p[18_000:]
    weight = np.outer(q, 1 - q)
    np.fill_diagonal(weight, 0)
    wins = (x[:, None] > x[None, :]) + 0.5 * (x[:, None] == x[None, :])
    expected = (weight * wins).sum() / weight.sum()
    assert found["expected"] == pytest.approx(expected, abs=1e-5)
    # And over draws of the labels.
    draw = np.random.default_rng(0)
    again = [roc_auc_score(draw.random(q.size) < q, x) for _ in range(200)]
    assert np.mean(again) == pytest.approx(expected, abs=4 * np.std(again) / np.sqrt(200))


def test_the_best_auc_of_one_class_is_none():
    curve = BayesAuc()
    assert curve.result() == {"expected": None, "drawn": None}
    curve.add(np.array([0.5, 1.0]), np.array([0.6, 0.7]), np.array([True, True]))
    assert curve.result()["drawn"] is None and curve.result()["expected"] is not None


# ---- blocks, histories, files --------------------------------------------------------------------------

def test_blocks_depend_on_nothing_but_their_number():
    options = {**SMALL, "behavior": planted.BEHAVIORS, "history_mean": 5.0, "max_history": 4}
    long = Planted(SyntheticOptions(**{**options, "rows": 2 * BLOCK + 100}))
    again = Planted(SyntheticOptions(**{**options, "rows": 2 * BLOCK + 100}))
    other = Planted(SyntheticOptions(**{**options, "rows": 2 * BLOCK + 100, "seed": 1}))
    last, first = again.block(2), again.block(0)  # out of turn
    assert long.blocks == 3 and last.label.size == 100
    for number, block in ((0, first), (2, last)):
        mine = long.block(number)
        for a, b in zip((*mine.ids, mine.user, mine.logit, mine.label), (*block.ids, block.user, block.logit, block.label),
                        strict=True):
            np.testing.assert_array_equal(a, b)
    assert (other.block(0).ids[0] != first.ids[0]).any()
    # Fewer rows are the beginning of more.
    short, whole = frame_of(**options), frame_of(**{**options, "rows": 5000})
    assert short.equals(whole.head(short.height))
    users = np.concatenate([long.block(b).user for b in range(3)])
    assert not set(users[:BLOCK]) & set(users[BLOCK:])


def test_signals_are_those_of_the_histories_that_are_prepared(tmp_path):
    """The logit, again row by row from the prepared histories."""
    options = SyntheticOptions(**SMALL, behavior=planted.BEHAVIORS, history_mean=5.0, max_history=4, heredity=0.3, seed=2)
    prepare_synthetic(options, tmp_path / "data")
    data, truth = Dataset.open(tmp_path / "data"), Planted(options)
    block = truth.block(0)
    batch = next(data.batches("test", 300))
    own = [np.array(h, int).reshape(-1) - 1 for h in histories(batch)]
    ids = batch.fields.numpy() - 1
    start = data.splits["test"][0]
    np.testing.assert_array_equal(batch.fields.numpy(), np.stack([i[start:] for i in block.ids], 1))
    np.testing.assert_array_equal(batch.label.numpy(), block.label[start:])
    assert any(len(h) == 4 for h in own) and any(len(h) == 0 for h in own)
    for row, (history, fields) in enumerate(zip(own, ids, strict=True)):
        step = np.diff(truth.place[history]) % planted.CIRCLE
        same = truth.kind[history] == truth.kind[fields[0]]
        signals = {"sum": truth.taste[history].sum(), "order": (step == 1).sum() - (step == 2).sum(),
                   "target": (same / truth.kind_share[truth.kind[fields[0]]] - 1).sum()}
        logit = truth.intercept + sum(truth._scale[name] * value for name, value in signals.items())
        logit += sum(options.main / np.sqrt(10) * own[i] for own, i in zip(truth.own, fields, strict=True))
        logit += sum(i.strength * np.prod([truth.sign[f][fields[f]] + 0.3 for f in i.fields])
                     for i in options.interactions)
        assert block.logit[start + row] == pytest.approx(logit)


def test_histories_have_the_mean_that_was_asked_for():
    for mean in (0.5, 15.0, 80.0):
        user = np.concatenate([Planted(SyntheticOptions(rows=3 * BLOCK, history_mean=mean)).block(b).user for b in range(3)])
        earlier = pl.DataFrame({"user": user}).select(pl.int_range(pl.len()).over("user")).to_series().to_numpy()
        assert earlier.mean() == pytest.approx(mean, rel=0.05)
        assert earlier.std() == pytest.approx(np.sqrt(mean * (mean + 1)), rel=0.15)  # geometric


def test_the_prepared_directory_says_what_was_planted(tmp_path):
    options = SyntheticOptions(**SMALL, behavior=("order",), interactions=(Interaction((4, 2), 0.5),))
    statistics = prepare_synthetic(options, tmp_path / "a")
    truth = statistics["truth"]
    assert statistics == json.loads((tmp_path / "a" / "statistics.json").read_text())
    assert truth["interactions"] == [{"fields": [2, 4], "names": ["field_2", "field_4"], "strength": 0.5}]
    assert truth["behavior"] == ["order"] and set(truth["bayes_auc"]) == {"train", "valid", "test"}
    data = Dataset.open(tmp_path / "a")
    assert data.schema.target == ("item",) and data.schema.num_fields == 10 and data.schema.max_history == 20
    assert {name: data.size(name) for name in data.splits} == {"train": 2400, "valid": 300, "test": 300}
    assert all(v.size == 8 for v in data.schema.vocabularies)
    prepare_synthetic(options, tmp_path / "b")
    assert Dataset.open(tmp_path / "b").checksum == data.checksum
    fields_alone = SyntheticOptions(**SMALL, history_mean=0.0)
    prepare_synthetic(fields_alone, tmp_path / "c")
    assert not Dataset.open(tmp_path / "c").schema.behavior
    with pytest.raises(InputError, match="in use"):
        prepare_synthetic(options, tmp_path / "c")


@pytest.mark.parametrize("wrong, message", [
    ({"rows": 3}, "rows 3 is not a number >= 10"),
    ({"vocabulary": (5, 6)}, r"vocabulary \[5, 6\]: not one size or 12"),
    ({"vocabulary": (1,)}, "each at least 2"),
    ({"interactions": (Interaction((3,)),)}, "interaction 3: not two or more different fields of 0..11"),
    ({"interactions": (Interaction((3, 12)),)}, "interaction 3,12"),
    ({"interactions": (Interaction((3, 4), 0.0),)}, "its strength 0.0 is not a number above 0"),
    ({"interactions": (Interaction((3, 4)), Interaction((4, 3)))}, "an interaction is given twice"),
    ({"behavior": ("taste",)}, "behavior 'taste' is none of sum, order, target"),
    ({"behavior": ("sum",), "history_mean": 0.0}, "needs a history"),
    ({"history_mean": 1e6}, "history_mean 1e\\+06 is more than 1024"),
    ({"noise": 1.0}, "noise 1.0 lies outside"),
    ({"base_rate": 0.0}, "base_rate 0.0 outside"),
    ({"main": float("nan")}, "main nan is not a number"),
    ({"parts": (0.5, 0.5)}, "are not three positive numbers"),
])
def test_impossible_options_are_told(wrong, message):
    with pytest.raises(InputError, match=message):
        SyntheticOptions(**wrong)


def test_the_command(tmp_path, capsys):
    from ameir_fast.cli import main

    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(["prepare", "synthetic", "--rows", "2000", "--output", str(tmp_path / "data"), *arguments])
        said = capsys.readouterr()
        return ended.value.code, said.out + said.err

    for wrong in ("3,x", "3", "3,4:y", "3,4:-1"):
        code, said = run("--interaction", wrong)
        assert code == 2 and len(said.splitlines()) == 1 and said.startswith("error: ") and files_below(tmp_path) == set()
    code, said = run("--interaction", "3,4:0.5", "--interaction", "1,2,5", "--behavior", "sum,target", "--vocabulary", "9",
                     "--json", str(tmp_path / "said.json"))
    assert code == 0 and "2,000 rows" in said
    truth = json.loads((tmp_path / "said.json").read_text())["statistics"]["truth"]
    assert [(i["fields"], i["strength"]) for i in truth["interactions"]] == [([3, 4], 0.5), ([1, 2, 5], 1.0)]
    assert truth["behavior"] == ["sum", "target"]
    code, _ = run("--interaction", "none", "--fields", "3", "--overwrite", "--history-mean", "0")
    assert code == 0 and json.loads((tmp_path / "data" / "statistics.json").read_text())["truth"]["interactions"] == []


@pytest.mark.filterwarnings("error")
def test_effects_of_any_strength_draw_without_a_warning(tmp_path):
    prepare_synthetic(SyntheticOptions(rows=300, main=1e9), tmp_path / "out")
    assert 0 < Dataset.open(tmp_path / "out").statistics["label_rate"] < 1
