"""The report of ``bench.planted``: how far each finding agrees with what was planted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from .movielens import agreement, rank_correlation
from .planted import NAME, RANKINGS, SIGNALS, TRIPLE, Sizes, settings
from .quality import table_of

#: Layers that tell neighbours' order: a window on both sides of an element, or a walk along the history. Convolutions
#: of dilation 2 see every other element, pools and attention treat a history like its reverse.
SENSITIVE = ("conv3", "bi_gru")
#: Of the way from 0.5 to the best possible AUC.
ENOUGH = 0.97


def collect(work: Path, sizes: Sizes, jobs: int) -> dict:
    """Of every task that has been run; what is missing is None or left out."""
    from ameir_fast.search.environment import describe

    def result(name: str):
        path = work / name / "result.json"
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None

    def results(names) -> list:
        return [r for r in map(result, names) if r is not None]

    step1 = {signal: results(f"step1-{signal}-{s}" for s in range(sizes.supernets)) for signal in SIGNALS}
    alone = {data: results(f"alone-{data}-{r}" for r in range(sizes.runs)) for data in ("order", "products")}
    scores = result("scores-products")
    step2 = {r: results(f"step2-{r}-{s}" for s in range(sizes.seeds)) for r in RANKINGS}
    searches = [s for s in map(lambda s: whole_search(work, s), range(sizes.searches)) if s is not None]
    return {
        "version": 1, "rows": sizes.rows, "jobs": jobs, "config": settings(sizes, 0).to_dict(),
        "children": sizes.children, "alone_epochs": sizes.alone,
        "rank_behavior": rank_study(alone["order"], [r["study"] for r in step1["order"]], ("supernet", "adapted")),
        "rank_interactions": rank_study(alone["products"], [scores] if scores else [], RANKINGS),
        "products": products(alone["products"], scores),
        "triple_found": triple_found(step2), "step2": step2,
        "preference": {signal: preference(found) for signal, found in step1.items() if found},
        "searches": searches, "environment": describe(),
    }


def rank_study(alone: list[list[dict]], scored: list[list[dict]], kinds: tuple[str, ...]) -> dict | None:
    """Rank correlation of each kind of score with trainings on their own."""
    def column(studies: list[list[dict]], name: str) -> np.ndarray:
        return np.array([[row[name] for row in study] for study in studies])

    if not alone or not scored:
        return None
    found = {kind: {split: rank_correlation(column(scored, kind), column(alone, split)) for split in ("valid", "test")}
             for kind in kinds}
    return {"runs": len(alone), "scored": len(scored), "children": len(alone[0]),
            "agreement_of_two_trainings": agreement(column(alone, "valid")), **found}


def products(alone: list[list[dict]], scores: list[dict] | None) -> list[dict] | None:
    """The study's triples one by one."""
    from .planted import GRADED
    if not alone or not scores:
        return None
    strength = [s for _, s in GRADED]
    return [{**row, "strength": strength[i] if i < len(strength) else 0.0,
             "alone": float(np.mean([run[i]["test"] for run in alone]))} for i, row in enumerate(scores)]


def triple_found(step2: dict[str, list[dict]]) -> dict[str, dict]:
    """By each ranking, in how many seeds the planted triple is among step 2's interactions."""
    return {ranking: {"seeds": len(found), "found": sum(list(TRIPLE) in map(list, r["found"]) for r in found)}
            for ranking, found in step2.items() if found}


def sensitive(layers) -> bool:
    return any(block["layer"] in SENSITIVE for block in layers)


def preference(found: list[dict]) -> dict:
    """How much better a supernet scores paths that tell neighbours' order than other paths: the mean difference over
    supernets with its bootstrap standard error over paths; and the paths found."""
    rng, differences, draws = np.random.default_rng(0), [], []
    for one in found:
        score = np.array([r["score"] for r in one["ranking"]])
        tells = np.array([sensitive(r["behavior"]) for r in one["ranking"]])
        differences.append(score[tells].mean() - score[~tells].mean())
        again = rng.integers(score.size, size=(1000, score.size))
        draws.append([score[d][tells[d]].mean() - score[d][~tells[d]].mean() for d in again if 0 < tells[d].sum() < d.size])
    least = min(map(len, draws))
    return {"difference": float(np.mean(differences)),
            "standard_error": float(np.mean([d[:least] for d in draws], 0).std(ddof=1)),
            "found": [[b["layer"] for b in one["found"]["behavior"]] for one in found],
            "found_sensitive": sum(sensitive(one["found"]["behavior"]) for one in found), "supernets": len(found)}


def whole_search(work: Path, seed: int) -> dict | None:
    """The test AUC of each row as a share of the way from 0.5 to the best possible one on these very labels."""
    path = work / f"search-{seed}" / "metrics.json"
    if not path.exists():
        return None
    metrics = json.loads(path.read_text(encoding="utf-8"))
    best = metrics["data"]["statistics"]["truth"]["bayes_auc"]["test"]
    auc = {name: row["auc"]["runs"][0] for name, row in metrics["variants"].items()}
    env = metrics["environment"]
    return {"environment": {name: env[name] for name in ("cpu", "torch", "git", "date")}, "bayes_auc": best, "auc": auc,
            "found": metrics["found"][0], "seconds": metrics["seconds"],
            "share": {name: (value - 0.5) / (best["drawn"] - 0.5) for name, value in auc.items()}}


# ---- the tables ----------------------------------------------------------------------------------------

def as_markdown(report: dict) -> str:
    env, config = report["environment"], report["config"]
    lines = [f"# Planted truth, {report['rows']:,} rows", "",
             f"{env['cpu']}, torch {env['torch']}, {report['jobs']} processes side by side with one thread each, git "
             f"{env['git']}, {env['date']}. Data: `prepare synthetic`, as `bench/{NAME}.py` says.", "",
             "## Rankings against trainings of children on their own", "",
             "Spearman's rho with AUC on validation and test; ± is the bootstrap standard error over children and "
             "supernets. Step 1: random paths on the order signal. Step 2: one triple of fields each, planted with falling "
             f"strength or not at all. On their own paths are trained for {report['alone_epochs'][0]:g} epochs, triples for "
             f"{report['alone_epochs'][1]:g}.", ""]
    labels = {"supernet": "shared weights", "adapted": "after short trainings", "crosses": "crosses",
              "shared": "shared weights"}
    rows = []
    for step, key in (("1", "rank_behavior"), ("2", "rank_interactions")):
        study = report[key]
        for kind in labels:
            if study and kind in study:
                agree = study["agreement_of_two_trainings"]
                rows.append([step, labels[kind], str(study["children"]), str(study["runs"]),
                             *(_rho(study[kind][split]) for split in ("valid", "test")),
                             "–" if agree is None else f"{agree:+.2f}"])
    lines += table_of(["step", "score", "children", "trainings each", "valid", "test", "two trainings agree"], rows)
    if report["products"]:
        lines += ["", *table_of(["fields", "planted strength", "crosses (z)", "shared weights (AUC)", "alone (test AUC)"], [
            [", ".join(map(str, r["fields"])), f"{r['strength']:.2f}", f"{r['crosses']:.1f}", f"{r['shared']:.4f}",
             f"{r['alone']:.4f}"] for r in report["products"]])]
    if report["triple_found"]:
        lines += ["", "## The planted triple among step 2's interactions", "",
                  *table_of(["ranking", "seeds with it", "seeds"], [
                      [labels[k], str(r["found"]), str(r["seeds"])] for k, r in report["triple_found"].items()])]
    if report["preference"]:
        lines += ["", "## Order of neighbours", "",
                  f"Mean score of paths with {' or '.join(SENSITIVE)} minus that of other paths, shared weights.", "",
                  *table_of(["signal", "difference", "found paths with such a layer", "found"], [
                      [signal, f"{p['difference']:+.4f} ± {p['standard_error']:.4f}",
                       f"{p['found_sensitive']} of {p['supernets']}", "; ".join(" → ".join(f) for f in p["found"])]
                      for signal, p in report["preference"].items()])]
    for seed, s in enumerate(report["searches"]):
        lines += ["", f"## Whole search, seed {seed}", "",
                  f"Best possible test AUC {s['bayes_auc']['drawn']:.4f} (expected {s['bayes_auc']['expected']:.4f}); "
                  f"wanted of AMEIR-C: {ENOUGH:.0%} of the way there from 0.5. {s['seconds'] / 60:.0f} minutes, "
                  f"{s['environment']['cpu']}, git {s['environment']['git']}.", "",
                  *table_of(["model", "test AUC", "share of the way"], [
                      [name, f"{s['auc'][name]:.4f}", f"{share:.1%}"] for name, share in s["share"].items()])]
    changed = ", ".join(f"{k} {v}" for k, v in config.items() if v != _defaults().get(k))
    lines += ["", f"Settings that are not the default ones: {changed}."]
    return "\n".join(lines) + "\n"


def _defaults() -> dict:
    from ameir_fast.search import SearchConfig
    return SearchConfig().to_dict()


def _rho(found: dict) -> str:
    return f"{found['rho']:+.2f} ± {found['standard_error']:.2f}"
