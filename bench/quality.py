"""The quality table of any prepared data: a search per seed, its rows' means, and paired differences.

``python -m ameir_fast.bench.quality --data DIR --name NAME`` searches once per seed, each in a process of its own with
one thread, and writes ``bench/results/NAME.json`` and a table beside it. Everything is resumable: run it again after an
interruption. Settings are those of ``ameir-fast search`` (``--set``, ``--config``). Several ``--data``, such as one data
set split in different ways, take turns: then errors hold what the choice of test rows adds to the seeds'.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

RESULTS = Path("bench") / "results"


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--data", type=Path, required=True, action="append",
                        help="prepared data; repeated, for a seed each, in turn")
    parser.add_argument("--name", required=True, help="of the result files")
    parser.add_argument("--work", type=Path, help="run directories of the seeds (default: runs/quality/NAME)")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--jobs", type=int, default=2, help="processes side by side, one thread each")
    parser.add_argument("--config", metavar="FILE", help="settings as JSON")
    parser.add_argument("--set", action="append", metavar="KEY=VALUE", help="one setting; may be repeated")
    parser.add_argument("--budget", metavar="B", help="of each search, as of ameir-fast search (30m, 40x)")
    parser.add_argument("--variants", metavar="V,…", help="rows of the table, or all (default: those of the search)")
    parser.add_argument("--against", metavar="V,…", help="rows to take paired differences from")
    parser.add_argument("--beside", type=Path, metavar="FILE", help="another report (JSON) whose rows the same seeds are compared with")
    parser.add_argument("--note", metavar="TEXT", help="a sentence for the report, such as what else the machine was doing")
    parser.add_argument("--collect", action="store_true", help="only make the report of what has been run")
    parser.add_argument("--task", type=int, metavar="SEED", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.work = args.work or Path("runs") / "quality" / args.name
    if args.task is not None:
        search_seed(args, args.task)
        return 0
    seeds = [] if args.collect else [str(seed) for seed in range(args.seeds)]
    if not run_side_by_side("ameir_fast.bench.quality", seeds, argv, args.work, args.jobs):
        return 1
    write_report(collect(args), RESULTS / f"{args.name}.json", as_markdown)
    return 0


# ---- running -------------------------------------------------------------------------------------------

def run_side_by_side(module: str, tasks: Sequence[str], argv: Sequence[str], work: Path, jobs: int) -> bool:
    """``python -m module ARGV --task TASK`` for all tasks, ``jobs`` at a time, each with a log in ``work``; whether all
    succeeded."""
    def call(task: str) -> int:
        print(f"{task}: started", flush=True)
        with open(work / f"{task.replace(':', '-')}.log", "w") as log:
            code = subprocess.run([sys.executable, "-m", module, *argv, "--task", task], stdout=log,
                                  stderr=subprocess.STDOUT, check=False).returncode
        print(f"{task}: {'done' if code == 0 else 'failed, see its log'}", flush=True)
        return code

    work.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(jobs) as pool:
        failed = [task for task, code in zip(tasks, pool.map(call, tasks), strict=True) if code]
    for task in failed:
        print(f"error: {task} failed, see {work}/{task.replace(':', '-')}.log", file=sys.stderr)
    return not failed


def search_seed(args: argparse.Namespace, seed: int) -> None:
    import torch

    from ameir_fast.cli.run import choose_variants, make_config
    from ameir_fast.data import Dataset
    from ameir_fast.progress import make_progress
    from ameir_fast.search import search
    from ameir_fast.search.fixed import all_variants
    torch.set_num_threads(1)
    data, wanted = Dataset.open(args.data[seed % len(args.data)]), choose_variants(args.variants)
    search(data, args.work / f"seed-{seed}", make_config(args.config, args.set, seed=seed, task=data.task), resume=True,
           variants=all_variants(data.schema) if wanted == ("all",) else wanted, progress=make_progress(sys.stdout),
           budget=args.budget)


# ---- collecting ----------------------------------------------------------------------------------------

def read_runs(work: Path, seeds: int) -> list[dict]:
    """``metrics.json`` of each seed's run."""
    return [json.loads((work / f"seed-{seed}" / "metrics.json").read_text(encoding="utf-8")) for seed in range(seeds)]


def variant_table(runs: list[dict]) -> dict[str, dict]:
    """Of each row the metrics' runs with mean and deviation, and sizes and speed run by run."""
    table = {}
    for name, first in runs[0]["variants"].items():
        rows = [run["variants"][name] for run in runs]
        entry = {}
        for metric in (key for key, value in first.items() if isinstance(value, dict)):
            values = [row[metric]["runs"][0] for row in rows]
            entry[metric] = {"mean": float(np.mean(values)),
                             "std": float(np.std(values, ddof=1)) if len(values) > 1 else 0.0, "runs": values}
        for key in ("parameters_outside_embedding", "parameters", "samples_per_s"):
            entry[key] = [row[key] for row in rows]
        table[name] = entry
    return table


def paired_differences(table: dict[str, dict], references: Sequence[str], metric: str) -> dict[str, dict]:
    """``"A - B"``: mean difference of a metric over the seeds, its standard error, and the seeds won."""
    from ameir_fast.metrics import paired
    found = {}
    for reference in references:
        for name, entry in table.items():
            if name != reference:
                mean, error, wins, count = paired(entry[metric]["runs"], table[reference][metric]["runs"])
                found[f"{name} - {reference}"] = {"mean": mean, "standard_error": error if count > 1 else None,
                                                  "wins": wins, "of": count}
    return found


def environment(runs: list[dict]) -> dict:
    """Of the last run, with the revisions of all: those that searched, not the one that reports."""
    return {**runs[-1]["environment"], "git": ", ".join(sorted({str(r["environment"]["git"]) for r in runs}))}


def collect(args: argparse.Namespace) -> dict:
    from ameir_fast.cli.run import make_config
    from ameir_fast.data import Dataset
    from ameir_fast.errors import InputError
    from ameir_fast.report import summary
    runs = read_runs(args.work, args.seeds)
    table = variant_table(runs)
    references = [name.strip() for name in args.against.split(",")] if args.against else [
        name for name in summary.BASELINES if name in table]
    for name in references:
        if name not in table:
            raise InputError(f"--against {name}: no such row; there are {', '.join(table)}")
    metric = summary.metric_names(runs[0])[0]
    data = Dataset.open(args.data[0])
    default = make_config(None, None, task=data.task).to_dict()
    config = make_config(args.config, args.set, task=data.task).to_dict()
    more = {"budget": runs[0]["budget"]} if args.budget else {}
    if args.note:
        more["note"] = args.note
    if args.beside:
        more["beside"] = beside(json.loads(args.beside.read_text(encoding="utf-8")), args.beside.stem, table, metric)
    return {"version": 1, "name": args.name, **more, "data": runs[0]["data"], "seeds": args.seeds, "jobs": args.jobs,
            "checksums": [run["data"]["checksum"] for run in runs[:len(args.data)]], "threads_per_job": 1, "metric": metric, "standard_error": runs[0]["standard_error"], "config": config,
            "changed_settings": {key: value for key, value in config.items() if value != default[key]},
            "variants": table, "references": references,
            "paired_differences": paired_differences(table, references, metric),
            "schema": data.schema.to_dict(), "found": [run["found"][0] for run in runs],
            "seconds_per_search": [run["seconds"] for run in runs],
            "environment": environment(runs)}


def beside(other: dict, name: str, table: dict[str, dict], metric: str) -> dict:
    """Of each row that both reports have, its difference from the other's over the seeds that both have."""
    from ameir_fast.metrics import paired
    found = {}
    for row in (row for row in table if row in other["variants"]):
        mine, theirs = table[row][metric]["runs"], other["variants"][row][metric]["runs"]
        mean, error, wins, count = paired(mine[:len(theirs)], theirs[:len(mine)])
        found[row] = {"mean": mean, "standard_error": error if count > 1 else None, "wins": wins, "of": count}
    return {"name": name, "differences": found}


def write_report(report: dict, path: Path, as_text: Callable[[dict], str]) -> None:
    """The report as JSON, and its table beside it and on the screen."""
    from ameir_fast.atomic import write_json, write_text
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, report)
    text = as_text(report)
    write_text(path.with_suffix(".md"), text)
    print(text)


# ---- the table -----------------------------------------------------------------------------------------

def sizes(counts: list[int]) -> str:
    """Their mean, and the range where they differ."""
    spread = f" ({min(counts):,}–{max(counts):,})" if min(counts) < max(counts) else ""
    return f"{np.mean(counts):,.0f}{spread}"


def difference(found: dict | None) -> tuple[str, str]:
    """A paired difference and its wins; dashes for a row against itself."""
    if not found:
        return "–", "–"
    error = "" if found["standard_error"] is None else f" ± {found['standard_error']:.4f}"
    return f"{found['mean']:+.4f}{error}", f"{found['wins']}/{found['of']}"


def table_of(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lines of a Markdown table."""
    return [f"| {' | '.join(cells)} |" for cells in (header, ["---"] * len(header), *rows)]


def as_markdown(report: dict) -> str:
    """The tables that the README quotes."""
    from ameir_fast.report import summary
    from ameir_fast.search.budget import describe_budget
    env, data, table = report["environment"], report["data"], report["variants"]
    names = summary.metric_names(report)
    names.remove("valid")
    splits = ", ".join(f"{count:,} {split}" for split, count in data["splits"].items())
    changed = ", ".join(f"{key} {value}" for key, value in report["changed_settings"].items())
    of = report.get("checksums", [data["checksum"]])
    error = report["standard_error"].get(report["metric"])
    noise = "" if error is None else (f"; the standard error that the test rows leave on one model's "
                                      f"{summary.heading(report['metric'])} is {error:.4f}")
    lines = [
        f"# {report['name']}, {report['seeds']} seeds",
        "",
        f"Data: {data['kind']}, {splits} rows, " + (f"checksum {data['checksum'][:12]}." if len(of) == 1 else
                                                    f"split in {len(of)} ways, checksums {', '.join(c[:12] for c in of)}."),
        f"{env['cpu']}, torch {env['torch']}, {report['jobs']} processes side by side with {report['threads_per_job']} "
        f"thread each, git {env['git']}, {env['date']}; a search took "
        f"{np.mean(report['seconds_per_search']) / 60:.0f} minutes on average.",
        f"Settings: {changed + ', otherwise ' if changed else ''}the default ones. ± is the deviation over seeds, of "
        f"paired differences their standard error{noise}.",
        *([f"The first seed's {describe_budget(report['budget'])}."] if "budget" in report else []),
        *([report["note"]] if "note" in report else []),
        f"Every trained row is the best of {report['config']['runs']} full trainings by validation"
        f"{', of paths that raced of up to one more: the plain path is always tried' if report['config'].get('plain_trains_fully') else ''}.",
    ]
    if data.get("ranked"):
        lines.append(f"Each row's item is ranked among {data['ranked']}.")
    against = report["references"]
    header = ["model", *map(summary.heading, names), "parameters outside embedding", "samples/s"]
    for name in against:
        header += [f"{summary.heading(report['metric']).removeprefix('test ')} − {name} (paired)", "wins"]
    order = summary.ordered_variants(report)
    rows = []
    for name in order:
        entry = table[name]
        row = [name, *(summary.mean_and_deviation(entry[metric]) for metric in names),
               sizes(entry["parameters_outside_embedding"]), f"{np.mean(entry['samples_per_s']):,.0f}"]
        for reference in against:
            row += difference(report["paired_differences"].get(f"{name} - {reference}"))
        rows.append(row)
    lines += ["", *table_of(header, rows)]
    for title, header, rows in summary.sampled_tables(report):
        lines += ["", f"The same, {title}:", "", *table_of(["model", *header[1:]], rows)]
    if "beside" in report:
        lines += ["", f"{summary.heading(report['metric'])} beside {report['beside']['name']}, the same seeds:", ""]
        for name in order:
            if name in report["beside"]["differences"]:
                paired, wins = difference(report["beside"]["differences"][name])
                lines.append(f"- {name}: {paired}, wins {wins}")
    lines += ["", "Found, seed by seed:", ""]
    for seed, found in enumerate(report["found"]):
        lines += [f"- {seed}, {name}: {summary.describe(arch, report['schema'])}" for name, arch in found.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
