"""The bench on planted truth: its tasks at small sizes, and what its report says of known results."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from ameir_fast.bench import planted, planted_report
from ameir_fast.data.planted import Planted

TINY = replace(planted.QUICK, rows=2000, children=3)


def test_tasks_have_data_that_fits_them():
    for sizes in (planted.FULL, planted.QUICK):
        names = planted.tasks(sizes)
        assert len(set(names)) == len(names)
        assert planted.settings(sizes, 3).seed == 3
        kinds = {planted.data_of(t) for t in names}
        assert {"order", "sum", "products", "mixed-0", "planted-1"} <= kinds
        for name in kinds:
            options = planted.data_options(name, sizes)
            assert options.rows == sizes.rows and bool(options.behavior) == (options.history_mean > 0)
    mixed = planted.data_options("mixed-4", planted.FULL)
    assert mixed.seed == 4 and mixed.behavior == ("order",)
    assert tuple(i.fields for i in mixed.interactions) == planted.PLANTED
    # The study's triples: no two planted ones share a pair, and absent ones share none with them.
    pairs = [frozenset(p) for f, _ in planted.GRADED for p in ((f[0], f[1]), (f[1], f[2]), (f[0], f[2]))]
    assert len(set(pairs)) == 36
    for f in planted.ABSENT:
        assert not {frozenset(p) for p in ((f[0], f[1]), (f[1], f[2]), (f[0], f[2]))} & set(pairs)


def test_order_sensitive_layers_are_those_that_can_see_the_signal():
    """The signal turns its sign with the history: exactly what these layers can tell."""
    from ameir_fast.space.choices import LAYERS
    assert set(planted_report.SENSITIVE) < set(LAYERS)
    truth = Planted(planted.data_options("order", TINY))
    item = truth._draw("x", 4096)[0][0]
    user = np.repeat(np.arange(4096 // 8), 8)
    forward = truth._signals(item, user)["order"][7::8]  # of seven events before the last one
    turned = item.reshape(-1, 8)[:, [6, 5, 4, 3, 2, 1, 0, 7]].ravel()
    np.testing.assert_array_equal(truth._signals(turned, user)["order"][7::8], -forward)
    assert forward.std() > 0


def test_small_tasks_run_and_resume(tmp_path):
    for task in ("data:products", "scores:products", "data:planted-1", "step2:crosses:1"):
        planted.run_task(tmp_path, TINY, task)
    scores = json.loads((tmp_path / "scores-products" / "result.json").read_text())
    assert [tuple(r["fields"]) for r in scores] == planted.study_triples() and len(scores) == 16
    assert all(0 <= r["shared"] <= 1 and np.isfinite(r["crosses"]) for r in scores)
    two = (tmp_path / "step2-crosses-1" / "result.json")
    before = two.read_text()
    assert set(json.loads(before)["places"]) == set(map(str, planted.PLANTED))
    two.unlink()
    planted.run_task(tmp_path, TINY, "step2:crosses:1")
    assert two.read_text() == before
    report = planted_report.collect(tmp_path, TINY, 1)
    assert report["rank_behavior"] is None and report["triple_found"]["crosses"]["seeds"] == 1
    assert "| crosses |" in planted_report.as_markdown(report)


@pytest.mark.slow
def test_everything_runs_quickly(tmp_path):
    assert planted.main(["--quick", "--work", str(tmp_path), "--jobs", "1"]) == 0
    report = json.loads((tmp_path / "planted.json").read_text())
    assert report["rank_behavior"]["children"] == planted.QUICK.children and len(report["searches"]) == 1
    assert set(report["preference"]) == set(planted.SIGNALS) and len(report["products"]) == 16


def test_the_report_of_known_results(tmp_path):
    def write(name: str, value) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / ("metrics.json" if name.startswith("search") else "result.json")).write_text(json.dumps(value))

    def path(layer: str) -> list[dict]:
        return [{"norm": "none", "layer": layer, "activation": "relu"}]

    for signal, gain in (("order", 0.1), ("sum", 0.0)):
        ranking = [{"score": 0.6 + (gain if layer == "conv3" else 0.0), "behavior": path(layer)}
                   for layer in ("conv3", "dconv3") * 20]
        write(f"step1-{signal}-0", {"ranking": ranking, "found": {"behavior": path("bi_gru" if gain else "max_pool3")},
                                    "study": [{"supernet": -v, "adapted": v} for v in range(5)]})
    write("alone-order-0", [{"valid": v, "test": 2 * v} for v in range(5)])
    write("step2-crosses-0", {"found": [[1, 2], [3, 4, 5]]})
    write("step2-shared-0", {"found": [[1, 2]]})
    truth = {"bayes_auc": {"test": {"drawn": 0.9, "expected": 0.89}}}
    write("search-0", {"data": {"statistics": {"truth": truth}}, "found": [{}], "seconds": 60.0,
                       "environment": {"cpu": "A processor", "torch": "2", "git": "abc", "date": "today"},
                       "variants": {"AMEIR-C": {"auc": {"runs": [0.89]}}, "DIN": {"auc": {"runs": [0.6]}}}})
    report = planted_report.collect(tmp_path, planted.QUICK, 2)
    order, plain = report["preference"]["order"], report["preference"]["sum"]
    assert order["difference"] == pytest.approx(0.1) and order["found_sensitive"] == 1
    assert plain["difference"] == pytest.approx(0.0) and plain["found_sensitive"] == 0
    assert report["rank_behavior"]["adapted"]["test"]["rho"] == pytest.approx(1)
    assert report["rank_behavior"]["supernet"]["valid"]["rho"] == pytest.approx(-1)
    assert report["triple_found"] == {"crosses": {"seeds": 1, "found": 1}, "shared": {"seeds": 1, "found": 0}}
    assert report["searches"][0]["share"] == pytest.approx({"AMEIR-C": 0.975, "DIN": 0.25})
    text = planted_report.as_markdown(report)
    for line in ("| 1 | after short trainings | 5 | 1 | +1.00 ± 0.00 | +1.00 ± 0.00 | – |", "| AMEIR-C | 0.8900 | 97.5% |",
                 "| order | +0.1000 ± 0.0000 | 1 of 1 | bi_gru |"):
        assert line in text
