"""The quality table on MovieLens-100K: seeds, fixed points, controls, and what the supernet's ranking is worth.

``python -m ameir_fast.bench.movielens`` (``make results``) searches once per seed, with all controls, and trains
children on their own to correlate them with their supernet scores. Everything is resumable: run it again
after an interruption. Results: ``bench/results/movielens-100k.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

NAME = "movielens-100k"
REFERENCES = ("DIN", "DNN", "random children")
STEPS = ("behavior", "interactions", "mlp")
CHILDREN = 20


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data") / NAME, help="prepared data (prepare movielens)")
    parser.add_argument("--work", type=Path, default=Path("runs") / "results", help="run directories of the seeds")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--rank-runs", type=int, default=2, help="trainings per child of the rank study")
    parser.add_argument("--json", type=Path, default=Path("bench") / "results" / f"{NAME}.json")
    parser.add_argument("--collect", action="store_true", help="only make the report of what has been run")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task:
        run_task(args)
        return 0
    tasks = [f"search:{seed}" for seed in range(args.seeds)]
    studies = [f"rank:{step}:{run}" for step in STEPS for run in range(args.rank_runs)]
    with ThreadPoolExecutor(args.jobs) as pool:
        for wave in () if args.collect else (tasks, studies):  # the rank study starts from the first seed's supernets
            for task, code in zip(wave, pool.map(lambda t: call(args, t), wave), strict=True):
                if code:
                    print(f"error: {task} failed", file=sys.stderr)
                    return 1
    report = collect(args)
    from ameir_fast.atomic import write_json, write_text
    args.json.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.json, report)
    text = as_markdown(report)
    write_text(args.json.with_suffix(".md"), text)
    print(text)
    return 0


def call(args: argparse.Namespace, task: str) -> int:
    """One task in a process of its own; its output goes to a log beside the runs."""
    args.work.mkdir(parents=True, exist_ok=True)
    print(f"{task}: started", flush=True)
    with open(args.work / f"{task.replace(':', '-')}.log", "w") as log:
        code = subprocess.run([sys.executable, "-m", "ameir_fast.bench.movielens", "--task", task, "--data",
                               str(args.data), "--work", str(args.work)], stdout=log, stderr=subprocess.STDOUT,
                              check=False).returncode
    print(f"{task}: {'done' if code == 0 else 'failed, see its log'}", flush=True)
    return code


def run_task(args: argparse.Namespace) -> None:
    import torch

    from ameir_fast.data import Dataset
    from ameir_fast.progress import make_progress
    torch.set_num_threads(1)
    data, progress = Dataset.open(args.data), make_progress(sys.stdout)
    kind, *rest = args.task.split(":")
    if kind == "search":
        search_seed(data, args.work / f"seed-{rest[0]}", int(rest[0]), progress)
    else:
        study(data, args.work, rest[0], int(rest[1]), progress)


def settings(seed: int):
    from ameir_fast.search import SearchConfig
    return SearchConfig(seed=seed)


def search_seed(data, run: Path, seed: int, progress) -> None:
    from ameir_fast.search import search
    from ameir_fast.search.driver import DEFAULT_VARIANTS
    from ameir_fast.search.variants import CONTROLS
    search(data, run, settings(seed), resume=True, variants=(*DEFAULT_VARIANTS, *CONTROLS), progress=progress)


# ---- what a supernet's ranking is worth ----------------------------------------------------------------

def study(data, work: Path, step: str, number: int, progress) -> None:
    """Trains 20 children of one step on their own (seed ``number``) and notes their supernet scores."""
    from ameir_fast.search.driver import make_context
    from ameir_fast.search.store import RunDirectory
    config = settings(0)
    # A copy of the first seed's checkpoints, so that the study reads supernets and changes nothing.
    source, target = work / "seed-0" / "checkpoint", work / f"rank-{step}-{number}"
    with RunDirectory(target, {"version": 1, "study": step, "number": number}, resume=True) as run:
        link = target / "checkpoint"
        if not link.exists():
            import shutil
            shutil.copytree(source, link)
        context = make_context(data, config, run.scope(0), None, progress, "cpu")
        rows = {"behavior": behavior_rows, "interactions": interaction_rows, "mlp": mlp_rows}[step](context, number)
        from ameir_fast.atomic import write_json
        write_json(target / "rows.json", rows)


def behavior_rows(context, number: int) -> list[dict]:
    """Also what adaptation brings: every child derived, its validation after the race's first quarter epoch
    (``adapted``) and after a whole retraining (``derived``, ``derived_test``)."""
    from ameir_fast.search import behavior
    from ameir_fast.search.context import train_model
    from ameir_fast.search.seeds import generator
    from ameir_fast.search.variants import test_row
    behavior.train_supernet(context)
    g = generator(0, "rank study", "behavior")
    archs = [context.behavior_child(context.space.sample_behavior(g)).canonical() for _ in range(CHILDREN)]
    rows = scored_and_trained(context, archs, number, context.task)
    for index, (arch, row) in enumerate(zip(archs, rows, strict=True)):
        place = context.scope.scope("derived", number, index)

        def run(arch=arch, place=place) -> dict:
            model = context.net.derive(arch)
            outcome = train_model(context.task, model, place, inherit=True)
            return {"adapted": outcome.curve[0][f"valid_{context.primary}"], "derived": outcome.score,
                    "derived_test": test_row(context.task, model)[context.primary]}
        row.update(place.result("row", run))
    return rows


def mlp_rows(context, number: int) -> list[dict]:
    from ameir_fast.search import behavior, interactions
    from ameir_fast.search.mlp import MlpStep
    from ameir_fast.search.seeds import generator
    behavior.train_supernet(context)
    found = behavior.hold_race(context, behavior.rank(context))[0]
    products = tuple(tuple(i) for i in interactions.search_interactions(context)["found"])
    step = MlpStep(context, found.arch.behavior, products)
    step.train_supernet()
    g = generator(0, "rank study", "mlp")
    return scored_and_trained(context, [step.arch(context.space.sample_mlp(g)) for _ in range(CHILDREN)], number,
                              context.task)


def scored_and_trained(context, archs, number: int, task, scores=None) -> list[dict]:
    from ameir_fast.model import Model
    from ameir_fast.search.context import train_model
    from ameir_fast.search.seeds import seeded_initialization
    from ameir_fast.search.variants import test_row
    scores = scores or [f[context.primary] for f in context.score_children(archs, context.config.validation_subset)]
    rows = []
    for index, (arch, score) in enumerate(zip(archs, scores, strict=True)):
        place = context.scope.scope("alone", number, index)

        def run(arch=arch, place=place) -> dict:
            with seeded_initialization(number, "alone", number, index):
                model = Model(task.data.schema, arch, context.config.embedding_dim)
            outcome = train_model(task, model, place)
            return {"valid": outcome.score, "test": test_row(task, model)[context.primary]}
        rows.append({"child": arch.to_dict(), "supernet": score, **place.result("row", run)})
    return rows


def interaction_rows(context, number: int) -> list[dict]:
    """Children of step 2: one interaction over the fields, no history, the fixed MLP."""
    from ameir_fast.search import behavior, interactions
    from ameir_fast.search.context import FIXED
    from ameir_fast.search.objective import make_objective
    from ameir_fast.search.training import Task
    from ameir_fast.space import Architecture
    behavior.train_supernet(context)
    ranking = [r for r in interactions.search_interactions(context)["ranking"] if len(r["fields"]) >= 2]
    picks = [ranking[round(i * (len(ranking) - 1) / (CHILDREN - 1))] for i in range(CHILDREN)]
    archs = [Architecture((), (tuple(r["fields"]),), FIXED, "none") for r in picks]
    data = context.task.data.select(behavior=False)
    task = Task(data, make_objective(data.schema, context.config), context.config, context.task.progress, "cpu")
    return scored_and_trained(context, archs, number, task, [r["score"] for r in picks])


def rank_correlation(x: np.ndarray, y: np.ndarray, draws: int = 2000) -> dict:
    """Spearman's rho with its bootstrap standard error over children."""
    rng = np.random.default_rng(0)
    picks = rng.integers(len(x), size=(draws, len(x)))
    again = np.array([spearman(x[p], y[p]) for p in picks])
    return {"rho": spearman(x, y), "standard_error": float(np.nanstd(again, ddof=1))}


def spearman(x: np.ndarray, y: np.ndarray) -> float:
    """Correlation of ranks, ties averaged; NaN when one side is constant."""
    def ranks(v: np.ndarray) -> np.ndarray:
        _, place, count = np.unique(v, return_inverse=True, return_counts=True)
        return (np.cumsum(count) - (count - 1) / 2)[place]
    a, b = ranks(x), ranks(y)
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


# ---- the report ----------------------------------------------------------------------------------------

def collect(args: argparse.Namespace) -> dict:
    from ameir_fast import metrics
    from ameir_fast.data import Dataset
    from ameir_fast.search.environment import describe
    data = Dataset.open(args.data)
    runs = [json.loads((args.work / f"seed-{s}" / "metrics.json").read_text()) for s in range(args.seeds)]
    table, differences = {}, {}
    for name in runs[0]["variants"]:
        rows = [r["variants"][name] for r in runs]
        entry = {}
        for metric in ("auc", "log_loss", "valid"):
            values = [r[metric]["runs"][0] for r in rows]
            entry[metric] = {"mean": float(np.mean(values)), "std": float(np.std(values, ddof=1)) if len(values) > 1
                             else 0.0, "runs": values}
        entry["parameters_outside_embedding"] = [r["parameters_outside_embedding"] for r in rows]
        entry["parameters"] = [r["parameters"] for r in rows]
        entry["samples_per_s"] = [r["samples_per_s"] for r in rows]
        table[name] = entry
    for reference in REFERENCES:
        for name, entry in table.items():
            if name != reference:
                mean, error, wins, count = metrics.paired(entry["auc"]["runs"], table[reference]["auc"]["runs"])
                differences[f"{name} - {reference}"] = {"mean": mean, "standard_error": error, "wins": wins, "of": count}
    ranks = {}
    for step in STEPS:
        files = [args.work / f"rank-{step}-{n}" / "rows.json" for n in range(args.rank_runs)]
        studies = [json.loads(f.read_text()) for f in files if f.exists()]
        if not studies:
            continue
        score = np.array([r["supernet"] for r in studies[0]])
        ranks[step] = {}
        for split in ("valid", "test"):
            alone = np.array([[r[split] for r in rows] for rows in studies])
            ranks[step][split] = {**rank_correlation(score, alone.mean(0)), "children": len(score),
                                  "deviation_between_children": float(alone.mean(0).std(ddof=1)),
                                  "agreement_of_two_trainings": spearman(alone[0], alone[1]) if len(alone) > 1 else None}
        if step == "behavior" and len(studies) > 1:
            ranks["adaptation"] = adaptation(studies)
    return {"version": 1, "data": runs[0]["data"], "seeds": args.seeds, "jobs": args.jobs, "threads_per_job": 1,
            "standard_error": runs[0]["standard_error"], "config": settings(0).to_dict(), "variants": table,
            "paired_differences": differences, "rank_correlation": ranks,
            "found": [r["found"][0] for r in runs], "seconds_per_search": [r["seconds"] for r in runs],
            "statistics": data.statistics, "environment": describe()}


def adaptation(studies: list[list[dict]]) -> dict:
    """Step 1's scores before and after a quarter epoch of adaptation, against trainings in another data order."""
    def column(n: int, name: str) -> np.ndarray:
        return np.array([r[name] for r in studies[n]])
    other = len(studies) - 1
    found = {}
    for kind in ("supernet", "adapted"):
        for target in ("derived", "derived_test", "valid", "test"):
            found[f"{kind} ~ {target}"] = rank_correlation(column(0, kind), column(other, target))
    found["derived ~ derived"] = rank_correlation(column(0, "derived"), column(other, "derived"))
    return found


def as_markdown(report: dict) -> str:
    """The tables that the README quotes."""
    env = report["environment"]
    lines = [f"# MovieLens-100K, {report['seeds']} seeds", "",
             f"{env['cpu']}, torch {env['torch']}, {report['jobs']} processes side by side with "
             f"{report['threads_per_job']} thread each, git {env['git']}, {env['date']}.",
             f"Standard error of one model's test AUC: {report['standard_error']['auc']:.4f}. "
             "± is the deviation over seeds; parameters and samples/s are means (one thread a model).", "",
             f"Every hand-made model is the better of {report['config']['runs']} full trainings by validation. AMEIR-A "
             f"is picked among as many that finish its race; AMEIR-C and random children among their race's winner and as many "
             f"retrainings of it, so they have had more looks at validation than the hand-made ones. A race starts from {report['config']['finalists']} finalists, and "
             "what that alone brings is the row `random children`. DIN is the all-zero path with sum, last and attention "
             "pooling; DNN is the only model with the user's id.", "",
             "| model | test AUC | log loss | parameters outside embedding | samples/s | AUC − DIN (paired) | wins |",
             "|---|---|---|---|---|---|---|"]
    for name, e in report["variants"].items():
        d = report["paired_differences"].get(f"{name} - DIN")
        paired = f"{d['mean']:+.4f} ± {d['standard_error']:.4f}" if d else "–"
        wins = f"{d['wins']}/{d['of']}" if d else "–"
        lines.append(f"| {name} | {e['auc']['mean']:.4f} ± {e['auc']['std']:.4f} | {e['log_loss']['mean']:.4f} ± "
                     f"{e['log_loss']['std']:.4f} | {np.mean(e['parameters_outside_embedding']):,.0f} | "
                     f"{np.mean(e['samples_per_s']):,.0f} | {paired} | {wins} |")
    c = report["paired_differences"].get("AMEIR-C - random children")
    d = report["paired_differences"].get("AMEIR-C - DNN")
    lines += ["", f"AMEIR-C − DNN without history: {d['mean']:+.4f} ± {d['standard_error']:.4f}, wins {d['wins']}/{d['of']}.",
              f"AMEIR-C − random children: {c['mean']:+.4f} ± {c['standard_error']:.4f}, wins {c['wins']}/{c['of']}.", "",
              "Rank correlation (Spearman, bootstrap standard error) of supernet scores with children trained on their own:",
              "", "| step | on validation | on test | deviation between children (validation AUC) | two trainings agree |",
              "|---|---|---|---|---|"]
    for step in STEPS:
        if step not in report["rank_correlation"]:
            lines.append(f"| {step} | not measured | not measured | – | – |")
            continue
        r = report["rank_correlation"][step]
        v, t = r["valid"], r["test"]
        agree = "–" if v["agreement_of_two_trainings"] is None else f"{v['agreement_of_two_trainings']:+.2f}"
        lines.append(f"| {step} | {v['rho']:+.2f} ± {v['standard_error']:.2f} | {t['rho']:+.2f} ± "
                     f"{t['standard_error']:.2f} | {v['deviation_between_children']:.4f} | {agree} |")
    a = report["rank_correlation"].get("adaptation")
    if a is None:
        return "\n".join(lines) + "\n"
    lines += ["", "Step 1, before and after adaptation (a quarter epoch of the child's own training from the shared weights, "
              "which is how the race scores it), against trainings of the same children in another data order:", "",
              "| score | derived and retrained, validation | same, test | from scratch, validation | same, test |",
              "|---|---|---|---|---|"]
    for kind, label in (("supernet", "shared weights as they are"), ("adapted", "after adaptation")):
        cells = [a[f"{kind} ~ {t}"] for t in ("derived", "derived_test", "valid", "test")]
        lines.append(f"| {label} | " + " | ".join(f"{c['rho']:+.2f} ± {c['standard_error']:.2f}" for c in cells) + " |")
    d = a["derived ~ derived"]
    lines += ["", f"Two retrainings of the same derived children agree at {d['rho']:+.2f} ± {d['standard_error']:.2f} "
              "(validation): what no score can be expected to exceed."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
