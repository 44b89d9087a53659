"""The search: three steps, races between finalists, retraining, the result table (paper section 2.3)."""

from __future__ import annotations

import statistics
import time
from pathlib import Path

from ..atomic import write_json
from ..errors import InputError
from ..model import Model
from ..progress import Progress, show_seconds
from ..space import Architecture, SearchSpace
from . import behavior, interactions
from .budget import Budget, describe_budget, overridden, paced, split
from .config import SearchConfig
from .context import Context, fresh_supernet, require_backend
from .controls import control_rows
from .environment import describe
from .fixed import FIXED_POINTS, applicable, fixed_point
from .mlp import MlpStep
from .objective import ERROR, make_objective
from .seeds import seeded_initialization
from .store import RunDirectory, Scope
from .strategy import RandomStrategy, Strategy
from .training import Task, ranking_of, require_rows
from .variants import CONTROLS, DEEPFM_FOUND, INHERITED, ameir_i, complete, race_row

RACED = ("AMEIR-A", "AMEIR-C")
#: Of a run directory: 2 since interactions are ranked by training and validation rows, 3 since what the two agree on of
#: single fields is taken out.
VERSION = 3


def search(data, run_dir: str | Path, config: SearchConfig | None = None, *, repeats: int = 1, resume: bool = False,
           overwrite: bool = False, strategy: Strategy | None = None, variants: tuple[str, ...] | None = None,
           progress: Progress | None = None, device: str = "cpu", budget: str | None = None) -> dict:
    """Searches a complete model for ``data`` and fills the run directory; returns ``metrics.json``'s content.

    Repeat r uses seed ``config.seed + r``; the files at the top are those of the repeat whose found model
    validates best. A killed run continues with ``resume=True`` and ends with the same result. Steps whose
    features the data lacks are left out: without behaviour fields steps 2 and 3 remain, without other fields
    step 1. ``config`` is by default that of the data's task. ``variants`` are the rows of the table, by default those of ``fixed.default_variants``.
    ``budget``, such as ``"30m"`` or ``"40x"`` (of one model's full training), is what the search of one repeat may cost; rows of the table
    that no race trains (AMEIR-B, AMEIR-I, models by hand, controls) come on top. It decides the settings of training, ranking and races
    (``budget.split``), whatever ``config`` says of them. Raises ``InputError`` for wrong settings, an unknown variant, data with
    an empty split or labels of one kind, or a directory in use.
    """
    config, progress = config or SearchConfig.for_task(data.task), progress or Progress()
    variants = applicable(data.schema, variants)
    if repeats < 1:
        raise InputError(f"repeats is {repeats}, not at least 1")
    spending = None if budget is None else Budget.parse(budget)
    identity = {"version": VERSION, **({} if spending is None else {"budget": spending.text}), "config": config.to_dict(), "repeats": repeats, "variants": list(variants),
                "strategy": describe_strategy(strategy or RandomStrategy()), "data": data_identity(data),
                "device": device}
    space_of(data, config)  # refuses impossible settings before anything is written
    require_backend(config, device)
    require_rows(data)
    with RunDirectory(run_dir, identity, resume=resume, overwrite=overwrite) as run:
        began = time.perf_counter()
        plan = None
        if spending is not None:
            try:
                plan = run.scope("budget").result("plan", lambda: split(
                    spending, make_context(data, config, run.scope("budget"), strategy, progress, device)))
            except InputError:
                if not resume:
                    run.clear()  # too small a budget: another one may have the directory
                raise
            progress.note(describe_budget(plan))
            if lost := overridden(plan, config, SearchConfig.for_task(data.task)):
                progress.note(f"budget {plan['asked']}: it decides these settings itself, in the place of {lost}")
            config = config.changed(**plan["settings"])
        found = []
        for repeat in range(repeats):
            seeded = config.changed(seed=config.seed + repeat)
            context = make_context(data, seeded, run.scope(repeat), strategy, progress, device)
            found.append(search_once(context, variants, plan))
        result = summarize(found, variants, config, data, device)
        spent = sum(step["seconds"] for f in found for step in f["steps"].values())
        searching = sum(step["seconds"] for f in found for name, step in f["steps"].items() if name != "retrain")
        if plan is not None:
            result["budget"] = {**plan, "spent_seconds": round(searching / repeats, 3)}
            progress.note(f"budget {plan['asked']}: a search took {show_seconds(searching / repeats)}")
        result["seconds"] = round(max(time.perf_counter() - began, spent), 3)  # of all sessions of a resumed run
        best = max(range(repeats), key=lambda r: found[r]["valid"])
        publish(run, run.scope(best), data, config, found[best], result)
    return result


def describe_strategy(strategy: Strategy) -> str:
    """A strategy's class and what its attributes say, so that a resume notices another one."""
    settings = ", ".join(f"{k}={v!r}" for k, v in sorted(vars(strategy).items()))
    return f"{type(strategy).__module__}.{type(strategy).__qualname__}({settings})"


def data_identity(data) -> dict:
    return {"kind": data.kind, "checksum": data.checksum}


def space_of(data, config: SearchConfig) -> SearchSpace:
    if config.interaction_ranking == "crosses" and data.task != "ctr":
        raise InputError("config: interaction_ranking 'crosses' needs a click label, which this data lacks")
    return SearchSpace(data.schema, config.blocks, config.mlp_layers, config.interactions, config.embedding_dim)


def make_context(data, config: SearchConfig, scope, strategy, progress: Progress, device: str) -> Context:
    """The supernet at its seeded start and everything the steps need."""
    space = space_of(data, config)
    with seeded_initialization(config.seed, *scope.names, "supernet"):
        net = fresh_supernet(space, config).to(device)
    task = Task(data, make_objective(data.schema, config), config, progress, device)
    return Context(task, net.space, net, scope, strategy or RandomStrategy())


def search_once(context: Context, variants: tuple[str, ...], plan: dict | None = None) -> dict:
    """One repeat: the found architectures, rankings, steps' costs and the variants' rows. ``plan``: of its budget."""
    steps, rankings, rows, found = {}, {"version": 1, "race": {}}, {}, {}
    schema, primary = context.space.schema, context.primary
    blocks: tuple = ()
    winner = None
    controls = [v for v in variants if v in CONTROLS]
    if schema.behavior:
        blocks, winner = behavior_step(context, steps, rankings, rows, found, plan)
        if INHERITED in controls:  # what inheritance alone brings
            rows[INHERITED] = complete(context, INHERITED, context.behavior_child(context.zero_path()), inherit=True)
        # Steps 2 and 3 build on the found blocks as the race left them, trained.
        context.net.adopt(load_winner(context.scope.scope("behavior", "race"), schema, context.config))
    if schema.fields:
        began = time.perf_counter()
        two = interactions.search_interactions(context)
        rankings["interactions"] = two["ranking"]
        steps["interactions"] = context.scope.result("cost-interactions", lambda: {
            **timing(began, two), "candidates_ranked": two["candidates_ranked"], "cycles": context.config.cycles,
            "train_steps": two["train_steps"]})
        products = tuple(tuple(i) for i in two["found"])
        found["AMEIR-B"] = Architecture(blocks, products, context.fixed, "se")
        if "AMEIR-B" in variants:
            rows["AMEIR-B"] = complete(context, "AMEIR-B", found["AMEIR-B"])
        if DEEPFM_FOUND in variants:
            rows[DEEPFM_FOUND] = ameir_i(context, products)
        winner = mlp_step(context, blocks, products, steps, rankings, rows, found, plan)
        rows.update(control_rows(context, controls, blocks, products))
    rows.update({name: fixed_point(context, name) for name in variants if name in FIXED_POINTS})
    others = [row for name, row in rows.items() if name not in RACED]  # the races' trainings are counted there
    steps["retrain"] = {key: round(sum(row[key] for row in others), 3) for key in ("seconds", "device_seconds")}
    return {"found": found, "steps": steps, "rankings": rankings, "valid": winner["valid"],
            "rows": {v: rows[v] for v in variants if v in rows}, "primary": primary}


def behavior_step(context: Context, steps: dict, rankings: dict, rows: dict, found: dict,
                  plan: dict | None = None) -> tuple[tuple, dict]:
    """Step 1 with its race; the winner is AMEIR-A."""
    began = time.perf_counter()
    trained = behavior.train_supernet(context)
    ranking = rankings["behavior"] = behavior.rank(context)
    steps["behavior"] = context.scope.result("cost-behavior", lambda: {
        **timing(began, trained), "children_ranked": len(ranking), "train_steps": trained["train_steps"],
        "best_score": ranking[0]["score"]})
    standings = behavior.hold_race(paced(context, plan, steps, "behavior"), ranking)
    rankings["race"]["behavior"] = race_report(standings)
    scope = context.scope.scope("behavior", "race")
    rows["AMEIR-A"] = race_row(context, scope, standings)
    steps["race"] = race_cost(standings)
    found["AMEIR-A"] = standings[0].arch
    return standings[0].arch.behavior, rows["AMEIR-A"]


def mlp_step(context: Context, blocks, products, steps: dict, rankings: dict, rows: dict, found: dict,
             plan: dict | None = None) -> dict:
    """Step 3 with its race; the winner is AMEIR-C."""
    began = time.perf_counter()
    step = MlpStep(context, blocks, products)
    trained = step.train_supernet()
    ranking = rankings["mlp"] = step.rank()
    steps["mlp"] = context.scope.result("cost-mlp", lambda: {
        **timing(began, trained), "children_ranked": len(ranking), "train_steps": trained["train_steps"],
        "best_score": ranking[0]["score"]})
    step.context = paced(context, plan, steps, "mlp")
    standings = step.hold_race(ranking)
    rankings["race"]["mlp"] = race_report(standings)
    rows["AMEIR-C"] = race_row(context, step.scope.scope("race"), standings)
    found["AMEIR-C"] = standings[0].arch
    own, first = race_cost(standings), steps.get("race", {})
    steps["race"] = {key: first.get(key, 0) + own[key] for key in own}
    return rows["AMEIR-C"]


def race_report(standings) -> list[dict]:
    return [{"finalist": s.arch.to_dict(), "rounds": s.rounds, "parameters_outside_embedding": s.parameters,
             "kept": i == 0} for i, s in enumerate(standings)]


def timing(began: float, trained: dict) -> dict:
    """Seconds since ``began``, or where earlier sessions of a resumed run did a part, at least the trainings'."""
    return {"seconds": round(max(time.perf_counter() - began, trained["seconds"]), 3),
            "device_seconds": round(trained["device_seconds"], 3)}


def race_cost(standings) -> dict:
    """Of all trainings in a race, by how many sessions they were done."""
    return {"seconds": round(sum(s.seconds for s in standings), 3),
            "device_seconds": round(sum(s.device_seconds for s in standings), 3), "finalists": len(standings)}


def summarize(found: list[dict], variants, config: SearchConfig, data, device: str) -> dict:
    """``metrics.json``: mean and deviation over repeats, runs aligned so that differences can be paired."""
    table = {}
    for name in found[0]["rows"]:
        rows = [f["rows"][name] for f in found]
        entry = {}
        for key in rows[0]:
            values = [r[key] for r in rows]
            if key in ("parameters", "parameters_outside_embedding"):
                entry[key] = round(statistics.mean(values))
                entry[f"{key}_runs"] = values
            elif key in ("samples_per_s", "seconds", "device_seconds") or key.endswith(ERROR):
                entry[key] = statistics.mean(values)
            else:
                entry[key] = {"mean": statistics.mean(values),
                              "std": statistics.stdev(values) if len(values) > 1 else 0.0, "runs": values}
        entry["run_seeds"] = [config.seed + r for r in range(len(found))]
        table[name] = entry
    primary = found[0]["primary"]
    errors = [e[primary + ERROR] for e in table.values() if primary + ERROR in e]
    return {"version": 1, "data": {**data_identity(data), "rows": sum(data.size(s) for s in data.splits),
                                   "splits": {s: data.size(s) for s in data.splits}, **ranking_of(data),
                                   "statistics": data.statistics},
            "variants": table, "standard_error": {primary: max(errors)} if errors else {},
            "steps": mean_costs([f["steps"] for f in found]), "found": [{k: a.to_dict() for k, a in f["found"].items()} for f in found],
            "environment": describe(device, config.backend)}


def mean_costs(steps: list[dict]) -> dict:
    """Each step's costs, averaged over repeats."""
    return {name: {key: round(statistics.mean(s[name][key] for s in steps), 3) for key in steps[0][name]}
            for name in steps[0]}


def publish(run: RunDirectory, scope, data, config: SearchConfig, found: dict, result: dict) -> None:
    """The run directory's files, the best repeat's architecture and model among them."""
    step = "mlp" if "AMEIR-C" in found["found"] else "behavior"
    model = load_winner(scope.scope(step, "race"), data.schema, config)
    model.save(run.path / "model")
    write_json(run.path / "rankings.json", found["rankings"])
    model.arch.save(run.path / "architecture.json")
    write_json(run.path / "metrics.json", result)


def load_winner(race: Scope, schema, config: SearchConfig) -> Model:
    """The trained model of a race's winner."""
    tensors, about = race.load_tensors("winner")
    model = Model(schema, Architecture.from_dict(about["architecture"]), config.embedding_dim, config.backend)
    model.load_state_dict(tensors)
    return model
