"""The quality table on MovieLens-100K: seeds, fixed points, controls, and what the supernet's ranking is worth.

``python -m ameir_fast.bench.movielens`` (``make results``) searches once per seed, with all controls, and trains
children on their own to correlate them with their supernet scores. Everything is resumable: run it again
after an interruption. Results: ``bench/results/movielens-100k.json`` and a table beside it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import numpy as np

from .quality import (
    difference,
    environment,
    paired_differences,
    read_runs,
    run_side_by_side,
    sizes,
    variant_table,
    write_report,
)

NAME = "movielens-100k"
REFERENCES = ("DIN", "DNN", "AMEIR-B", "random children")
STEPS = ("behavior", "interactions", "mlp")
CHILDREN = 20
OTHER_RUNS = {"interactions": 2, "mlp": 1}  # trainings per child in the rank studies of steps 2 and 3


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data") / NAME, help="prepared data (prepare movielens)")
    parser.add_argument("--work", type=Path, default=Path("runs") / "results", help="run directories of the seeds")
    parser.add_argument("--seeds", type=int, default=6)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--rank-runs", type=int, default=4, help="trainings per child of step 1's rank study")
    parser.add_argument("--rank-supernets", type=int, default=3, help="supernets whose scores it averages over")
    parser.add_argument("--json", type=Path, default=Path("bench") / "results" / f"{NAME}.json")
    parser.add_argument("--collect", action="store_true", help="only make the report of what has been run")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.task:
        run_task(args)
        return 0
    tasks = [f"search:{seed}" for seed in range(args.seeds)]
    studies = [*(f"rank:behavior:{run}" for run in range(args.rank_runs)), *(f"scores:{s}" for s in supernets(args)),
               *(f"rank:{step}:{run}" for step, runs in OTHER_RUNS.items() for run in range(runs))]
    for wave in () if args.collect else (tasks, studies):  # the rank study starts from the seeds' supernets
        own = ["--data", str(args.data), "--work", str(args.work)]
        if not run_side_by_side("ameir_fast.bench.movielens", wave, own, args.work, args.jobs):
            return 1
    write_report(collect(args), args.json, as_markdown)
    return 0


def supernets(args: argparse.Namespace) -> range:
    return range(min(args.rank_supernets, args.seeds))


def run_task(args: argparse.Namespace) -> None:
    import torch

    from ameir_fast.data import Dataset
    from ameir_fast.progress import make_progress
    torch.set_num_threads(1)
    data, progress = Dataset.open(args.data), make_progress(sys.stdout)
    kind, *rest = args.task.split(":")
    if kind == "search":
        search_seed(data, args.work / f"seed-{rest[0]}", int(rest[0]), progress)
    elif kind == "scores":
        study(data, args.work, f"scores-{rest[0]}", int(rest[0]), progress, score_rows)
    else:
        rows = {"behavior": behavior_rows, "interactions": interaction_rows, "mlp": mlp_rows}[rest[0]]
        study(data, args.work, f"rank-{rest[0]}-{rest[1]}", 0, progress, lambda c: rows(c, int(rest[1])))


def settings(seed: int):
    from ameir_fast.search import SearchConfig
    return SearchConfig(seed=seed)


def search_seed(data, run: Path, seed: int, progress) -> None:
    from ameir_fast.search import search
    from ameir_fast.search.fixed import default_variants
    from ameir_fast.search.variants import CONTROLS
    search(data, run, settings(seed), resume=True, variants=(*default_variants(data.schema), *CONTROLS),
           progress=progress)


# ---- what a supernet's ranking is worth ----------------------------------------------------------------

def study(data, work: Path, name: str, seed: int, progress, make_rows) -> None:
    """``rows.json`` of a study that reads the supernets of one seed."""
    from ameir_fast.atomic import write_json
    from ameir_fast.search.driver import VERSION, make_context
    from ameir_fast.search.store import RunDirectory
    config = settings(seed)
    with RunDirectory(work / name, {"version": VERSION, "study": name, "config": config.to_dict()}, resume=True) as run:
        # A copy of the seed's checkpoints, so that the study reads supernets and changes nothing.
        copy, partial = work / name / "checkpoint", work / name / "checkpoint.partial"
        if not copy.exists():
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(work / f"seed-{seed}" / "checkpoint", partial)
            partial.rename(copy)
        context = make_context(data, config, run.scope(0), None, progress, "cpu")
        write_json(work / name / "rows.json", make_rows(context))


def behavior_children(context) -> list:
    """The same 20 paths for every supernet, drawn uniformly."""
    from ameir_fast.search.seeds import generator
    g = generator(0, "rank study", "behavior")
    return [context.behavior_child(context.space.sample_behavior(g)).canonical() for _ in range(CHILDREN)]


def behavior_rows(context, number: int) -> list[dict]:
    return trained_alone(context, behavior_children(context), number, context.task)


def score_rows(context, archs: list | None = None) -> list[dict]:
    """What one supernet says of children of step 1 (by default those of the study): with the shared weights as they are (``supernet``), and
    a finalist that stays to the last round is scored in step 1's race, the mean of the short trainings that start
    from the shared weights (``adapted``)."""
    from ameir_fast.search import behavior
    from ameir_fast.search.race import Standing, train_shortly
    behavior.train_supernet(context)
    archs = archs or behavior_children(context)
    rows = [{"supernet": f[context.primary]} for f in context.score_children(archs, None)]
    for index, (arch, row) in enumerate(zip(archs, rows, strict=True)):
        standing = Standing(arch, index)
        for epochs in context.config.race_epochs:
            train_shortly(context, context.scope.scope("adapted"), standing, epochs, inherit=True)
        row.update(adapted=standing.score, rounds=standing.rounds)
    return rows


def mlp_rows(context, number: int) -> list[dict]:
    from ameir_fast.search import behavior, interactions
    from ameir_fast.search.driver import load_winner
    from ameir_fast.search.mlp import MlpStep
    from ameir_fast.search.seeds import generator
    behavior.train_supernet(context)
    winner = load_winner(context.scope.scope("behavior", "race"), context.space.schema, context.config)
    context.net.adopt(winner)
    products = tuple(tuple(i) for i in interactions.search_interactions(context)["found"])
    step = MlpStep(context, winner.arch.behavior, products)
    step.train_supernet()
    g = generator(0, "rank study", "mlp")
    archs = [step.arch(context.space.sample_mlp(g)) for _ in range(CHILDREN)]
    return with_scores(context, archs, trained_alone(context, archs, number, context.task))


def with_scores(context, archs, rows: list[dict], scores=None) -> list[dict]:
    scores = scores or [f[context.primary] for f in context.score_children(archs, context.config.validation_subset)]
    return [{**row, "supernet": score} for row, score in zip(rows, scores, strict=True)]


def trained_alone(context, archs, number: int, task) -> list[dict]:
    """Every child trained from scratch, run ``number``."""
    from ameir_fast.search.context import fresh_model, train_model
    from ameir_fast.search.seeds import seeded_initialization
    from ameir_fast.search.variants import recompute_dice
    rows = []
    for index, arch in enumerate(archs):
        place = context.scope.scope("alone", number, index)

        def run(arch=arch, place=place) -> dict:
            with seeded_initialization(number, "alone", number, index):
                model = fresh_model(task.data.schema, arch, context.config)
            outcome = train_model(task, model, place)
            recompute_dice(task, model)
            test = task.objective.evaluate(lambda b, items: model(b, items=items), task.held_out("test"))
            return {"valid": outcome.score, "test": test[context.primary]}
        rows.append({"child": arch.to_dict(), **place.result("row", run)})
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
    return with_scores(context, archs, trained_alone(context, archs, number, task), [r["score"] for r in picks])


def rank_correlation(scores: np.ndarray, alone: np.ndarray, draws: int = 2000) -> dict:
    """Spearman's rho of ``scores`` [supernets, children] with ``alone`` [runs, children], the runs averaged: its
    mean over supernets, each one's, and the bootstrap standard error of the mean over children and supernets."""
    target, rng = alone.mean(0), np.random.default_rng(0)
    each = [spearman(s, target) for s in scores]
    again = [np.mean([spearman(scores[n][picks], target[picks]) for n in rng.integers(len(scores), size=len(scores))])
             for picks in rng.integers(len(target), size=(draws, len(target)))]
    return {"rho": float(np.mean(each)), "each": each, "standard_error": float(np.nanstd(again, ddof=1))}


def agreement(alone: np.ndarray) -> float | None:
    """Mean Spearman's rho between two of the runs [runs, children]."""
    pairs = [spearman(a, b) for i, a in enumerate(alone) for b in alone[i + 1:]]
    return float(np.mean(pairs)) if pairs else None


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
    from ameir_fast.data import Dataset
    runs = read_runs(args.work, args.seeds)
    table = variant_table(runs)
    return {"version": 1, "data": runs[0]["data"], "seeds": args.seeds, "jobs": args.jobs, "threads_per_job": 1,
            "standard_error": runs[0]["standard_error"], "config": settings(0).to_dict(), "variants": table,
            "paired_differences": paired_differences(table, REFERENCES, "auc"),
            "rank_correlation": rank_studies(args),
            "found": [r["found"][0] for r in runs], "seconds_per_search": [r["seconds"] for r in runs],
            "statistics": Dataset.open(args.data).statistics, "environment": environment(runs)}


def rank_studies(args: argparse.Namespace) -> dict:
    """Of every study that has been run."""
    def rows(names) -> list[list[dict]]:
        files = [args.work / name / "rows.json" for name in names]
        return [json.loads(f.read_text()) for f in files if f.exists()]

    def column(studies: list[list[dict]], name: str) -> np.ndarray:
        return np.array([[r[name] for r in study] for study in studies])

    found = {}
    for step in STEPS:
        alone = rows(f"rank-{step}-{n}" for n in range(OTHER_RUNS.get(step, args.rank_runs)))
        scored = rows(f"scores-{s}" for s in supernets(args)) if step == "behavior" else alone[:1]
        if not alone or not scored:
            continue
        valid = column(alone, "valid")
        found[step] = {"children": valid.shape[1], "runs": len(alone), "supernets": len(scored),
                       "deviation_between_children": float(valid.mean(0).std(ddof=1)),
                       "agreement_of_two_trainings": agreement(valid)}
        for kind in ("supernet", "adapted") if step == "behavior" else ("supernet",):
            found[step][kind] = {split: rank_correlation(column(scored, kind), column(alone, split))
                                 for split in ("valid", "test")}
    return found


def as_markdown(report: dict) -> str:
    """The tables that the README quotes."""
    env = report["environment"]
    lines = [f"# MovieLens-100K, {report['seeds']} seeds", "",
             f"{env['cpu']}, torch {env['torch']}, {report['jobs']} processes side by side with "
             f"{report['threads_per_job']} thread each, git {env['git']}, {env['date']}.",
             f"Standard error of one model's test AUC: {report['standard_error']['auc']:.4f}. "
             "± is the deviation over seeds; parameters (with their range) and samples/s are means over seeds, samples/s "
             "of one thread.", "",
             f"Every row is the better of {report['config']['runs']} full trainings from scratch by validation (`DIN "
             "inherited`: from the supernet's weights, a third as long at half the learning rate); those of AMEIR-A, "
             f"AMEIR-C and random children belong to the last {report['config']['runs']} of a race that started from {report['config']['finalists']} finalists in step 1 "
             f"and {report['config']['mlp_finalists']} in step 3, and what racing alone brings is the row `random "
             "children`. DIN is the all-zero path with sum, last and attention pooling; DNN is the only model with the user's id.", "",
             "| model | test AUC | log loss | parameters outside embedding | samples/s | AUC − DIN (paired) | wins |",
             "|---|---|---|---|---|---|---|"]
    for name, e in report["variants"].items():
        paired, wins = difference(report["paired_differences"].get(f"{name} - DIN"))
        lines.append(f"| {name} | {e['auc']['mean']:.4f} ± {e['auc']['std']:.4f} | {e['log_loss']['mean']:.4f} ± "
                     f"{e['log_loss']['std']:.4f} | {sizes(e['parameters_outside_embedding'])} | "
                     f"{np.mean(e['samples_per_s']):,.0f} | {paired} | {wins} |")
    lines.append("")
    for label, key in (("DNN without history", "DNN"), ("DIN", "DIN"), ("AMEIR-B", "AMEIR-B"),
                       ("random children", "random children")):
        paired, wins = difference(report["paired_differences"][f"AMEIR-C - {key}"])
        lines.append(f"AMEIR-C − {label}: {paired}, wins {wins}.")
    lines += ["", "Rank correlation (Spearman, bootstrap standard error over children and supernets) of what a search knows of "
              f"{CHILDREN} children with their validation and test AUC when each is trained on its own from scratch. "
              "Step 1 has two scores: the shared weights as they are, and after adaptation, the score of a finalist "
              "that stays to the last round of its race (the mean over short trainings that start from the shared "
              "weights, " + ", ".join(f"{e:g}" for e in report["config"]["race_epochs"]) + " epochs).", "",
              "| step | score | supernets | trainings per child | on validation | on test | deviation between children "
              "(validation AUC) | two trainings agree |", "|---|---|---|---|---|---|---|---|"]
    labels = {"supernet": "shared weights", "adapted": "after adaptation"}
    by_crosses = report["config"]["interaction_ranking"] != "shared"
    for step in STEPS:
        r = report["rank_correlation"].get(step)
        if r is None:
            lines.append(f"| {step} | – | – | – | not measured | not measured | – | – |")
            continue
        agree = "–" if r["agreement_of_two_trainings"] is None else f"{r['agreement_of_two_trainings']:+.2f}"
        for kind in (k for k in labels if k in r):
            v, t = r[kind]["valid"], r[kind]["test"]
            label = "crosses" if step == "interactions" and by_crosses else labels[kind]
            lines.append(f"| {step} | {label} | {r['supernets']} | {r['runs']} | {v['rho']:+.2f} ± "
                         f"{v['standard_error']:.2f} | {t['rho']:+.2f} ± {t['standard_error']:.2f} | "
                         f"{r['deviation_between_children']:.4f} | {agree} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
