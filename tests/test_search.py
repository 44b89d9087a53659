"""The search end to end on a tiny data set: results, files, resume after kills, the strategy's seam."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ameir_fast as af
from ameir_fast.data import Dataset
from ameir_fast.errors import InputError
from ameir_fast.group import ModelGroup
from ameir_fast.ops import _triton
from ameir_fast.progress import Progress
from ameir_fast.search import (
    BeamStrategy,
    EvolutionStrategy,
    RandomStrategy,
    SearchConfig,
    behavior,
    evaluate,
    search,
    train,
)
from ameir_fast.search import race as race_module
from ameir_fast.search.driver import make_context
from ameir_fast.search.interactions import expand
from ameir_fast.search.objective import add_embedding_l2, looked_up
from ameir_fast.search.race import race, trained_finalist
from ameir_fast.search.store import RunDirectory
from ameir_fast.search.variants import CONTROLS
from ameir_fast.space import Architecture, Block, MlpLayer
from ameir_fast.space.architecture import ZERO, fixed_mlp
from ameir_fast.supernet import reads_step1

from . import tiny

HERE = Path(__file__).resolve().parent


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Dataset:
    return tiny.prepared(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory) -> tuple[Path, dict]:
    run = tmp_path_factory.mktemp("run") / "run"
    return run, search(data, run, tiny.CONFIG)


def comparable(metrics: dict) -> dict:
    """What must not depend on when or how often a run was interrupted: everything but clocks."""
    if isinstance(metrics, dict):
        return {k: comparable(v) for k, v in metrics.items()
                if "second" not in k and k not in ("environment", "samples_per_s")}
    return [comparable(v) for v in metrics] if isinstance(metrics, list) else metrics


def test_run_directory(finished, data):
    run, result = finished
    names = {p.name for p in run.iterdir()}
    assert {"config.json", "architecture.json", "metrics.json", "rankings.json", "history.jsonl", "model"} <= names
    assert json.loads((run / "metrics.json").read_text()) == json.loads(json.dumps(result))
    arch = af.Architecture.load(run / "architecture.json")
    af.SearchSpace(data.schema, embedding_dim=tiny.CONFIG.embedding_dim).validate(arch)
    assert set(result["variants"]) == {"AMEIR-A", "AMEIR-B", "AMEIR-C", "DNN", "DNN-pool", "Wide&Deep", "DIN"}
    for row in result["variants"].values():
        assert 0 < row["auc"]["mean"] < 1 and row["samples_per_s"] > 0
        assert row["parameters_outside_embedding"] < row["parameters"]
    stages = {json.loads(line)["stage"] for line in (run / "history.jsonl").read_text().splitlines()}
    for part in ("behavior.train", "behavior.rank", "interactions.train.c1", "mlp.train", "mlp.rank", "retrain.DIN.0"):
        assert part in stages, part


def test_found_model_is_the_published_one(finished, data):
    """The model on disk scores exactly what the table says of the found variant."""
    run, result = finished
    again = evaluate(run, data)
    assert again["auc"] == result["variants"]["AMEIR-C"]["auc"]["runs"][0]
    assert again["log_loss"] == pytest.approx(result["variants"]["AMEIR-C"]["log_loss"]["runs"][0], abs=1e-12)


def test_rankings(finished):
    rankings = json.loads((finished[0] / "rankings.json").read_text())
    for step in ("behavior", "mlp"):
        scores = [r["score"] for r in rankings[step]]
        k = tiny.CONFIG.top_k
        assert scores[:k] == sorted(scores[:k], reverse=True) and scores[k:] == sorted(scores[k:], reverse=True)
    assert len(rankings["behavior"]) == tiny.CONFIG.behavior_children
    keys = [(-r["score"], len(r["fields"]), r["fields"]) for r in rankings["interactions"]]
    assert keys == sorted(keys)
    zero = [{"norm": "none", "layer": "zero", "activation": "identity"}] * 3
    assert zero in [r["finalist"]["behavior"] for r in rankings["race"]["behavior"]]
    fixed = [{"width": 200, "activation": "relu"}, {"width": 80, "activation": "relu"}]
    assert fixed in [r["finalist"]["mlp"] for r in rankings["race"]["mlp"]]


def test_race(data, tmp_path):
    """Halving by the mean of the rounds' scores, ``runs`` full trainings at the end, the best of them first."""
    config = tiny.CONFIG.changed(epochs=0.5, runs=2)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, config, run.scope(0), None, Progress(), "cpu")
        g = torch.Generator().manual_seed(1)
        paths = dict.fromkeys(Architecture(behavior=context.space.sample_behavior(g)).canonical().behavior for _ in range(8))
        finalists = [context.behavior_child(p) for p in list(paths)[:7]]
        scope = context.scope.scope("behavior", "race")
        standings = race(context, scope, finalists, (0.1, 0.2), inherit=True)
        assert sorted(s.order for s in standings) == list(range(7))
        assert [len(s.rounds) for s in standings] == [3, 3, 2, 2, 1, 1, 1]
        assert [r["steps"] for r in standings[0].rounds] == [context.epochs(0.1), context.epochs(0.2), context.epochs(0.5)]
        full, short = standings[:2], standings[2:]
        assert [s.score for s in full] == [s.rounds[-1]["auc"] for s in full] and full[0].score >= full[1].score
        assert all(s.score == pytest.approx(np.mean([r["auc"] for r in s.rounds])) for s in short)
        last_cut = [np.mean([r["auc"] for r in s.rounds[:2]]) for s in full]
        assert min(last_cut) >= short[0].score >= short[1].score and short[2].score >= short[3].score >= short[4].score
        winner = trained_finalist(context, scope, full[0])
        found = context.task.objective.evaluate(lambda b, items: winner(b, items=items), context.task.held_out("valid"))
        assert found["auc"] == full[0].score
        # The same trainings under a limit that only the smallest of the last four keeps: it wins.
        limit = min(s.parameters for s in standings[:4])
        assert limit < max(s.parameters for s in standings[:4])
        assert race(context, scope, finalists, (0.1, 0.2), True, limit)[0].parameters == limit


def test_groups_of_a_race_are_alike(data, tmp_path, monkeypatch):
    """More finalists than are trained together: groups of one size, each with a share of every part of the ranking; no matrix
    but one is in memory, and no state of a short training stays on disk."""
    monkeypatch.setattr(race_module, "GROUP", 4)
    seen = []

    class Spy(ModelGroup):
        def __init__(self, models):
            seen.append(([m.arch.mlp[0].units(100) for m in models], len({id(m.embedding) for m in models})))
            super().__init__(models)

    monkeypatch.setattr(race_module, "ModelGroup", Spy)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, tiny.CONFIG, run.scope(0), None, Progress(), "cpu")
        mlps = [(MlpLayer(0.1 * (i + 1), "relu"), MlpLayer(0.1, "dice")) for i in range(9)]
        archs = [Architecture((ZERO,) * 3, (), mlp, "se") for mlp in mlps]
        scope = context.scope.scope("mlp", "race")
        standings = race(context, scope, archs, (0.25,), inherit=False, in_one_pass=True)
        assert seen == [([10, 40, 70], 1), ([20, 50, 80], 1), ([30, 60, 90], 1)]
        assert sorted(s.order for s in standings) == list(range(9)) and all(s.rounds for s in standings)
        race(context, context.scope.scope("behavior", "race"), [context.behavior_child((ZERO,) * 3)] * 3, (0.25,), inherit=False)
    left = {p.parent.name for p in (tmp_path / "run").rglob("training.safetensors")}
    assert left == {"full"}


def test_step_1_may_race_in_one_pass(data, tmp_path):
    run = tmp_path / "run"
    search(data, run, tiny.CONFIG.changed(race_together=True, epochs=0.5), variants=("AMEIR-A",))
    stages = {json.loads(line)["stage"] for line in (run / "history.jsonl").read_text().splitlines()}
    rounds = [f"{epochs:g}" for epochs in tiny.CONFIG.race_epochs]
    assert {f"behavior.race.group-0.{name}" for name in rounds[:1]} <= stages
    assert not any(stage.startswith("behavior.race.0.") and not stage.endswith(".full") for stage in stages)
    first, *_ = json.loads((run / "rankings.json").read_text())["race"]["behavior"]
    assert [r["steps"] for r in first["rounds"]][-1] == round(0.5 * np.ceil(data.size("train") / tiny.CONFIG.batch_size))


@pytest.mark.parametrize("sure", [True, False])
def test_the_plain_path_may_be_sure_of_a_full_training(data, tmp_path, monkeypatch, sure):
    """It is last in every short round and best in the end."""
    def result(context, scope, standing, name, epochs, inherit):
        plain = standing.arch.behavior == (ZERO,) * 3
        found = {"score": (0.9 if name == "full" else 0.1) if plain else 0.5 + standing.order / 100, "steps": 1,
                 "seconds": 0.0, "device_seconds": 0.0, "parameters": 1}
        trained.append((standing.order, name))
        race_module._note(context, standing, found)
        return found

    trained: list = []
    monkeypatch.setattr(race_module, "_result", result)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, tiny.CONFIG.changed(runs=1, plain_trains_fully=sure), run.scope(0), None, Progress(), "cpu")
        first = (ZERO, *(Block("none", layer, "relu") for layer in ("conv1", "bi_gru", "avg_pool3")))
        archs = [context.behavior_child((block, ZERO, ZERO)) for block in first]
        standings = behavior.race_of(context, context.scope.scope("first"), archs)
    # Four, the better half, the best one; and the first, which left at once.
    assert sorted(trained) == sorted([(i, "0.5") for i in range(4)] + [(2, "1"), (3, "1"), (3, "full")] + [(0, "full")] * sure)
    assert [s.order for s in standings] == ([0, 3, 2, 1] if sure else [3, 2, 1, 0])


def test_same_seed_same_result(finished, data, tmp_path):
    again = search(data, tmp_path / "again", tiny.CONFIG)
    assert comparable(again) == comparable(finished[1])
    assert (tmp_path / "again" / "architecture.json").read_bytes() == (finished[0] / "architecture.json").read_bytes()


def _run_in_worker(data, run: Path, kills: int, seed: int = 0) -> list[str]:
    worker = subprocess.run([sys.executable, str(HERE / "kill_worker.py"), str(data.directory), str(run), str(kills),
                             str(seed)], capture_output=True, text=True, cwd=HERE.parent, timeout=1500, check=False)
    assert worker.returncode == 0, worker.stderr[-2000:]
    told = json.loads(worker.stdout.splitlines()[-1])
    assert told["kills"] == kills, f"the run ended after {told['kills']} kills"
    return told["stages"]


@pytest.fixture(scope="module")
def unkilled(data, tmp_path_factory) -> Path:
    """A run in the worker, whose trainings go side by side, that nothing interrupts."""
    run = tmp_path_factory.mktemp("unkilled") / "run"
    _run_in_worker(data, run, kills=0)
    return run


def _killed_run(data, unkilled: Path, run: Path, kills: int, seed: int) -> list[str]:
    stages = _run_in_worker(data, run, kills, seed)
    assert (run / "architecture.json").read_bytes() == (unkilled / "architecture.json").read_bytes()
    mine, theirs = (comparable(json.loads((r / "metrics.json").read_text())) for r in (run, unkilled))
    assert mine == theirs
    assert not list(run.rglob(".ameir-fast-*.tmp"))
    return stages


def test_killed_run_resumes_to_the_same_result(data, unkilled, tmp_path):
    stages = _killed_run(data, unkilled, tmp_path / "run", kills=20, seed=1)
    assert {s.split(".")[0] for s in stages} == {"behavior", "interactions", "mlp", "retrain"}, stages


@pytest.mark.slow
def test_killed_200_times(data, unkilled, tmp_path):
    for seed in range(2, 12):
        _killed_run(data, unkilled, tmp_path / str(seed), kills=20, seed=seed)


def test_resume_of_a_finished_run_changes_nothing(data, finished):
    run, result = finished
    before = (run / "architecture.json").read_bytes()
    assert comparable(search(data, run, tiny.CONFIG, resume=True)) == comparable(result)
    assert (run / "architecture.json").read_bytes() == before


def test_directory_in_use(data, finished, tmp_path):
    with pytest.raises(InputError, match="output directory in use"):
        search(data, finished[0], tiny.CONFIG)
    with pytest.raises(InputError, match="seed"):
        search(data, finished[0], tiny.CONFIG.changed(seed=5), resume=True)
    with RunDirectory(tmp_path / "held", {"version": 1}):
        with pytest.raises(InputError, match="in use by another process"):
            RunDirectory(tmp_path / "held", {"version": 1}, resume=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not a run directory"):
        search(data, tmp_path / "other", tiny.CONFIG, overwrite=True)
    assert (tmp_path / "other" / "thesis.txt").read_text() == "mine"


def test_repeats(data, tmp_path):
    quick = tiny.CONFIG.changed(behavior_children=4, mlp_children=8, cycles=1, epochs=0.5, behavior_epochs=0.5)
    result = search(data, tmp_path / "run", quick, repeats=2, variants=("AMEIR-A", "AMEIR-C", "DIN"))
    for row in result["variants"].values():
        assert len(row["auc"]["runs"]) == 2 and row["run_seeds"] == [0, 1]
        assert row["auc"]["mean"] == pytest.approx(np.mean(row["auc"]["runs"]))
        assert row["auc"]["std"] == pytest.approx(np.std(row["auc"]["runs"], ddof=1))


def test_without_behavior(data, tmp_path):
    """The paper's non-sequential scenario: steps 2 and 3, and AMEIR-I."""
    quick = tiny.CONFIG.changed(mlp_children=8, cycles=2, epochs=0.5)
    result = search(data.select(behavior=False), tmp_path / "run", quick)
    assert set(result["variants"]) == {"AMEIR-I", "AMEIR-B", "AMEIR-C", "DNN", "DeepFM"}
    assert af.Architecture.load(tmp_path / "run" / "architecture.json").behavior == ()


class Fussy:
    """A strategy that proposes only what it mutated from the best child so far."""

    def propose(self, sample, mutate, seen, generator, count):
        if not seen:
            return [sample(generator) for _ in range(count)]
        return [mutate(max(seen, key=seen.get), generator) for _ in range(count)]


@pytest.mark.parametrize("strategy", [RandomStrategy(), EvolutionStrategy(population=8, tournament=3), BeamStrategy(),
                                      Fussy()])
def test_strategies(data, tmp_path, strategy):
    quick = tiny.CONFIG.changed(behavior_children=70, mlp_children=8, cycles=1, epochs=0.5, behavior_epochs=0.5)
    search(data, tmp_path / "run", quick, strategy=strategy, variants=("AMEIR-A", "AMEIR-C"))
    ranking = json.loads((tmp_path / "run" / "rankings.json").read_text())["behavior"]
    assert len(ranking) == len({json.dumps(r["behavior"]) for r in ranking}) <= 70


@pytest.mark.parametrize("layers", [1, 3])
def test_mlps_of_other_depths(data, tmp_path, layers):
    """Step 1's fixed MLP has two layers whatever step 3 looks for."""
    search(data, tmp_path / "run", tiny.CONFIG.changed(mlp_layers=layers, mlp_children=20), variants=("AMEIR-C",))
    rankings = json.loads((tmp_path / "run" / "rankings.json").read_text())
    assert {len(entry["mlp"]) for entry in rankings["mlp"]} == {layers}
    assert len(af.Model.load(tmp_path / "run" / "model").arch.mlp) in (2, layers)


class Looks(RandomStrategy):
    """Draws as its parent does; it might look at scores."""

    def propose(self, sample, mutate, seen, generator, count):
        return super().propose(sample, mutate, seen, generator, count)


def test_who_does_not_look_at_scores_has_them_all_at_once(data, tmp_path):
    rankings = []
    for strategy, times in ((RandomStrategy(), 1), (Looks(), 3)):
        run = tmp_path / type(strategy).__name__
        search(data, run, tiny.CONFIG.changed(behavior_children=90), variants=("AMEIR-A",), strategy=strategy)
        rankings.append(json.loads((run / "rankings.json").read_text())["behavior"])
        lines = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
        scored = [line for line in lines if "children_per_s" in line and "behavior" in line["stage"]]
        assert len(scored) == times and scored[-1]["step"] == 90
    assert [entry["behavior"] for entry in rankings[0]] == [entry["behavior"] for entry in rankings[1]]


def test_controls(data, tmp_path):
    """Also with everything inherited, which the other tests leave out."""
    quick = tiny.CONFIG.changed(behavior_children=6, mlp_children=8, cycles=1, epochs=0.5, inherited_epochs=0.5,
                                behavior_epochs=0.5, mlp_inherit=True, inherit_retraining=True)
    result = search(data, tmp_path / "run", quick, variants=("AMEIR-C", *CONTROLS))
    assert set(result["variants"]) == {"AMEIR-C", *CONTROLS}
    without = result["variants"]["AMEIR-B without interactions"]["parameters"]
    assert result["variants"]["AMEIR-B random interactions"]["parameters"] > without


def test_variants_that_do_not_apply(data, tmp_path):
    with pytest.raises(InputError, match="variant 'DIN' needs behavior fields"):
        search(data.select(behavior=False), tmp_path / "run", tiny.CONFIG, variants=("AMEIR-C", "DIN"))
    with pytest.raises(InputError, match="unknown variant 'DCN'"):
        search(data, tmp_path / "run", tiny.CONFIG, variants=("DCN",))
    with pytest.raises(InputError, match="blocks is 0"):
        search(data, tmp_path / "run", tiny.CONFIG.changed(blocks=0))
    assert not (tmp_path / "run").exists()


def test_train_and_evaluate(data, tmp_path):
    arch = af.Architecture(tuple(af.Block("layer_norm", "conv3", "relu") for _ in range(3)), ((0, 2),),
                           fixed_mlp(20, 10), "se")
    result = train(data, tmp_path / "run", arch, tiny.CONFIG)
    assert evaluate(tmp_path / "run", data)["auc"] == result["variants"]["model"]["auc"]["mean"]
    assert not reads_step1(arch)
    with pytest.raises(InputError, match="another schema"):
        evaluate(tmp_path / "run", data.select(behavior=False))
    other = tmp_path / "other"  # of the same schema, and another content
    shutil.copytree(data.directory, other)
    about = json.loads((other / "dataset.json").read_text())
    for changes, fits in (({"options": {}}, False), ({"options": {}, "like": data.checksum}, True)):
        (other / "dataset.json").write_text(json.dumps(about | changes))
        if fits:
            assert evaluate(tmp_path / "run", Dataset.open(other))["auc"] == result["variants"]["model"]["auc"]["mean"]
            continue
        with pytest.raises(InputError, match="other: is not the data of .* ids mean other values; .* --like"):
            evaluate(tmp_path / "run", Dataset.open(other))
    with pytest.raises(InputError, match="split 'future'"):
        evaluate(tmp_path / "run", data, split="future")
    with pytest.raises(InputError, match="field index 99"):
        train(data, tmp_path / "no", af.Architecture(arch.behavior, ((0, 99),), arch.mlp), tiny.CONFIG)
    assert not (tmp_path / "no").exists()


def test_damaged_files(data, tmp_path):
    arch = af.Architecture(tuple(af.Block("none", "zero", "identity") for _ in range(3)), (), fixed_mlp(8), "none")
    train(data, tmp_path / "run", arch, tiny.CONFIG)
    model = tmp_path / "run" / "model"
    whole, about = (model / "model.safetensors").read_bytes(), (model / "model.json").read_text()
    (model / "model.safetensors").write_bytes(whole[:-10])
    with pytest.raises(InputError, match="truncated"):
        evaluate(tmp_path / "run", data)
    (model / "model.safetensors").write_bytes(whole)
    (model / "model.json").write_text(about.replace('"version": 1', '"version": 9', 1))
    with pytest.raises(InputError, match="version 9"):
        evaluate(tmp_path / "run", data)
    (model / "model.json").write_text(about)
    (tmp_path / "run" / "checkpoint" / "0" / "train" / "training.safetensors").write_bytes(b"not tensors at all")
    with pytest.raises(InputError, match="training.safetensors"):
        train(data, tmp_path / "run", arch, tiny.CONFIG, resume=True)


@pytest.mark.parametrize(("change", "message"), [
    ({"race_epochs": ()}, "race_epochs"), ({"race_epochs": (0.5, 0.25)}, "race_epochs"),
    ({"mlp_race_epochs": "long"}, "mlp_race_epochs"), ({"mlp_race_epochs": (-1,)}, "mlp_race_epochs"),
    ({"finalists": 1, "runs": 2}, "finalists is 1, but runs=2 needs at least 2"),
    ({"mlp_finalists": 2, "runs": 2}, "mlp_finalists is 2, but runs=2 needs at least 3"),
    ({"mlp_inherit": 1}, "mlp_inherit"), ({"dropout": 1.0}, "dropout"), ({"block_dropout": -0.1}, "block_dropout"), ({"epochs": math.nan}, "epochs"),
    ({"sampler": "best"}, "sampler"), ({"runs": 1.5}, "runs"), ({"speed": 3}, "unknown setting 'speed'")])
def test_wrong_settings_are_named(change, message):
    with pytest.raises(InputError, match=message):
        SearchConfig().changed(**change)


def test_expand():
    assert expand([(0,), (1,)], 3) == [(0,), (1,), (0, 1), (0, 2), (1, 2)]
    assert expand([(0, 1)], 3) == [(0, 1), (0, 1, 2)]


def test_embedding_l2_is_the_gradient_of_the_penalty(data):
    """The gradient added for the looked-up rows is that of λ Σ |e|² / B as a loss term."""
    batch = next(data.batches("train", 64, seed=1))
    schema = data.schema
    net = af.Supernet(af.SearchSpace(schema), 4)
    weight = net.embedding.weight
    weight.grad = torch.zeros_like(weight)
    add_embedding_l2(weight, looked_up(schema, batch), len(batch), 0.3)
    table = weight.detach().clone().requires_grad_()
    total = 0
    for i, field in enumerate(schema.fields):
        ids = batch.bag_ids if i in schema.multi_fields else batch.fields[:, i]
        total = total + table[ids.long() + schema.offset(field.vocabulary)].square().sum()
    for j, field in enumerate(schema.behavior):
        total = total + table[batch.history[:, j].long() + schema.offset(field.vocabulary)].square().sum()
    (0.3 * total / len(batch)).backward()
    torch.testing.assert_close(weight.grad, table.grad)


def test_population_equals_one_at_a_time(data):
    net = af.Supernet(af.SearchSpace(data.schema), 4).double()
    g = torch.Generator().manual_seed(0)
    archs = [net.sample(g) for _ in range(12)]
    archs += [af.Architecture(a.behavior, (), fixed_mlp(200, 80), "none") for a in archs[:4]]
    batches = list(data.batches("valid", 64))
    found = af.evaluate_population(net, archs, batches, return_logits=True)
    net.eval()
    with torch.no_grad():
        alone = torch.stack([torch.cat([net(b, a) for b in batches]) for a in archs])
    torch.testing.assert_close(found.logits, alone, rtol=1e-10, atol=1e-12)
    assert np.isfinite(found.auc).all() and all(math.isfinite(v) for v in found.log_loss)


@pytest.mark.parametrize("backend, off", [("triton", False), ("cpp", True)])
def test_a_backend_that_is_not_there_is_refused_before_anything_is_written(data, backend, off, tmp_path, monkeypatch):
    if off:
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    monkeypatch.setattr(_triton, "interpreting", lambda: False)
    config = tiny.CONFIG.changed(backend=backend)
    arch = Architecture.from_dict({"version": 1, "behavior": [], "interactions": [], "mlp": [{"width": 4, "activation": "relu"}]})
    for attempt in (lambda: search(data, tmp_path / "run", config),
                    lambda: train(data, tmp_path / "run", replace(arch, behavior=(ZERO,) * 3), config)):
        with pytest.raises(InputError, match=f"backend '{backend}'"):
            attempt()
        assert not (tmp_path / "run").exists()


def test_the_reference_backend_searches_too(data, tmp_path):
    metrics = search(data, tmp_path / "run", tiny.CONFIG.changed(backend="reference"), variants=["AMEIR-C"])
    assert metrics["environment"]["backend"] == "reference" and metrics["variants"]["AMEIR-C"]["auc"]["mean"] > 0
