"""What a budget buys: how it is read, split, refused, spent and resumed."""

from __future__ import annotations

import itertools
import json
import math
import re

import pytest

from ameir_fast.errors import InputError
from ameir_fast.progress import LineProgress, Progress
from ameir_fast.search import SearchConfig, budget, search
from ameir_fast.search.budget import COSTS, Budget, allocate, describe_budget, overridden, schedule, seconds_per_training
from ameir_fast.search.driver import make_context
from ameir_fast.search.store import RunDirectory
from ameir_fast.search.training import Outcome

from . import tiny

CONFIG = tiny.CONFIG.changed(runs=1, epochs=1.0)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tiny.prepared(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def context(data, tmp_path):
    with RunDirectory(tmp_path / "context", {"version": 1}) as run:
        yield make_context(data, CONFIG, run.scope(0), None, Progress(), "cpu")


@pytest.mark.parametrize(("text", "seconds", "trainings"), [
    ("90s", 90, None), ("30m", 1800, None), ("1.5h", 5400, None), ("40x", None, 40), ("2.5X", None, 2.5)])
def test_parsing(text, seconds, trainings):
    found = Budget.parse(text)
    assert (found.seconds, found.trainings, found.text) == (seconds, trainings, text.lower())


@pytest.mark.parametrize("text", ["", "30", "m", "-3m", "0x", "0.0h", "3 days", "1e3s", "nan x", "infm"])
def test_what_is_no_budget(text):
    with pytest.raises(InputError, match="budget"):
        Budget.parse(text)


@pytest.mark.parametrize(("epochs", "last"), list(itertools.product([0.5, 3, 10, 40, 200, 1000], [1, 2, 3])))
def test_a_race_costs_what_it_may(epochs, last):
    finalists, rounds = schedule(epochs, last, 0.25)
    assert all(b == pytest.approx(2 * a) for a, b in itertools.pairwise(rounds))
    left, cost = finalists, 0.0
    for length in rounds:
        cost += left * length
        left = math.ceil(left / 2)
    assert cost <= epochs * 1.35  # odd numbers are halved upwards
    if epochs >= 3:
        assert cost >= 0.7 * epochs
    if len(rounds) > 1:
        assert finalists / 2 ** (len(rounds) - 1) >= 2 * last


def test_parts_add_up_and_races_get_the_rest(context):
    found = {x: allocate(x, context) for x in (20, 40, 160)}
    for trainings, plan in found.items():
        assert sum(plan["parts"].values()) == pytest.approx(trainings, abs=0.01)
        changed = CONFIG.changed(**plan["settings"])
        assert changed.behavior_children >= changed.finalists
        shared = (changed.warmup_epochs + changed.behavior_epochs) * COSTS["behavior"] / CONFIG.epochs
        assert shared == pytest.approx(plan["parts"]["shared weights, behavior"], abs=0.01)
    raced = [sum(v for k, v in plan["parts"].items() if k.startswith("race")) / x for x, plan in found.items()]
    assert raced == sorted(raced) and raced[-1] > 0.8
    assert found[40]["settings"]["finalists"] > found[20]["settings"]["finalists"]


def test_too_small_a_budget_says_what_is_needed(context):
    with pytest.raises(InputError, match=r"too few.*need 4x"):
        allocate(3, context)
    allocate(4, context)


@pytest.mark.parametrize("changes", [{"runs": 5}, {"runs": 3}, {"runs": 12}, {"runs": 2, "epochs": 3.0, "mlp_race_together": False}])
def test_what_is_needed_is_enough(data, tmp_path, changes):
    config = tiny.CONFIG.changed(epochs=1.0, finalists=20, mlp_finalists=20).changed(**changes)
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, config, run.scope(0), None, Progress(), "cpu")
        with pytest.raises(InputError, match="too few") as error:
            allocate(1, context)
        least = int(re.search(r"need (\d+)x", str(error.value))[1])
        allocate(least, context)
        with pytest.raises(InputError, match=rf"need {least}x, here {2 * least}s"):
            allocate(least - 1, context, unit=2.0)


def test_a_refused_budget_leaves_no_run(data, tmp_path):
    for text in ("3x", "0.001s"):
        with pytest.raises(InputError, match="too few"):
            search(data, tmp_path / "run", CONFIG, budget=text)
        assert [p.name for p in (tmp_path / "run").iterdir()] == [".lock"]
    search(data, tmp_path / "run", CONFIG, budget="11x", variants=("AMEIR-A",))
    plan = tmp_path / "run" / "checkpoint" / "budget" / "plan.json"
    plan.write_text(plan.read_text().replace('"version": 1', '"version": 9'))
    with pytest.raises(InputError, match="plan.json"):  # that costs no work
        search(data, tmp_path / "run", CONFIG, budget="11x", variants=("AMEIR-A",), resume=True)
    assert (tmp_path / "run" / "metrics.json").exists()


def test_rounded_epochs_are_timed_by_their_steps(data, tmp_path, monkeypatch):
    with RunDirectory(tmp_path / "run", {"version": 1}) as run:
        context = make_context(data, CONFIG, run.scope("budget"), None, Progress(), "cpu")
        assert context.epochs(budget.TIMED_EPOCHS) == 1 and context.task.steps_per_epoch == 5  # not 1.25
        monkeypatch.setattr(budget, "train_model", lambda *a, epochs, **k: Outcome(0, 1, context.epochs(epochs), [], 0.5, 0.5))
        assert seconds_per_training(context) == pytest.approx(0.5 * 5)


def test_one_step_alone_gets_everything(tmp_path):
    for name, make in (("sequences", tiny.prepared_sequences), ("fields", tiny.prepared_fields)):
        only = make(tmp_path / name)
        with RunDirectory(tmp_path / f"{name}-run", {"version": 1}) as run:
            context = make_context(only, CONFIG, run.scope(0), None, Progress(), "cpu")
            plan = allocate(30, context)
        races = [k for k in plan["parts"] if k.startswith("race")]
        assert len(races) == 1 and sum(plan["parts"].values()) == pytest.approx(30, abs=0.01)
        assert ("finalists" in plan["settings"]) == (name == "sequences")


def test_search_spends_it_and_resumes(data, tmp_path):
    lines = []

    class Notes(Progress):
        def note(self, text):
            lines.append(text)

    result = search(data, tmp_path / "run", CONFIG, budget="14x", variants=("AMEIR-A", "AMEIR-C"), progress=Notes())
    plan = result["budget"]
    assert plan["asked"] == "14x" and plan["seconds_per_training"] is None and plan["spent_seconds"] > 0
    assert lines[-1].startswith("budget 14x: a search took ")
    assert describe_budget(plan) in lines and "14.0 trainings" in describe_budget(plan)
    lost = overridden(plan, CONFIG, SearchConfig())
    assert f"budget 14x: it decides these settings itself, in the place of {lost}" in lines
    assert f"behavior_epochs={CONFIG.behavior_epochs}" in lost
    kept = CONFIG.changed(behavior_epochs=plan["settings"]["behavior_epochs"])
    assert overridden(plan, kept, SearchConfig()) == ", ".join(s for s in lost.split(", ") if not s.startswith("behavior_epochs="))
    assert overridden(plan, SearchConfig(), SearchConfig()) == overridden(plan, CONFIG, CONFIG) == ""
    rankings = json.loads((tmp_path / "run" / "rankings.json").read_text())
    assert len(rankings["race"]["behavior"]) == plan["settings"]["finalists"]
    assert len(rankings["race"]["mlp"]) == plan["settings"]["mlp_finalists"]
    again = search(data, tmp_path / "run", CONFIG, budget="14x", variants=("AMEIR-A", "AMEIR-C"), resume=True)
    assert again["variants"]["AMEIR-C"]["auc"] == result["variants"]["AMEIR-C"]["auc"]
    with pytest.raises(InputError, match="budget"):
        search(data, tmp_path / "run", CONFIG, budget="20x", variants=("AMEIR-A", "AMEIR-C"), resume=True)


def test_time_is_turned_into_trainings_once(data, tmp_path, monkeypatch):
    monkeypatch.setattr(budget, "MOST_FINALISTS", 6)  # the hour is not spent
    monkeypatch.setattr(budget, "MOST_CHILDREN", 20)
    run = tmp_path / "run"
    notes = []
    result = search(data, run, CONFIG, budget="1h", variants=("AMEIR-A",), progress=LineProgress(notes.append))
    plan = result["budget"]
    paced = {}
    for step in ("behavior", "mlp"):
        paced |= json.loads((run / "checkpoint" / "0" / step / "paced.json").read_text())["result"]
    assert plan["paced"] == {str(CONFIG.seed): paced} and paced["finalists"] == paced["mlp_finalists"] == 6
    assert any(note.startswith("budget 1h: 6 finalists race in step 1, over ") for note in notes)
    assert plan["trainings"] == pytest.approx(3600 / plan["seconds_per_training"])
    stored = next((run / "checkpoint" / "budget").glob("plan.json"))
    again = search(data, run, CONFIG, budget="1h", variants=("AMEIR-A",), resume=True)["budget"]
    assert again["trainings"] == plan["trainings"] and again["paced"] == plan["paced"]
    assert json.loads(stored.read_text())["result"] == {k: v for k, v in plan.items() if k not in ("spent_seconds", "paced")}
