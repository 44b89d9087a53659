"""The paper's sequential and non-sequential scenarios from start to end, and what retrieval is judged by."""

from __future__ import annotations

import json
import math
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest
import torch

import ameir_fast as af
from ameir_fast.bench import quality
from ameir_fast.cli import run as run_commands
from ameir_fast.data import Dataset
from ameir_fast.errors import InputError
from ameir_fast.progress import Progress
from ameir_fast.report import build_report
from ameir_fast.search import SearchConfig, evaluate, search, train
from ameir_fast.search.context import fresh_model, fresh_supernet
from ameir_fast.search.driver import make_context
from ameir_fast.search.fixed import all_variants, applicable, default_variants, fixed_point
from ameir_fast.search.objective import make_objective
from ameir_fast.search.store import RunDirectory
from ameir_fast.search.training import Task
from ameir_fast.search.variants import CONTROLS
from ameir_fast.space.architecture import ZERO, fixed_mlp

from . import tiny
from .test_search import comparable

QUICK = tiny.CONFIG.changed(embedding_dim=8, batch_size=64, epochs=2.0, behavior_children=6, behavior_epochs=1.0,
                            paths_per_step=2, learning_rate=0.01, dropout=0.1, embedding_l2=0.0)
METRICS = {f"{m}@{k}" for m in ("hr", "ndcg") for k in (5, 10)}
SEQUENTIAL = {"AMEIR-A", "POP", "GRU4Rec", "SASRec", "NextItNet", "DIN"}


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def sequences(tmp_path_factory) -> Dataset:
    return tiny.prepared_sequences(tmp_path_factory.mktemp("sequences"))


@pytest.fixture(scope="module")
def fields(tmp_path_factory) -> Dataset:
    return tiny.prepared_fields(tmp_path_factory.mktemp("fields"))


@pytest.fixture(scope="module")
def retrieved(sequences, tmp_path_factory):
    run = tmp_path_factory.mktemp("run") / "run"
    return run, search(sequences, run, QUICK)


@pytest.fixture(scope="module")
def never_again(tmp_path_factory) -> Dataset:
    """Sequences in which no user has an item twice."""
    return tiny.prepared_sequences(tmp_path_factory.mktemp("new"), repeats=False)


# ---- sampled items ------------------------------------------------------------------------------------


def whole_history(data: Dataset, row: int) -> set[int]:
    columns = data._columns
    return set(columns.event["history_item"][columns.begin[row]:columns.end[row]].tolist())


@pytest.mark.parametrize("popular", [False, True])
def test_candidates_are_new_to_the_user(sequences, popular):
    drawn = torch.cat(list(sequences.candidates("test", 32, 50, popular=popular))).numpy()
    first, last = sequences.splits["test"]
    assert drawn.shape == (last - first, 50) and drawn.dtype == np.int32
    longer = 0
    for row, candidates in zip(range(first, last), drawn, strict=True):
        history, own = whole_history(sequences, row), int(sequences._columns.items[row])
        longer += len(history) > sequences.schema.max_history
        assert not set(candidates.tolist()) & (history | {own, 0})
    assert longer > 0, "no history is longer than what a batch shows"


def test_candidates_depend_on_the_row_alone(sequences):
    whole = torch.cat(list(sequences.candidates("valid", 2048, 20)))
    assert torch.equal(torch.cat(list(sequences.candidates("valid", 7, 20))), whole)
    some = torch.cat(list(sequences.candidates("valid", 5, 20, limit=30)))
    items = torch.cat([b.items for b in sequences.batches("valid", 5, limit=30)])
    every = torch.cat([b.items for b in sequences.batches("valid", 2048)])
    place = sequences._positions("valid", 30)
    assert torch.equal(some, whole[place]) and torch.equal(items, every[place])
    assert not torch.equal(torch.cat(list(sequences.candidates("valid", 2048, 20, seed=1))), whole)
    assert not torch.equal(torch.cat(list(sequences.candidates("valid", 2048, 20, popular=True))), whole)


@pytest.mark.parametrize("popular", [False, True])
def test_candidates_follow_their_distribution(sequences, popular):
    """Of a row, by chi-squared over many draws: all items that it may have, equally or by training rows."""
    count = np.zeros(40 + 1)
    row = sequences.splits["test"][0]
    for seed in range(200):
        count += np.bincount(next(sequences.candidates("test", 1, 100, popular=popular, seed=seed))[0], minlength=41)
    items = sequences._columns.items
    first, last = sequences.splits["train"]
    popularity = np.bincount(items[first:last], minlength=41)
    assert np.array_equal(sequences.popularity(), popularity) and popularity[0] == 0
    allowed = sorted(set(range(1, 41)) - whole_history(sequences, row) - {int(items[row])})
    weight = popularity[allowed] if popular else np.ones(len(allowed))
    expected = count.sum() * weight / weight.sum()
    assert count[allowed].sum() == count.sum() == 200 * 100
    # Chi-squared with fewer than 40 degrees of freedom: 90 has probability 1e-5, and the seeds are fixed.
    assert ((count[allowed] - expected) ** 2 / expected).sum() < 90
    if popular:
        uniform = count.sum() / len(allowed)
        assert ((count[allowed] - uniform) ** 2 / uniform).sum() > 200


def test_candidates_belong_to_retrieval(fields):
    with pytest.raises(InputError, match="retrieval task"):
        next(fields.candidates("test", 8, 5))
    with pytest.raises(InputError, match="retrieval task"):
        fields.popularity()


# ---- the sequential scenario --------------------------------------------------------------------------


def check_by_plain_python(data: Dataset, run: Path, found: dict, new_only: bool) -> None:
    """What ``evaluate`` found of a run's model, from its scores and one row at a time."""
    model = af.Model.load(run / "model")
    drawn = {name: torch.cat(list(data.candidates("test", 2048, 100, popular=name == "popular100")))
             for name in ("uniform100", "popular100")}
    batch = next(data.batches("test", 2048))
    with torch.no_grad():
        scores = model(batch).tolist()
    expected: dict[str, list[float]] = {}
    for b, (row, own) in enumerate(zip(scores, batch.items.tolist(), strict=True)):
        out = whole_history(data, data.splits["test"][0] + b) if new_only else set()
        among = {"": [i for i in range(1, len(row)) if i not in out],
                 **{f"_{name}": c[b].tolist() for name, c in drawn.items()}}
        for name, candidates in among.items():
            rank = 1 + sum(row[i] > row[own] for i in candidates if i != own)  # ties do not happen here
            for k in (5, 10):
                expected.setdefault(f"hr@{k}{name}", []).append(rank <= k)
                expected.setdefault(f"ndcg@{k}{name}", []).append((rank <= k) / math.log2(rank + 1))
    for name, values in expected.items():
        assert found[name] == pytest.approx(np.mean(values), abs=1e-6), name
    error = np.std(expected["ndcg@5"], ddof=1) / math.sqrt(len(scores))
    assert found["ndcg@5_standard_error"] == pytest.approx(error, rel=1e-4)


def test_retrieval_search(retrieved, sequences):
    """Step 1 alone beside the hand-made models; its metrics are those of the published model, by plain Python."""
    run, result = retrieved
    assert set(result["variants"]) == SEQUENTIAL
    for row in result["variants"].values():
        assert set(row) >= METRICS | {f"{m}_{s}" for m in METRICS for s in ("uniform100", "popular100")}
        assert row["samples_per_s"] > 0 and row["ndcg@5"]["mean"] <= row["hr@5"]["mean"] <= row["hr@10"]["mean"]
    assert set(result["steps"]) == {"behavior", "race", "retrain"}
    assert result["standard_error"]["ndcg@5"] > 0
    found = evaluate(run, sequences)
    row = result["variants"]["AMEIR-A"]
    assert {k: found[k] for k in METRICS} == {k: row[k]["runs"][0] for k in METRICS}
    assert found["ranked"] == result["data"]["ranked"] == "all items" + few(sequences)
    check_by_plain_python(sequences, run, found, new_only=False)


def few(data: Dataset) -> str:
    """What is said where a sample of 100 must hold items twice."""
    items = data.schema.size("item") - 1
    return f", of which there are {items}, so that sampled ones repeat often" if items <= 100 else ""


def test_items_the_user_had_are_not_ranked_where_none_comes_again(never_again, sequences, tmp_path):
    assert never_again.repeat_share() == 0 and sequences.repeat_share() > 0.01
    columns, (first, last) = sequences._columns, sequences.splits["train"]
    again = [int(columns.items[row]) in whole_history(sequences, row) for row in range(first, last)]
    assert sequences.repeat_share() == pytest.approx(np.mean(again))
    arch = af.Architecture((ZERO,) * 3, (), fixed_mlp(200, 80), "none")
    result = train(never_again, tmp_path / "run", arch, QUICK)
    found = evaluate(tmp_path / "run", never_again)
    assert found["ranked"] == result["data"]["ranked"] == "items new to the user" + few(never_again)
    assert {k: found[k] for k in METRICS} == {k: result["variants"]["model"][k]["mean"] for k in METRICS}
    check_by_plain_python(never_again, tmp_path / "run", found, new_only=True)


def test_seen_items_of_a_batch(never_again, fields):
    for batch in never_again.batches("test", 25, seen=True):
        part = batch.slice(10, 20).to("cpu")
        assert part.seen_offsets[0] == 0 and len(part.seen_offsets) == len(part) + 1
        for b in range(len(part)):
            seen = part.seen[part.seen_offsets[b]:part.seen_offsets[b + 1]].tolist()
            start, stop = part.history_offsets[b:b + 2].tolist()
            assert seen == sorted(set(seen)) and set(part.history[start:stop, 0].tolist()) <= set(seen)
            assert int(part.items[b]) not in seen
    with pytest.raises(InputError, match="seen items belong to the retrieval task"):
        next(fields.batches("test", 8, seen=True))


def test_validation_ranks_a_fixed_part(sequences, fields):
    for data, limit, expected in ((sequences, 50, 50), (sequences, 10**6, sequences.size("valid")),
                                  (fields, 50, fields.size("valid"))):
        task = Task(data, make_objective(data.schema, QUICK), QUICK.changed(ranked_rows=limit), Progress())
        assert sum(len(b) for b in task.validation()) == expected
    with pytest.raises(InputError, match="ranked_rows"):
        QUICK.changed(ranked_rows=0)


def test_the_popularity_row(retrieved, sequences):
    """POP, by plain Python: ties are shared."""
    popularity = sequences.popularity().tolist()
    hits = []
    for own in next(sequences.batches("test", 2048)).items.tolist():
        above = sum(p > popularity[own] for p in popularity[1:])
        tied = sum(p == popularity[own] for p in popularity[1:])
        hits.append(np.mean([above + place < 5 for place in range(tied)]))
    row = retrieved[1]["variants"]["POP"]
    assert row["hr@5"]["mean"] == pytest.approx(np.mean(hits))
    assert row["parameters"] == 0 and row["seconds"] == 0


@pytest.mark.parametrize("name", ["GRU4Rec", "SASRec", "NextItNet", "DIN"])
def test_models_learn_what_follows(sequences, tmp_path, name):
    """A successor rule: chance is 5/40, and popularity is worth nothing."""
    config = QUICK.changed(epochs=20.0, patience=1000, evaluate_every=5.0, dropout=0.0, learning_rate=0.03)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(sequences, config, run.scope(0), None, Progress(), "cpu")
        row = fixed_point(context, name)
    assert row["hr@5"] > 0.4, row


class Stops(Progress):
    """Raises after so many updates, as Ctrl-C would."""

    def __init__(self, patience: int):
        super().__init__()
        self.patience = patience

    def update(self, done: int, **metrics: float) -> None:
        super().update(done, **metrics)
        self.patience -= 1
        if self.patience < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize("kind", ["sequences", "fields"])
def test_stopped_searches_resume_to_the_same_result(kind, retrieved, sequences, fields, tmp_path):
    data = {"sequences": sequences, "fields": fields}[kind]
    config = QUICK if kind == "sequences" else QUICK.changed(cycles=1, mlp_children=8)
    whole = retrieved[1] if kind == "sequences" else search(data, tmp_path / "whole", config)
    stops = 0
    for patience in (5, 30, 60, 90, 120, 10**9):
        try:
            result = search(data, tmp_path / "run", config, resume=True, progress=Stops(patience))
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 3 and comparable(result) == comparable(whole)
    assert json.loads((tmp_path / "run" / "metrics.json").read_text()) == json.loads(json.dumps(result))


def test_the_retrieval_report(retrieved, capsys):
    run, result = retrieved
    run_commands.show_results(None, result)
    out = capsys.readouterr().out
    for word in ("test NDCG@5", "test HR@10", "vs SASRec", "against 100 items drawn uniformly",
                 "against 100 items drawn by popularity", "standard error", "ranked among all items", *SEQUENTIAL):
        assert word in out, word
    assert "AUC" not in out and "_uniform100" not in out and "…" not in out
    page = build_report(run).read_text(encoding="utf-8")
    for word in ("test NDCG@5", "Against 100 items drawn uniformly", "validation NDCG@5", "ranked among all items",
                 *SEQUENTIAL):
        assert word in page, word
    assert "AUC" not in page


def test_the_retrieval_table_over_seeds(sequences, retrieved, tmp_path):
    for seed in range(2):
        (tmp_path / f"seed-{seed}").mkdir()
        (tmp_path / f"seed-{seed}" / "metrics.json").write_bytes((retrieved[0] / "metrics.json").read_bytes())
    report = quality.collect(Namespace(data=[sequences.directory], work=tmp_path, name="steps", seeds=2, jobs=1,
                                       config=None, set=None, against=None, budget=None, beside=None, note=None))
    assert report["metric"] == "ndcg@5" and report["references"] == ["DIN", "SASRec"]
    text = quality.as_markdown(report)
    for word in ("# steps, 2 seeds", "NDCG@5 − SASRec (paired)", "The same, against 100 items drawn by popularity:",
                 "ranked among all items", "0/2", *(f"| {name} | " for name in SEQUENTIAL)):
        assert word in text, word
    assert "AUC" not in text and "_" not in text.split("Found")[0].replace("x86_64", "")


# ---- the non-sequential scenario ----------------------------------------------------------------------


def test_search_without_history(fields, tmp_path):
    result = search(fields, tmp_path / "run", QUICK.changed(mlp_children=8, cycles=2, epochs=4.0),
                    variants=(*default_variants(fields.schema), "FM", "LR"))
    assert list(result["variants"]) == ["AMEIR-I", "AMEIR-B", "AMEIR-C", "DNN", "DeepFM", "FM", "LR"]
    assert set(result["steps"]) == {"interactions", "mlp", "race", "retrain"}
    rates = {name: row["auc"]["mean"] for name, row in result["variants"].items()}
    assert rates["LR"] < 0.6 < min(rates["AMEIR-I"], rates["DeepFM"]), rates  # the signal is an interaction
    assert af.Architecture.load(tmp_path / "run" / "architecture.json").behavior == ()
    assert evaluate(tmp_path / "run", fields)["auc"] == rates["AMEIR-C"]


# ---- which rows make sense ------------------------------------------------------------------------------


def test_default_variants(sequences, fields):
    assert set(default_variants(sequences.schema)) == SEQUENTIAL
    assert default_variants(fields.schema) == ("AMEIR-I", "AMEIR-B", "AMEIR-C", "DNN", "DeepFM")
    assert set(all_variants(fields.schema)) == {"AMEIR-I", "AMEIR-B", "AMEIR-C", "DNN", "DeepFM", "FM", "LR"}
    assert set(all_variants(sequences.schema)) == SEQUENTIAL
    both = af.FeatureSchema.from_dict({
        **sequences.schema.to_dict(), "task": "ctr", "fields": [
            {"name": "item", "kind": "categorical", "vocabulary": "item"}], "target": ["item"]})
    assert default_variants(both) == ("AMEIR-A", "AMEIR-B", "AMEIR-C", "DNN", "DNN-pool", "Wide&Deep", "DIN")
    assert {*CONTROLS, "AMEIR-I", "DeepFM"} <= set(all_variants(both)) and "POP" not in all_variants(both)


@pytest.mark.parametrize(("kind", "name", "message"), [
    ("sequences", "AMEIR-C", "needs fields beside the history"), ("sequences", "Wide&Deep", "needs a click label"),
    ("fields", "SASRec", "needs behavior fields"), ("fields", "POP", "needs items to retrieve"),
    ("fields", "DIEN", "unknown variant 'DIEN'")])
def test_rows_that_the_data_cannot_serve_are_refused(kind, name, message, sequences, fields):
    schema = {"sequences": sequences, "fields": fields}[kind].schema
    with pytest.raises(InputError, match=message):
        applicable(schema, (name,))


# ---- a start in the space of the items -----------------------------------------------------------------


@pytest.mark.parametrize("activations", [("relu", "relu"), ("swish", "relu"), ("identity", "identity")])
def test_a_model_starts_at_the_newest_item(sequences, activations):
    """The score of an item is a multiple of its embedding's product with the newest item's, before any training."""
    layers = tuple(af.MlpLayer(None, a, width=w) for a, w in zip(activations, (200, 80), strict=True))
    arch = af.Architecture((ZERO,) * 3, (), layers, "none")
    torch.manual_seed(0)
    model = fresh_model(sequences.schema, arch, SearchConfig(embedding_dim=8, item_scale=5.0)).eval()
    batch = next(sequences.batches("valid", 64))
    with torch.no_grad():
        start = sequences.schema.offset(sequences.schema.item_vocabulary)
        items = model.embedding.weight[start:start + sequences.schema.size(sequences.schema.item_vocabulary)]
        newest = batch.history[batch.history_offsets[1:] - 1, 0].long()
        factor = 5.0 * 2 ** activations.count("identity")
        torch.testing.assert_close(model(batch), factor * items[newest] @ items.T)


def test_the_shared_weights_start_there_too_and_narrow_layers_pass_what_fits(sequences):
    config = SearchConfig(embedding_dim=8, item_scale=5.0)
    torch.manual_seed(0)
    net = fresh_supernet(af.SearchSpace(sequences.schema), config).eval()
    batch = next(sequences.batches("valid", 64))
    with torch.no_grad():
        items = net.embedding.weight[:sequences.schema.size(sequences.schema.item_vocabulary)]
        newest = batch.history[batch.history_offsets[1:] - 1, 0].long()
        for mlp, passed in ((fixed_mlp(200, 80), 8), ((af.MlpLayer(0.5, "relu"), af.MlpLayer(0.4, "relu")), 3)):
            arch = af.Architecture((ZERO,) * 3, (), mlp, "none")
            wanted = 5.0 * items[newest][:, :passed] @ items[:, :passed].T
            torch.testing.assert_close(net(batch, arch), wanted)


def test_clicks_start_as_ever(fields):
    arch = af.Architecture((), (), fixed_mlp(20, 10), "none")
    weights = []
    for scale in (0.0, 10.0):
        torch.manual_seed(0)
        weights.append(fresh_model(fields.schema, arch, SearchConfig(embedding_dim=4, item_scale=scale)).state_dict())
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
