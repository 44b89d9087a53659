"""The CPU suites have the specified shapes, refuse wrong results, and count work rightly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from ameir_fast.bench import cpu, limits, suites
from ameir_fast.space.search_space import history_width

from ameir_fast import native
from ameir_fast.profile import random_batch
from tests.test_cli import call

ROOT = Path(__file__).resolve().parent.parent
FIELDS = {
    "suite",
    "case",
    "engine",
    "backend",
    "device",
    "dtype",
    "threads",
    "lengths",
    "batch",
    "samples_per_s",
    "p50_ms",
    "p99_ms",
    "max_abs_err",
    "share_of_limit",
    "seconds_to_first_result",
    "versions",
    "git",
    "date",
}


native_only = pytest.mark.skipif(native.why_not("_plan") is not None, reason=str(native.why_not("_plan")))


def case(name: str) -> suites.Case:
    return suites.cases(names=[name])[0]


def test_alimama_is_as_specified():
    found = suites.cases(["alimama"])
    assert [one.name for one in found] == ["din", "conv", "pool", "gru", "attn", "mixed"]
    schema = found[0].schema
    assert schema.num_embeddings == 1_000_000 and schema.num_fields == 12 and schema.num_behavior == 2
    assert schema.target == ("item", "cate") and schema.max_history == 50
    for one in found:
        assert one.embedding_dim == 4
        assert one.architecture == one.architecture.canonical()
        k0 = history_width(one.schema, one.embedding_dim) + (12 + 5) * 4
        assert k0 == 92 and [layer.units(k0) for layer in one.architecture.mlp] == [55, 28]
        expected = "swish" if one.name == "attn" else "relu"
        assert {b.activation for b in one.architecture.behavior if b.layer != "zero"} <= {expected}


def test_criteo_and_beauty_are_as_specified():
    criteo, beauty = case("criteo"), case("beauty")
    assert criteo.schema.num_embeddings == 1_000_000 and criteo.schema.num_fields == 39
    k0 = (39 + 5) * 16
    assert k0 == 704 and [layer.units(k0) for layer in criteo.architecture.mlp] == [422, 211]
    assert {len(one) for one in criteo.architecture.interactions} == {2, 3, 4}
    assert beauty.schema.num_embeddings == 54_543 and beauty.embedding_dim == 64
    assert [b.layer for b in beauty.architecture.behavior] == ["self_attn2", "self_attn4", "conv1"]
    assert history_width(beauty.schema, beauty.embedding_dim) == 128


def test_lengths():
    assert (suites.lengths("full", 100, 50) == 50).all()
    ragged = suites.lengths("ragged", 100_000, 50)
    assert ragged.min() == 1 and ragged.max() == 50
    # min(50, geometric with mean 15): sum over t of (14/15)^t for t < 50.
    assert ragged.mean() == pytest.approx(sum((14 / 15) ** t for t in range(50)), rel=0.01)


def test_work_is_counted_like_the_matrices_say():
    """din: local activation unit of the pool, the weighted sum, MLP, shortcut and head; two per
    multiply-add."""
    lengths = np.array([50, 50])
    d, k0, count = 8, 92, 17
    per_element = 36 * 4 * d + 36 + d
    products = (1 + 1 + 2 + 2 + 3) * 4 // 2
    row = k0 * 55 + 55 * 28 + products + 2 * count * 4 + 2 * count * 8 + 28 + 4
    assert limits.flops(case("din"), lengths) == 2 * (100 * per_element + 2 * row)
    extra = limits.flops(case("gru"), lengths) - limits.flops(case("din"), lengths)
    assert extra == 2 * 100 * 2 * (2 * 3 * 4 * (8 + 4))
    attention = limits.flops(case("attn"), lengths) - limits.flops(case("din"), lengths)
    assert attention == 2 * (100 * (2 * 4 * d * d + d * d) + 2 * 2 * 50 * 50 * 2 * d)


def test_bytes_are_ids_embeddings_weights_and_output():
    assert limits.bytes_moved(case("criteo"), np.zeros(10, np.int64), 1000) == 10 * 39 * 4 * 17 + 4000 + 40


@native_only
def test_the_command_writes_checked_rows(capsys, tmp_path):
    threads = torch.get_num_threads()
    try:
        code = call(
            "bench",
            "cpu",
            "--quick",
            "--cases",
            "din,gru",
            "--lengths",
            "ragged",
            "--batch",
            8,
            "--threads",
            1,
            "--json",
            tmp_path / "rows.jsonl",
        )
    finally:
        torch.set_num_threads(threads)
    assert code == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["case"], row["engine"]) for row in rows] == [
        ("din", "plan"), ("din", "eager"), ("gru", "plan"), ("gru", "eager")]
    for row in rows:
        assert row.keys() >= FIELDS and row["refused"] is None
        assert (
            (row["ratio"] is not None) == (row["engine"] == "plan")
            and row["lengths"] == "ragged"
            and row["batch"] == 8
            and row["threads"] == 1
        )
        assert row["max_abs_err"] <= 1e-4 and 0 < row["share_of_limit"] < 1.5
        assert 0 < row["p50_ms"] <= row["p99_ms"] and row["samples_per_s"] > 0
    out = capsys.readouterr().out
    assert out.count(" samples/s  p50") == 4 and "of the limit" in out and "geometric mean of 2" in out


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_a_wrong_result_is_refused(monkeypatch, wrong):
    monkeypatch.setattr(cpu, "make_engine", lambda model, *_: (lambda batch: model(batch) + wrong, lambda batch: batch))
    one = case("din")
    (row,) = cpu.measure(one, cpu.build_model(one), ["eager"], "full", 4, 1, 0.01)
    assert "fp64 reference" in row["refused"] and row["samples_per_s"] is None
    json.dumps(row, allow_nan=False)


def test_the_models_reach_the_logits():
    """The check means something: outputs vary, and the interactions matter."""
    one = case("mixed")
    model = cpu.build_model(one)
    with torch.inference_mode():
        output = model(random_batch(one.schema, 64, suites.lengths("ragged", 64, 50)))
    assert output.std() > 1e-3


@pytest.mark.parametrize("kind", ["full", "ragged"])
@pytest.mark.parametrize("name", ["din", "conv", "pool", "gru", "attn", "mixed", "criteo"])
def test_the_onnx_graph_is_the_same_model(name, kind):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    one = case(name)
    model = cpu.build_model(one)
    batch = random_batch(one.schema, 33, suites.lengths(kind, 33, 50, seed=2))
    call, form = cpu.make_engine(model, "onnxruntime", kind)
    assert cpu.largest_error(model, batch, call(form(batch))) < 1e-5


def test_ratios_are_summed_up():
    rows = [{"suite": "s", "case": c, "lengths": "full", "batch": 8, "engine": e, "ratio": r, "refused": None,
             "share_of_limit": 0.5} for c, e, r in (("a", "plan", 2.0), ("a", "eager", None), ("b", "plan", 8.0))]
    assert cpu.summary(rows) == ["s, full, batch 8: plan 4.0 times the best peer's samples/s in the geometric mean of 2, "
                                 "least 2.0 (a)"]
    assert cpu.table(rows)[2:] == ["| a | full | 8 | 50.0 | 50.0 | 2.0 |", "| b | full | 8 | 50.0 | – | 8.0 |"]


def test_the_pages_quote_the_stored_table():
    rows = [json.loads(line) for line in (ROOT / "bench/results/cpu.jsonl").read_text(encoding="utf-8").splitlines()]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for kind in ("full", "ragged"):
        ratios = [row["ratio"] for row in rows if (row["suite"], row["lengths"], row["batch"], row["engine"]) ==
                  ("alimama", kind, 1024, "plan")]
        assert len(ratios) == 6
        assert f"{math.exp(sum(map(math.log, ratios)) / 6):.1f} times" in readme


@native_only
def test_one_user_s_candidates_are_the_same_rows_to_every_engine():
    one = case("mixed")
    model = cpu.build_model(one)
    rows = cpu.measure(one, model, ["plan", "eager"], "candidates", 20, 1, 0.01)
    assert [row["engine"] for row in rows] == ["plan", "eager"] and rows[0]["ratio"] > 0
    assert all(row["max_abs_err"] < 1e-5 and row["batch"] == 20 and row["lengths"] == "candidates" for row in rows)
    batch = cpu.of_one_user(random_batch(one.schema, 6, np.full(6, 50)), one.schema)
    assert len({tuple(row) for row in batch.fields[:, 2:].tolist()}) == 1 and batch.lengths.tolist() == [50] * 6
    assert len({tuple(row) for row in batch.fields.tolist()}) == 6
    assert cpu.run(["criteo"], None, ["candidates"], 8, ["eager"], 1, quick=True)[0]["lengths"] == "none"
