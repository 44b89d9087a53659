"""What a search finds of planted truth: data of ``prepare synthetic``, where interactions, the behaviour signal and the
best possible AUC are known.

    python -m ameir_fast.bench.planted [--quick] [--jobs N] [--only TASK,…] [--collect]

Pieces are tasks in processes of their own and resumable: run it again after an interruption. With a million rows it
takes hours on two cores; ``--quick`` runs everything at sizes that show no more than that it works. Results:
``bench/results/planted.json`` and tables beside it.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass, field
from pathlib import Path

from .quality import run_side_by_side, write_report

NAME = "planted"
MODULE = f"ameir_fast.bench.{NAME}"
#: Twelve triples of twelve fields of which no two share a pair, with falling strength, and four that lie across them.
GRADED = [((i, (i + 1) % 12, (i + 4) % 12), 0.9 * 0.8**i) for i in range(12)]
ABSENT = ((0, 2, 7), (3, 5, 10), (1, 6, 8), (4, 9, 11))
TRIPLE = (3, 4, 5)
PLANTED = ((1, 2), TRIPLE, (6, 7, 8, 9))
#: Rankings of step 2 that are compared; the first is the one of whole searches.
RANKINGS = ("crosses", "shared")
SIGNALS = ("order", "sum")


@dataclass(frozen=True)
class Sizes:
    """How much is run, and the search's settings where they are not the default ones."""

    rows: int
    children: int    # of step 1's rank study
    runs: int        # trainings of each child on its own
    supernets: int   # seeds of step 1 on each signal
    seeds: int       # of step 2 by the first of RANKINGS,
    others: int      # and by the others
    searches: int    # whole ones
    alone: tuple[float, float]  # epochs of a path and of a triple on their own: blocks show soon what they can
    settings: dict = field(default_factory=dict)


_SHARED = dict(embedding_l2=0.0, dropout=0.0, learning_rate=4e-3, inherited_learning_rate=2e-3,
               interaction_ranking=RANKINGS[0], product_scale=30.0, keep_interactions=300, cycles=3)
FULL = Sizes(1_000_000, 12, 2, 1, 10, 1, 2, (0.5, 2.0), {
    **_SHARED, "epochs": 4.0, "runs": 1, "evaluate_every": 0.5, "behavior_epochs": 1.0, "warmup_epochs": 0.5,
    "race_epochs": (0.1, 0.15, 0.2), "mlp_epochs": 0.5, "mlp_race_epochs": (0.2,), "mlp_finalists": 4,
    "validation_subset": 8192})
QUICK = Sizes(12_000, 4, 2, 1, 2, 1, 1, (0.5, 0.5), {
    **_SHARED, "embedding_dim": 4, "batch_size": 256, "epochs": 0.5, "runs": 1, "validation_subset": 500, "top_k": 2,
    "finalists": 3, "race_epochs": (0.2, 0.4), "behavior_epochs": 0.5, "warmup_epochs": 0.5, "behavior_children": 24,
    "interaction_warmup_epochs": 0.5, "mlp_epochs": 0.3, "mlp_finalists": 2, "mlp_race_epochs": (0.2,), "mlp_children": 20,
    "updates_per_interaction": 1, "keep_interactions": 30, "cycles": 2})


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--work", type=Path, help="data and run directories (default: runs/planted, or planted-quick)")
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--quick", action="store_true", help="tiny sizes: whether everything works")
    parser.add_argument("--only", metavar="TASK,…", help="only tasks whose names begin like one of these, such as step2")
    parser.add_argument("--json", type=Path, help="default: bench/results/planted.json, or WORK/planted.json if quick")
    parser.add_argument("--collect", action="store_true", help="only make the report of what has been run")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    sizes = QUICK if args.quick else FULL
    args.work = args.work or Path("runs") / (f"{NAME}-quick" if args.quick else NAME)
    if args.task:
        run_task(args.work, sizes, args.task)
        return 0
    wanted = tuple((args.only or "").split(","))
    chosen = [t for t in tasks(sizes) if t.startswith(wanted)]
    data = [f"data:{name}" for name in dict.fromkeys(data_of(t) for t in chosen)]
    for wave in () if args.collect else (data, chosen):
        if not run_side_by_side(MODULE, wave, argv, args.work, args.jobs):
            return 1
    from .planted_report import as_markdown, collect
    path = args.json or (args.work / f"{NAME}.json" if args.quick else Path("bench") / "results" / f"{NAME}.json")
    write_report(collect(args.work, sizes, args.jobs), path, as_markdown)
    return 0


def tasks(sizes: Sizes) -> list[str]:
    """All but the data, the longest first."""
    return [*(f"search:{s}" for s in range(sizes.searches)),
            *(f"alone:order:{r}" for r in range(sizes.runs)),
            *(f"step1:{signal}:{s}" for signal in SIGNALS for s in range(sizes.supernets)),
            *(f"alone:products:{r}" for r in range(sizes.runs)),
            "scores:products",
            *(f"step2:{r}:{s}" for r in RANKINGS[1:] for s in range(sizes.others)),
            *(f"step2:{RANKINGS[0]}:{s}" for s in range(sizes.seeds))]


def data_of(task: str) -> str:
    """The name of the data that a task reads."""
    kind, *rest = task.split(":")
    return {"search": f"mixed-{rest[-1]}", "step2": f"planted-{rest[-1]}"}.get(kind, rest[0])


def data_options(name: str, sizes: Sizes):
    """What is planted in the data of this name."""
    from ameir_fast.data import Interaction, SyntheticOptions
    kind, _, seed = name.partition("-")
    options = {"rows": sizes.rows, "vocabulary": (30,), "seed": int(seed or 0), "history_mean": 0.0}
    history = {"history_mean": 10.0, "max_history": 15, "behavior_strength": 2.0}
    if kind in SIGNALS:
        options |= {"fields": 6, "interactions": (), "behavior": (kind,), **history}
    elif kind == "products":
        options |= {"interactions": tuple(Interaction(fields, strength) for fields, strength in GRADED)}
    else:
        options |= {"interactions": tuple(map(Interaction, PLANTED))}
    if kind == "mixed":
        options |= {"behavior": ("order",), **history}
    return SyntheticOptions(**options)


def settings(sizes: Sizes, seed: int):
    from ameir_fast.search import SearchConfig
    return SearchConfig(seed=seed).changed(**sizes.settings)


# ---- tasks ---------------------------------------------------------------------------------------------

def run_task(work: Path, sizes: Sizes, task: str) -> None:
    """Runs one task; its result is ``result.json`` in a run directory of its own (of a whole search, the search's)."""
    import torch

    from ameir_fast.data import Dataset, prepare_synthetic
    from ameir_fast.progress import make_progress
    kind, *rest = task.split(":")
    if kind == "data":
        if not (work / "data" / rest[0]).exists():
            prepare_synthetic(data_options(rest[0], sizes), work / "data" / rest[0])
        return
    torch.set_num_threads(1)
    data, progress = Dataset.open(work / "data" / data_of(task)), make_progress(sys.stdout)
    place = work / task.replace(":", "-")
    if kind == "search":
        search_all(data, place, settings(sizes, int(rest[0])), progress)
    elif kind == "step2":
        study(data, place, settings(sizes, int(rest[1])), progress, lambda make: find_interactions(make, rest[0]))
    elif kind == "step1":
        study(data, place, settings(sizes, int(rest[1])), progress, lambda make: search_behavior(make, sizes.children))
    elif task == "scores:products":
        study(data, place, settings(sizes, 0), progress, score_products)
    else:
        path, triple = sizes.alone
        children, epochs = (behavior_children, path) if rest[0] == "order" else (product_children, triple)
        study(data, place, settings(sizes, 0).changed(epochs=epochs), progress,
              lambda make: train_alone(make, children, int(rest[1]), sizes.children))


def study(data, place: Path, config, progress, make_result) -> None:
    """``result.json`` of one study. It is given a maker of contexts, each a fresh start under a name of its own."""
    from ameir_fast.atomic import write_json
    from ameir_fast.search.driver import VERSION, make_context
    from ameir_fast.search.store import RunDirectory
    identity = {"version": VERSION, "study": place.name, "data": data.checksum, "config": config.to_dict()}
    with RunDirectory(place, identity, resume=True) as run:
        def make(name: str, **changes):
            return make_context(data, config.changed(**changes), run.scope(name), None, progress, "cpu")
        write_json(place / "result.json", run.scope("study").result("result", lambda: make_result(make)))


def behavior_children(context, count: int) -> list:
    """The same paths for every supernet, drawn uniformly."""
    from ameir_fast.search.seeds import generator
    g = generator(0, "planted study", "behavior")
    return [context.behavior_child(context.space.sample_behavior(g)).canonical() for _ in range(count)]


def product_children(context, count: int) -> list:
    """One triple of fields each: planted ones with falling strength, then absent ones."""
    from ameir_fast.search.context import FIXED
    from ameir_fast.space import Architecture
    return [Architecture((), (tuple(sorted(fields)),), FIXED, "none") for fields in study_triples()]


def study_triples() -> list[tuple[int, ...]]:
    return [*(tuple(sorted(fields)) for fields, _ in GRADED), *ABSENT]


def train_alone(make, children, number: int, count: int) -> list[dict]:
    """Every child trained from scratch."""
    from .movielens import trained_alone
    context = make("alone")
    return trained_alone(context, children(context, count), number, context.task)


def search_behavior(make, count: int) -> dict:
    """Step 1 with its race; and what this supernet says of the study's children, with the shared weights as they are
    and after a finalist's short trainings."""
    from ameir_fast.search import behavior
    from .movielens import score_rows
    context = make("step1")
    behavior.train_supernet(context)
    ranking = behavior.rank(context)
    standings = behavior.hold_race(context, ranking)
    return {"ranking": ranking, "found": standings[0].arch.to_dict(), "valid": standings[0].score,
            "finalists": [{"child": s.arch.to_dict(), "rounds": s.rounds} for s in standings],
            "study": score_rows(context, behavior_children(context, count))}


def find_interactions(make, ranking: str) -> dict:
    """Step 2 by a ranking: what it ends with, and the places of what was planted."""
    from ameir_fast.search.interactions import search_interactions
    two = search_interactions(make("step2", interaction_ranking=ranking))
    order = [tuple(r["fields"]) for r in two["ranking"]]
    return {"found": two["found"], "candidates": len(order), "seconds": two["seconds"],
            "places": {str(p): order.index(p) if p in order else None for p in PLANTED}}


def score_products(make) -> list[dict]:
    """Both scores of the study's triples: by crosses, and by shared weights that have had each
    triple's updates."""
    from ameir_fast.search.crosses import Crosses
    from ameir_fast.search.interactions import score_candidates, train_candidates
    triples, context = study_triples(), make("scores")
    train_candidates(context, context.scope.scope("base"), [], 1)
    crosses = Crosses.of(context)
    by_data = [crosses.score(t) for t in triples]
    train_candidates(context, context.scope.scope("candidates"), triples, 2)
    shared = score_candidates(context, triples)
    return [{"fields": list(t), "crosses": z, "shared": s[context.primary]}
            for t, z, s in zip(triples, by_data, shared, strict=True)]


def search_all(data, run: Path, config, progress) -> None:
    from ameir_fast.search import search
    search(data, run, config, resume=True, progress=progress,
           variants=("AMEIR-A", "AMEIR-C", "DIN", "DNN"))


if __name__ == "__main__":
    raise SystemExit(main())
