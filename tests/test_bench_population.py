"""The bench of populations: every method evaluates the same children on the same samples, and rows say how many."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ameir_fast import InputError, native
from ameir_fast.bench import population, population_figure, population_interactions, population_mlp, population_paths, whole_search
from ameir_fast.bench.suites import alimama
from ameir_fast.bench.train import resized
from tests import tiny

native_only = pytest.mark.skipif(any(native.why_not(name) is not None for name in ("_C", "_plan")), reason="not built")


@pytest.fixture
def small(monkeypatch):
    """Small batches of small vocabularies, and no processes whose memory is measured."""
    case = alimama()[0]
    fewer = type(case)(case.suite, case.name, resized(case.schema, 900), case.architecture, case.embedding_dim, case.batch)
    for module in (population_mlp, population_interactions, population_paths):
        monkeypatch.setattr(module, "alimama", lambda: [fewer])
    monkeypatch.setattr(population_interactions, "EAGER", 5)
    monkeypatch.setattr(population_paths, "EAGER", 2)
    monkeypatch.setattr(population_paths, "NATIVE", 7)
    monkeypatch.setattr(population, "BATCH", 32)
    monkeypatch.setattr(population_mlp, "EAGER", 4)
    monkeypatch.setattr(population_mlp, "PLANS", 5)
    monkeypatch.setattr(population, "peak_of", lambda *_: 2 ** 20)


@native_only
def test_rows_of_step_3(small):
    seen = []
    rows = population.run(3, samples=80, layers=2, on_row=seen.append)
    assert rows == seen and [row["method"] for row in rows] == ["eager", "plan", "shared", "shared", "shared", "shared"]
    assert [row["children"] for row in rows] == [4, 5, 880, 14, 55, 220]
    for row in rows:
        assert row["step"] == 3 and row["samples"] == 80 and row["batch"] == 32 and row["k0"] == 92 and row["git"]
        assert row["children_per_s"] == pytest.approx(row["children"] / row["seconds"]) and row["refused"] is None
        assert population.line(row)
    eager, plan, shared = rows[:3]
    assert eager["max_abs_diff"] is None and eager["ratio"] is None
    assert plan["max_abs_diff"] is None or plan["max_abs_diff"] <= 1e-5
    assert shared["max_abs_diff"] <= 1e-5 and shared["compared"] == 4
    assert shared["ratio"] == pytest.approx(shared["children_per_s"] / eager["children_per_s"])
    assert shared["ratio_plan"] == pytest.approx(shared["children_per_s"] / plan["children_per_s"])
    assert shared["shared_work"] > 40
    assert len(population.table(rows)) == 2 + len(rows)


@native_only
def test_some_children_only(small):
    rows = population.run(3, children=30, samples=40, layers=1)
    assert [row["children"] for row in rows] == [4, 5, 30]


@native_only
def test_rows_of_step_2(small):
    rows = population.run(2, samples=70)
    assert [(row["method"], row["embedding_dim"]) for row in rows] == [("eager", 4), ("shared", 4), ("eager", 8), ("shared", 8)]
    eager, shared = rows[:2]
    assert eager["children"] == 5 and 300 < shared["children"] <= 600 and shared["compared"] == 5
    assert shared["max_abs_diff"] <= 1e-5 and shared["refused"] is None and eager["ratio"] is None
    assert shared["ratio"] == shared["ratios"]["eager"] == shared["children_per_s"] / eager["children_per_s"]
    assert all(population.line(row) for row in rows) and len(population.table(rows)) == 6


@native_only
def test_rows_of_step_1(small):
    rows = population.run(1, children=20, samples=40)
    assert [row["method"] for row in rows] == ["eager", "native", "shared"]
    assert [row["children"] for row in rows] == [2, 7, 20]
    native, shared = rows[1:]
    assert all(row["max_abs_diff"] <= 1e-5 and row["refused"] is None for row in (native, shared))
    assert shared["ratio"] == pytest.approx(native["ratio"] * shared["ratios"]["native"])
    assert shared["layers_shared"] <= shared["blocks_shared"] <= shared["blocks_alone"] <= 60 and shared["distinct"] <= 20
    assert all(population.line(row) for row in rows) and "x native" in population.line(shared)


def test_unknown_steps_are_named():
    with pytest.raises(InputError, match="unknown step 9"):
        population.run(9)


def test_the_page_quotes_the_stored_rows():
    root = Path(__file__).resolve().parents[1]
    read = lambda step: [json.loads(line) for line in (root / f"bench/results/population-{step}.jsonl").read_text().splitlines()]
    assert (root / "docs" / "population.svg").read_text(encoding="utf-8") == population_figure.figure(read(3))
    together = {row["case"]: row for step in (1, 2, 3) for row in reversed(read(step)) if row["method"] == "shared"}
    for row in read(3):  # of all children
        if row["method"] == "shared" and row["ratio"] > together[row["case"]]["ratio"]:
            together[row["case"]] = row
    two, three, paths, products = (together[case] for case in ("2 layers", "3 layers", "3 blocks", "50x12 K=4"))
    readme = " ".join((root / "README.md").read_text(encoding="utf-8").split())
    for said in (f"scored {two['ratio']:,.0f} times as fast", f"{two['ratio_plan']:,.0f} times as fast as through their plans",
                 f"three layers {three['ratio']:,.0f} and {three['ratio_plan']:,.0f} times", f"paths {paths['ratio']:,.1f} times",
                 f"of which {paths['ratios']['native']:,.1f} come", f"interactions {products['ratio']:,.1f} times"):
        assert said in readme, said
    wider = {}
    for row in (json.loads(line) for step in (1, 2, 3)
                for line in (root / f"bench/results/population-avx512-{step}.jsonl").read_text().splitlines()):
        if row["method"] == "shared":
            wider[row["case"]] = max(row["ratio"], wider.get(row["case"], 0))
    assert (f"with AVX-512 {wider['2 layers']:,.0f}, {wider['3 layers']:,.0f}, {wider['3 blocks']:,.1f} and {wider['50x12 K=4']:,.1f}, "
            "at an earlier revision") in readme
    page = " ".join((root / "docs" / "population.md").read_text(encoding="utf-8").split())
    rates = sorted(row["gemm_gflops"] for row in map(json.loads, (root / "bench/results/cpu.jsonl").read_text().splitlines())
                   if row.get("gemm_gflops"))
    own = products["children_per_s"] * products["samples"] * 9100 * 2 / 1e9
    assert f"{products['children_per_s']:,.0f} candidates/s are {own:,.0f}, of {rates[0]:,.0f} to {rates[-1]:,.0f}" in page
    assert page.endswith(f"ten times eager would be {10 * own / products['ratio']:,.0f}.")
    gap = max(row["max_auc_diff"] or 0 for step in (1, 2, 3) for row in read(step))
    assert f"their AUCs differ by {gap:.1e} at most".replace("e-0", "e-") in page


def test_the_page_quotes_whole_searches():
    root = Path(__file__).resolve().parents[1]
    page = " ".join((root / "docs/population.md").read_text(encoding="utf-8").split())
    reference, native_one = (json.loads(line) for line in (root / "bench/results/whole-search.jsonl").read_text(encoding="utf-8").splitlines())
    for said in (f"{reference['seconds']:.0f} s with the reference", f"{native_one['seconds']:.0f} s with the native",
                 f"{native_one['ratio']:.1f} times as fast", f"{reference['auc']['AMEIR-C']:.4f} and {native_one['auc']['AMEIR-C']:.4f}"):
        assert said in page


def test_whole_searches_are_compared(tmp_path, capsys):
    tiny.prepared(tmp_path)
    stored = tmp_path / "rows.jsonl"
    settings = [f"--set={name}={json.dumps(value)}" for name, value in tiny.CONFIG.to_dict().items() if name in (
        "embedding_dim", "batch_size", "epochs", "runs", "finalists", "mlp_finalists", "race_epochs", "mlp_race_epochs", "behavior_children",
        "warmup_epochs", "behavior_epochs", "mlp_epochs", "mlp_children")]
    assert whole_search.main(["--data", str(tmp_path / "data"), "--json", str(stored), *settings]) == 0
    rows = [json.loads(line) for line in stored.read_text().splitlines()]
    assert [row["backend"] for row in rows][0] == "reference" and rows[0]["ratio"] == 1
    assert rows[1]["ratio"] == pytest.approx(rows[0]["seconds"] / rows[1]["seconds"])
    assert capsys.readouterr().out.count("times as fast") == 2
