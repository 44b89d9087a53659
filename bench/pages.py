"""The tables of README and docs, made from the stored rows.

    python -m ameir_fast.bench.pages [--check]

Between ``<!-- table: NAME -->`` and ``<!-- end -->`` a page has what ``TABLES[NAME]`` makes of ``bench/results``.
``--check`` changes nothing and tells which pages are not what the rows say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

from ..atomic import write_text
from ..errors import InputError
from ..report import summary
from . import cpu, kernels, movielens, parts, population, precision, quality, strategies, train, train_children

ROOT = Path(__file__).resolve().parents[1]
#: From a table's marker to its end; another marker before that is a mistake.
BLOCK = re.compile(r"(<!-- table: ([\w-]+) -->\n)(?:(?!<!--).)*(<!-- end -->)", re.DOTALL)
MARKER = re.compile(r"<!-- *(?:table|end)")
GIB = 2**30


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--check", action="store_true", help="change nothing; 1 where a page differs from the rows")
    parser.add_argument("--root", type=Path, default=ROOT, help="the checkout (default: this one)")
    args = parser.parse_args(argv)
    stale = []
    for path in pages(args.root):
        name = path.relative_to(args.root).as_posix()
        text = path.read_text(encoding="utf-8")
        made = with_tables(text, args.root / "bench" / "results", name)
        if made != text:
            stale.append(name)
            if not args.check:
                write_text(path, made)
    print(f"{'differ from' if args.check else 'made again from'} the stored rows: {', '.join(stale) or 'none'}")
    return int(args.check and bool(stale))


def pages(root: Path) -> list[Path]:
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def with_tables(text: str, results: Path, page: str) -> str:
    """The page with every marked table made again.

    Raises ``InputError`` for a table that is not known, a result that is not there, or markers that don't pair."""
    if len(MARKER.findall(text)) != 2 * len(BLOCK.findall(text)):
        raise InputError(f"{page}: a table lacks its '<!-- table: NAME -->' or its '<!-- end -->'")

    def make(found: re.Match) -> str:
        name = found[2]
        if name not in TABLES:
            raise InputError(f"{page}: unknown table {name!r}; known: {', '.join(TABLES)}")
        try:
            lines = TABLES[name](results)
        except FileNotFoundError as error:
            raise InputError(f"{page}: table {name!r}: {error.filename} is missing") from None
        return found[1] + "\n".join(lines) + "\n" + found[3]
    return BLOCK.sub(make, text)


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def report_of(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


# ---- tables of searches --------------------------------------------------------------------------------

def first_table(markdown: str) -> list[str]:
    """The lines of a report's first table."""
    lines = markdown.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| "))
    return lines[start:next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))]


def of_movielens(results: Path) -> list[str]:
    text = movielens.as_markdown(report_of(results / "movielens-100k.json"))
    # Two blanks at the end of a line: a break.
    return [*first_table(text), "", *(f"{line}  " for line in text.splitlines() if line.startswith("AMEIR-C − "))]


def of_budget(results: Path) -> list[str]:
    return first_table(quality.as_markdown(report_of(results / "movielens-100k-budget.json")))


def of_criteo(name: str) -> Callable[[Path], list[str]]:
    def make(results: Path) -> list[str]:
        return quoted(report_of(results / f"{name}.json"), {"test AUC": "auc"}, ("DNN", "DeepFM"), "AUC")
    return make


def of_beauty(results: Path) -> list[str]:
    metrics = {"HR@5": "hr@5", "NDCG@5": "ndcg@5", "HR@5, 100 items": "hr@5_uniform100", "NDCG@5, 100 items": "ndcg@5_uniform100"}
    return quoted(report_of(results / "beauty.json"), metrics, ("SASRec",), "NDCG@5")


def quoted(report: dict, metrics: dict[str, str], against: tuple[str, ...], measure: str) -> list[str]:
    """Some metrics of a report's rows, and paired differences."""
    header = ["model", *metrics, *(f"{measure} − {other} (paired)" for other in against)]
    rows = []
    for name in summary.ordered_variants(report):
        row = report["variants"][name]
        rows.append([name, *(f"{row[m]['mean']:.4f} ± {row[m]['std']:.4f}" for m in metrics.values()),
                     *(quality.difference(report["paired_differences"].get(f"{name} - {other}"))[0] for other in against)])
    return quality.table_of(header, rows)


# ---- tables of rates -----------------------------------------------------------------------------------

def of_operations(results: Path) -> list[str]:
    groups = report_of(results / "operations.json")["groups"]
    return quality.table_of(["operation", "times as fast"], [[name, f"{ratio:.1f}"] for name, ratio in groups.items()])


def of_prepare(results: Path) -> list[str]:
    rows = rows_of(results / "prepare.jsonl")
    theirs = {row["rows"]: row for row in rows if row["engine"] == "pandas"}
    lines = []
    for row in rows:
        if row["engine"] == "ameir-fast":
            other = theirs.get(row["rows"])
            lines.append([f"{row['rows'] // 1_000_000} million", f"{row['rows_per_s']:,.0f} rows/s", f"{row['peak_bytes'] / GIB:.2f} GiB",
                          *(["–"] * 3 if other is None else [f"{other['rows_per_s']:,.0f} rows/s",
                            f"{other['peak_bytes'] / GIB:.2f} GiB", f"{row['ratio']:.2f}"])])
    return quality.table_of(["rows", "`prepare criteo`", "peak memory", "pandas", "peak memory", "times as fast"], lines)


TABLES: dict[str, Callable[[Path], list[str]]] = {
    "movielens-100k": of_movielens,
    "movielens-100k-budget": of_budget,
    "criteo80k": of_criteo("criteo80k"),
    "criteo80k-splits": of_criteo("criteo80k-splits"),
    "beauty": of_beauty,
    "prepare": of_prepare,
    "cpu": lambda results: cpu.table(rows_of(results / "cpu.jsonl")),
    "cpu-latency": lambda results: cpu.table(rows_of(results / "cpu-latency.jsonl")),
    "cpu-summary": lambda results: [f"- {line}" for line in cpu.summary(
        [*rows_of(results / "cpu.jsonl"), *rows_of(results / "cpu-latency.jsonl")])],
    "cpu-avx512": lambda results: [f"- {line}" for line in cpu.summary(rows_of(results / "cpu-avx512.jsonl"))],
    "cpu-parts": lambda results: parts.table(rows_of(results / "cpu-parts.jsonl")),
    "train": lambda results: train.table(rows_of(results / "train.jsonl")),
    "train-children": lambda results: train_children.table(rows_of(results / "train-children.jsonl")),
    "operations": of_operations,
    "kernels": lambda results: kernels.table(rows_of(results / "kernels.jsonl")),
    "precision": lambda results: precision.table(rows_of(results / "precision.jsonl")),
    "population": lambda results: population.table([row for step in (3, 2, 1) for row in rows_of(results / f"population-{step}.jsonl")]),
    "strategies": lambda results: strategies.table(rows_of(results / "strategies.jsonl")),
}


if __name__ == "__main__":
    sys.exit(main())
