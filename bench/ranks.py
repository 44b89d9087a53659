"""Why retrieval models stand in another order against sampled items than among all items.

``python -m ameir_fast.bench.ranks --data DIR --name NAME`` trains models by hand as ``ameir-fast search`` does (one
training each, one seed) and writes ``bench/results/NAME.json`` and a page beside it: the three kinds of NDCG@5 epoch by
epoch on validation rows; and of the weights that validation keeps, on test rows, HR@k for k from 1 to 20,000, what becomes
of items that are rare or popular in training rows, how far scores follow popularity, and what taking some of it out does.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .quality import RESULTS, run_side_by_side, table_of, write_report

CUTS = (1, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000)
COUNTS = (0, 1, 5, 10, 20, 40, 80)  # training rows of a test row's item: groups from one to the next
SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)  # of log popularity, taken from scores
KINDS = {"all": "all items", "uniform100": "100 uniform", "popular100": "100 popular"}


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="prepared data of the retrieval task")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--work", type=Path, help="where trainings are kept, to go on after an interruption (default: runs/ranks/NAME)")
    parser.add_argument("--models", default="DIN,SASRec", metavar="M,…", help="models by hand (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--config", metavar="FILE", help="settings as JSON")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="one setting; may be repeated")
    parser.add_argument("--task", metavar="MODEL", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.work = args.work or Path("runs") / "ranks" / args.name
    models = [name.strip() for name in args.models.split(",")]
    for name in models:
        if name not in builders():
            parser.error(f"--models: {name} is none of {', '.join(builders())}")
    open_task(args)
    if args.task is not None:
        train(args, args.task)
        return 0
    if not run_side_by_side("ameir_fast.bench.ranks", models, argv, args.work, args.jobs):
        return 1
    write_report(collect(args, models), RESULTS / f"{args.name}.json", as_markdown)
    return 0


# ---- training ------------------------------------------------------------------------------------------

def builders() -> dict:
    """Models by hand that are trained, each from (schema, config)."""
    from ameir_fast.baselines import GRU4Rec, NextItNet, SASRec
    from ameir_fast.search.context import fresh_model
    from ameir_fast.space import Architecture
    from ameir_fast.space.architecture import ZERO, fixed_mlp
    from ameir_fast.supernet import FIXED_WIDTHS

    def plain(schema, config):
        mlp = fixed_mlp(*FIXED_WIDTHS, activation=config.mlp_activation)
        return fresh_model(schema, Architecture((ZERO,) * config.blocks, (), mlp, "none"), config)

    by_width = {"GRU4Rec": GRU4Rec, "SASRec": SASRec, "NextItNet": NextItNet}
    return {"DIN": plain, **{name: lambda schema, config, make=make: make(schema, config.embedding_dim)
                             for name, make in by_width.items()}}


def settings(args: argparse.Namespace):
    from ameir_fast.cli.run import make_config
    return make_config(args.config, args.set, seed=args.seed, task="retrieval")


def open_task(args: argparse.Namespace):
    from ameir_fast.data import Dataset
    from ameir_fast.errors import InputError
    from ameir_fast.progress import make_progress
    from ameir_fast.search.objective import make_objective
    from ameir_fast.search.training import Task
    data, config = Dataset.open(args.data), settings(args)
    if data.task != "retrieval":
        raise InputError(f"{args.data}: is not data of the retrieval task")
    return Task(data, make_objective(data.schema, config), config, make_progress(sys.stdout))


def train(args: argparse.Namespace, name: str) -> None:
    """One training of one model; what it is judged by is stored beside its states."""
    import torch

    from ameir_fast.atomic import write_json
    from ameir_fast.search.seeds import seeded_initialization
    from ameir_fast.search.store import RunDirectory
    from ameir_fast.search.training import fit
    torch.set_num_threads(1)
    task = open_task(args)
    config, schema = task.config, task.data.schema
    identity = {"version": 1, "config": config.to_dict(), "data": {"checksum": task.data.checksum}}
    with RunDirectory(args.work / name, identity, resume=True) as run:
        scope = run.scope(0, name)
        with seeded_initialization(config.seed, *scope.names, "model"):
            model = builders()[name](schema, config)
        model.dropout, model.block_dropout = config.dropout, config.block_dropout
        call = lambda batch, items: model(batch, items=items)
        outcome = fit(task, model, scope, total=round(config.epochs * task.steps_per_epoch),
                      learning_rate=config.learning_rate, forward=lambda step, batch, items: model(batch, items=items),
                      validate=lambda: task.test(call, "valid"))
        curve = [{"epoch": entry["step"] / task.steps_per_epoch,
                  **{kind: entry["valid_ndcg@5" + ("" if kind == "all" else f"_{kind}")] for kind in KINDS}} for entry in outcome.curve]
        write_json(run.path / "result.json", {"curve": curve, "kept": outcome.step / task.steps_per_epoch,
                                              **judged(task, model)})


# ---- ranks ---------------------------------------------------------------------------------------------

def judged(task, model) -> dict:
    """Of the test rows: the three kinds of metrics, HR@k, groups of items, popularity in scores and without."""
    import torch

    from ameir_fast.ranking import rank_counts, rank_metrics, row_metrics
    from ameir_fast.search.objective import EVALUATION_BATCH, NEGATIVES, SAMPLED
    batches = task.held_out("test")
    drawn = {"all": [None] * len(batches)}
    for kind, popular in SAMPLED.items():
        drawn[kind] = list(task.data.candidates("test", EVALUATION_BATCH, NEGATIVES, popular=popular))
    rows = torch.from_numpy(np.maximum(task.data.popularity(), 0.5)).log().float()

    def ranks(share: float) -> dict[str, torch.Tensor]:
        """Counts of each kind for scores from which ``share`` times the log of an item's training rows is taken."""
        found = {kind: [] for kind in KINDS}
        for at, batch in enumerate(batches):
            def count(users, items, at=at, batch=batch):
                users = torch.cat([users, users.new_full((len(users), 1), -share)], 1)
                items = torch.cat([items, rows[:, None]], 1)
                for kind in KINDS:
                    seen = (batch.seen_offsets, batch.seen) if kind == "all" and batch.seen is not None else None
                    found[kind].append(rank_counts(users, items, batch.items, drawn[kind][at], seen))
                return users
            model(batch, items=count)
        return {kind: torch.cat(counts) for kind, counts in found.items()}

    with torch.no_grad():
        without = {share: ranks(share) for share in SHARES}
        correlation = score_popularity(model, batches, rows, task.data.popularity())
    plain = without[0.0]
    own = task.data.popularity()[np.concatenate([batch.items.numpy() for batch in batches])]
    hits = {kind: row_metrics(counts, (10,))["hr@10"] for kind, counts in plain.items()}
    groups = []
    for low, high in zip(COUNTS, (*COUNTS[1:], None), strict=True):
        inside = (own >= low) & (own < (high or np.inf))
        groups.append({"from": low, "below": high, "rows": int(inside.sum()),
                       **{kind: float(values[inside].mean()) if inside.any() else None for kind, values in hits.items()}})
    return {"hr": {str(k): rank_metrics(plain["all"], (k,))[f"hr@{k}"] for k in CUTS},
            "groups": groups, "score_popularity": correlation,
            "without": [{"share": share, **{kind: rank_metrics(counts)["ndcg@5"] for kind, counts in found.items()}}
                        for share, found in without.items()]}


def score_popularity(model, batches, rows, popularity: np.ndarray) -> float:
    """Mean over rows of the correlation of all items' scores with the log of their training rows; items without any are
    left out."""
    import torch
    counted = torch.from_numpy(popularity > 0)
    wanted = rows[counted] - rows[counted].mean()
    found = []
    for batch in batches:
        def correlate(users, items):
            scores = users @ items[counted].t()
            scores -= scores.mean(1, keepdim=True)
            found.append((scores @ wanted) / (scores.norm(dim=1) * wanted.norm()))
            return users
        model(batch, items=correlate)
    return float(torch.cat(found).mean())


# ---- the report ----------------------------------------------------------------------------------------

def collect(args: argparse.Namespace, models: Sequence[str]) -> dict:
    from ameir_fast.cli.run import make_config
    from ameir_fast.search.environment import describe
    from ameir_fast.search.training import ranking_of
    task = open_task(args)
    config, default = settings(args).to_dict(), make_config(None, None, task="retrieval").to_dict()
    return {"version": 1, "name": args.name, "data": {"kind": task.data.kind, "checksum": task.data.checksum,
                                                      "splits": {s: task.data.size(s) for s in task.data.splits}, **ranking_of(task.data)},
            "seed": args.seed, "jobs": args.jobs,
            "changed_settings": {k: v for k, v in config.items() if v != default[k] and k != "seed"},
            "models": {name: json.loads((args.work / name / "result.json").read_text(encoding="utf-8")) for name in models},
            "environment": describe()}


def as_markdown(report: dict) -> str:
    env, models, kinds = report["environment"], report["models"], list(KINDS)
    changed = ", ".join(f"{k} {v}" for k, v in report["changed_settings"].items())
    number = "{:.4f}".format

    def each(values) -> list[str]:
        return [number(values(found, kind)) for found in models.values() for kind in kinds]

    header = [f"{name}, {KINDS[kind]}" for name in models for kind in kinds]
    lines = [f"# {report['name']}: ranks among all and among sampled items", "",
             f"Data: {report['data']['kind']}, checksum {report['data']['checksum'][:12]}; all items are "
             f"{report['data']['ranked']}. Seed {report['seed']}, {changed + ', otherwise ' if changed else ''}default settings.",
             f"{env['cpu']}, torch {env['torch']}, git {env['git']}, {env['date']}.", "",
             "NDCG@5 on validation rows by epoch:", ""]
    longest = max((found["curve"] for found in models.values()), key=len)
    lines += table_of(["epoch", *header], [
        [f"{entry['epoch']:.3g}", *(number(found["curve"][at][kind]) if at < len(found["curve"]) else "–"
                                  for found in models.values() for kind in kinds)] for at, entry in enumerate(longest)])
    kept = ", ".join(f"{name} epoch {found['kept']:.3g}" for name, found in models.items())
    lines += ["", f"From here on test rows, with the weights that validation keeps over all items ({kept}).", "",
              "NDCG@5 of scores less a share of the log of an item's training rows:", "",
              *table_of(["share", *header], [[f"{share:g}", *each(lambda found, kind, at=at: found["without"][at][kind])]
                                             for at, share in enumerate(SHARES)]), "",
              "Correlation of a row's scores with the log of items' training rows, mean over rows: "
              + ", ".join(f"{name} {found['score_popularity']:.2f}" for name, found in models.items()) + ".", "",
              "HR@k among all items:", "",
              *table_of(["k", *models], [[f"{k:,}", *(number(found["hr"][str(k)]) for found in models.values())] for k in CUTS]), "",
              "HR@10 by how many training rows ask for the row's item:", ""]
    groups = next(iter(models.values()))["groups"]
    lines += table_of(["training rows", "test rows", *header], [
        [f"{g['from']}" if g["below"] == g["from"] + 1 else f"{g['from']} and more" if g["below"] is None
         else f"{g['from']}–{g['below'] - 1}", f"{g['rows']:,}", *each(lambda found, kind, at=at: found["groups"][at][kind])]
        for at, g in enumerate(groups) if g["rows"]])
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
