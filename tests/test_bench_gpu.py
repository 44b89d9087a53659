"""bench gpu with the CPU in the place of a card: rows, refusals and the summary; times mean nothing here."""

from __future__ import annotations

import time

import pytest
import torch

import ameir_fast as af
from ameir_fast.bench import gpu
from ameir_fast.gpu_plan import GpuPlan
from ameir_fast.kernels._launch import interpreting

pytestmark = pytest.mark.skipif(torch.cuda.is_available() or not interpreting(), reason="there is a card, or no interpreter")


class Mark:
    def __init__(self, enable_timing: bool):
        assert enable_timing

    def record(self) -> None:
        self.at = time.perf_counter()

    def elapsed_time(self, other: Mark) -> float:
        return 1e3 * (other.at - self.at)


@pytest.fixture
def card(monkeypatch):
    monkeypatch.setattr(gpu, "check_device", lambda device: None)
    monkeypatch.setattr(gpu, "BATCHES", 1)
    monkeypatch.setattr(gpu, "_facts", dict)
    monkeypatch.setattr(gpu, "gemm_rate", lambda: 1e12)
    monkeypatch.setattr(gpu, "copy_rate", lambda: 1e11)
    monkeypatch.setattr(torch.cuda, "Event", Mark)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(af.Batch, "to", lambda batch, device: batch)
    monkeypatch.setattr(af.Model, "cuda", lambda model: model)
    monkeypatch.setattr(af.Model, "compile", lambda model, device, graphs: GpuPlan(model, "cpu"))
    monkeypatch.setattr(gpu, "launch_costs", dict)


def test_rows_and_summary(card, monkeypatch):
    def captured(model, batch):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(gpu, "_captured", captured)
    told = []
    rows = gpu.run(["alimama"], ["pool"], ["ragged"], [2], ["plan", "eager", "graph", "launched"], quick=True, on_row=told.append)
    assert rows == told and [row["engine"] for row in rows] == ["plan", "eager", "graph", "launched"]
    plan, eager, graph, launched = rows
    assert launched["backend"] == plan["backend"] == "triton" and launched["ratio"] is None
    for row in (plan, eager, launched):
        assert row["refused"] is None and row["samples_per_s"] > 0 and row["max_abs_err"] < 1e-5
        assert row["p50_ms"] > 0 and 0 < row["share_of_limit"] and row["seconds_to_first_result"] > 0
    assert plan["ratio"] == pytest.approx(plan["samples_per_s"] / eager["samples_per_s"]) and eager["ratio"] is None
    assert graph["refused"] == "graph failed: CUDA error: operation not permitted when stream is capturing"
    assert "refused" in gpu.line(graph) and "samples/s" in gpu.line(plan)
    assert plan["share_of_bandwidth"] <= plan["share_of_limit"] <= plan["share_of_bandwidth"] + plan["share_of_products"]
    assert plan["ratio_compile"] is None and len(gpu.summary(rows)) == 1
    assert gpu.summary(rows)[0].startswith("alimama, ragged, batch 2: the plan has ")
    first, second = gpu.summary([{**plan, "ratio": 2.0, "ratio_compile": 8.0}, {**plan, "ratio": 2.0, "ratio_compile": 2.0}])
    assert "2.0 times the best peer's samples/s" in first
    assert second.endswith("the plan has 4.0 times torch.compile's samples/s in the geometric mean of 2, least 2.0")


def test_a_plan_that_fails_is_no_refusal(card, monkeypatch):
    def compiled(model, device, graphs):
        raise RuntimeError("no")

    monkeypatch.setattr(af.Model, "compile", compiled)
    with pytest.raises(RuntimeError, match="no"):
        gpu.run(["criteo"], None, None, [2], ["plan"], quick=True)
    with pytest.raises(af.InputError, match="unknown engine 'best'"):
        gpu.run(engines=["best"])
