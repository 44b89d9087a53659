"""The report of the quality table: its statistics, and that what is stored and quoted is what it prints."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from ameir_fast.bench import movielens

ROOT = Path(__file__).resolve().parents[1]
STORED = ROOT / "bench" / "results" / "movielens-100k.json"


def test_spearman_averages_ties():
    # Ranks 0, 1.5, 1.5, 3 against 0, 1, 2, 3: covariance 4.5, variances 4.5 and 5.
    assert movielens.spearman(np.array([1.0, 2, 2, 9]), np.array([3.0, 4, 5, 6])) == pytest.approx(4.5 / (4.5 * 5) ** 0.5)
    assert movielens.spearman(np.array([1.0, 2, 3]), np.array([5.0, 0, -1])) == pytest.approx(-1)
    assert np.isnan(movielens.spearman(np.ones(3), np.arange(3.0)))


def test_rank_correlation_averages_runs_and_supernets():
    alone = np.array([[0.0, 1, 2, 3, 4], [0, 1, 2, 3, 10]])
    scores = np.array([[0.0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 1, 2, 3, 4]])
    found = movielens.rank_correlation(scores, alone)
    assert found["each"] == pytest.approx([1, -1, 1]) and found["rho"] == pytest.approx(1 / 3)
    # Every draw of children orders them alike: what moves are the draws of three supernets, of which each agrees
    # (+1) or not (-1) with probability 2/3 and 1/3, so a mean of three has deviation sqrt(8/9 / 3).
    assert found["standard_error"] == pytest.approx((8 / 27) ** 0.5, rel=0.05)
    assert movielens.rank_correlation(scores[:1], alone)["standard_error"] == pytest.approx(0, abs=1e-12)
    noisy = np.random.default_rng(0).normal(size=(1, 20))
    error = movielens.rank_correlation(noisy, np.random.default_rng(1).normal(size=(3, 20)))["standard_error"]
    assert 0.15 < error < 0.35  # about 1 / sqrt(19) without any relation
    assert movielens.agreement(alone) == pytest.approx(1) and movielens.agreement(alone[:1]) is None


def test_rank_studies_take_what_has_been_run(tmp_path):
    def write(name: str, rows: list[dict]) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.json").write_text(json.dumps(rows))

    args = Namespace(work=tmp_path, seeds=1, rank_runs=2, rank_supernets=4)
    assert movielens.rank_studies(args) == {}
    for run in range(2):
        write(f"rank-behavior-{run}", [{"valid": v, "test": -v} for v in range(5)])
    write("rank-behavior-2", [{"valid": -v, "test": v} for v in range(5)])  # of an earlier, longer study
    write("scores-0", [{"supernet": -v, "adapted": v} for v in range(5)])
    write("rank-mlp-0", [{"valid": v, "test": v, "supernet": v} for v in range(5)])
    found = movielens.rank_studies(args)
    assert set(found) == {"behavior", "mlp"} and found["behavior"]["runs"] == 2
    assert found["behavior"]["supernet"]["valid"]["rho"] == pytest.approx(-1)
    assert found["behavior"]["adapted"]["valid"]["rho"] == pytest.approx(1)
    assert found["behavior"]["adapted"]["test"]["rho"] == pytest.approx(-1)
    assert found["mlp"]["supernet"]["test"]["rho"] == pytest.approx(1)
    assert found["mlp"]["agreement_of_two_trainings"] is None


def test_the_stored_table_is_the_stored_report():
    text = STORED.with_suffix(".md").read_text(encoding="utf-8")
    assert movielens.as_markdown(json.loads(STORED.read_text(encoding="utf-8"))) == text


def test_the_readme_quotes_the_stored_table():
    head = (ROOT / "README.md").read_text(encoding="utf-8").split("## Results")[0]
    rows = json.loads(STORED.read_text(encoding="utf-8"))["variants"]
    for name in ("AMEIR-C", "DIN", "DNN"):
        assert f"{rows[name]['auc']['mean']:.4f} ± {rows[name]['auc']['std']:.4f}" in head
    for name in ("AMEIR-C", "DIN"):
        assert f"{np.mean(rows[name]['parameters_outside_embedding']):,.0f}" in head
