"""The bench of training: both engines take the same steps, ids follow the law they are said to, pages quote what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from ameir_fast import InputError, native
from ameir_fast.bench import train, train_children
from ameir_fast.bench.suites import alimama
from ameir_fast.profile import random_batch

ROOT = Path(__file__).resolve().parents[1]
native_only = pytest.mark.skipif(native.why_not("_C") is not None, reason=str(native.why_not("_C")))


@pytest.fixture
def small(monkeypatch):
    """Small batches of small vocabularies."""
    for name, value in {"BATCH": 24, "BATCHES": 2, "ROWS": (600, 4000), "WIDTH": 8}.items():
        monkeypatch.setattr(train, name, value)
    case = alimama()[0]
    monkeypatch.setattr(train, "alimama", lambda: [type(case)(case.suite, case.name, train.resized(case.schema, 900),
                                                              case.architecture, case.embedding_dim, case.batch)])


@native_only
def test_rows_of_the_bench(small):
    seen = []
    rows = train.run(quick=True, steps=2, on_row=seen.append)
    assert rows == seen and [(row["case"], row["engine"], row["lengths"]) for row in rows] == [
        ("uniform paths", "reference", "full"), ("uniform paths", "native", "full"), ("uniform paths", "reference", "ragged"),
        ("uniform paths", "native", "ragged"), ("growth", "native", "ragged"), ("growth", "native", "ragged")]
    for row in rows:
        assert row["samples_per_s"] > 0 and row["p50_ms"] <= row["p99_ms"] and row["steps"] == 2 and row["git"]
        assert (row["ratio"] is None) == (row["engine"] == "reference" or row is rows[4])
        assert row["backend"] == ("reference" if row["engine"] == "reference" else "cpp")
        assert train.line(row)
    assert len(train.table(rows)) == 2 + len(rows)


@native_only
def test_engines_train_the_same(small):
    """The same paths on the same batches from the same weights, so the same weights in the end, up to rounding."""
    schema = alimama()[0].schema
    schema = train.resized(schema, 900)
    batches = train._ragged(schema, "zipf")
    nets = []
    for engine in ("reference", "native"):
        training = train.Training(schema, 8, engine)
        for step in range(4):
            assert training.step(batches[step % 2], step) > 0
        training.stepper.flush()
        nets.append(dict(training.net.named_parameters()))
    for name, one in nets[0].items():
        torch.testing.assert_close(nets[1][name], one, rtol=1e-3, atol=2e-4, msg=name)
    assert any(not torch.equal(one, nets[1][name]) for name, one in nets[0].items())


def test_resized_vocabularies_keep_their_proportions():
    schema = alimama()[0].schema
    for rows in (10_000, 3_000_000):
        found = train.resized(schema, rows)
        assert abs(found.num_embeddings - rows) <= len(found.vocabularies)
        assert found.field_sizes[0] == pytest.approx(rows / 2, abs=1)


def test_ids_follow_the_law():
    drawn = np.random.default_rng(0)
    ids = train._zipf(drawn, (400_000, 1), (100_000,)).numpy().ravel()
    assert ids.min() == 0 and ids.max() < 100_000
    counts = np.bincount(ids, minlength=100_000)
    for k in (10, 100):  # a decade further, 10^-1.05 as often
        some = counts[10 * k:20 * k].mean() / counts[k:2 * k].mean()
        assert some == pytest.approx(10 ** -train.ZIPF, rel=0.15)


def test_without_native_operations_it_says_why(monkeypatch):
    monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    with pytest.raises(InputError, match="turned off by AMEIR_FAST_NATIVE"):
        train.run(quick=True)


@native_only
def test_children_in_one_pass_and_alone(monkeypatch):
    monkeypatch.setattr(train_children, "BATCHES", 1)
    monkeypatch.setattr(train_children, "BATCH", 32)
    rows = train_children.run(3, quick=True)
    assert [(row["case"], row["way"]) for row in rows] == [
        (case, way) for case in train_children.CASES
        for way in ("alone", "together", *(["side by side"] if case != "supernet" else []))]
    for row in rows:
        assert row["samples_per_s"] > 0 and (row["ratio"] is None) == (row["way"] == "alone")
        assert f"3 {row['case']}" in train_children.line(row)
    assert len(train_children.table(rows)) == 2 + len(train_children.CASES)


@native_only
@pytest.mark.parametrize("kind", ["MLPs", "paths"])
def test_the_ways_train_the_same_children(kind):
    """What is compared starts from the same weights: the gradients agree then (test_group.py)."""
    case = alimama()[0]
    batch = train._labelled(random_batch(case.schema, 64, np.full(64, 5), 0), 0)
    these = train_children.Children(case.schema, case.embedding_dim, kind, 3)
    these.group.dropout = 0.0
    with torch.no_grad():
        scores = these.group(batch)
        for i, model in enumerate(these.models):
            model.dropout = 0.0
            torch.testing.assert_close(scores[i], model(batch), rtol=1e-4, atol=1e-5)


def test_the_pages_quote_the_stored_rows():
    rows = [json.loads(line) for line in (ROOT / "bench/results/train.jsonl").read_text(encoding="utf-8").splitlines()]
    readme = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    for row in rows:
        if row["case"] == "uniform paths" and row["ratio"]:
            assert f"{row['ratio']:.1f} times" in readme
        if row["case"] == "growth" and row["ids"] == "zipf" and row["ratio"]:
            assert f"{row['ratio']:.2f} times" in readme
    children = [json.loads(line) for line in (ROOT / "bench/results/train-children.jsonl").read_text(encoding="utf-8").splitlines()]
    for row in children:
        if row["case"] == "MLPs" and row["way"] == "together":
            assert f"{row['ratio']:.1f}" in readme and row["ratio"] > 3
