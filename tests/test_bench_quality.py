"""The quality table of any data: seeds in processes of their own, what is collected of them, and what is stored."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from ameir_fast.bench import quality
from ameir_fast.errors import InputError

from . import tiny

ROOT = Path(__file__).resolve().parents[1]
STORED = [path for path in sorted((ROOT / "bench" / "results").glob("*.json"))
          if "references" in json.loads(path.read_text(encoding="utf-8"))]


def rows(shift: float, runs: int = 1) -> dict:
    return {"auc": {"mean": 0.7 + shift, "std": 0.0, "runs": [0.7 + shift] * runs}, "parameters": 10 + round(shift * 10),
            "parameters_outside_embedding": 5, "samples_per_s": 1e3, "valid": {"mean": 0.6, "std": 0.0, "runs": [0.6]},
            "seconds": 1.0}


def test_tables_of_seeds():
    runs = [{"variants": {"A": rows(0.1), "B": rows(0.0)}}, {"variants": {"A": rows(0.2), "B": rows(0.28)}}]
    table = quality.variant_table(runs)
    assert table["A"]["auc"]["runs"] == pytest.approx([0.8, 0.9])
    assert table["A"]["auc"]["std"] == pytest.approx(np.std([0.8, 0.9], ddof=1))
    assert table["A"]["parameters"] == [11, 12] and "seconds" not in table["A"]
    found = quality.paired_differences(table, ["B"], "auc")
    assert set(found) == {"A - B"} and found["A - B"]["mean"] == pytest.approx(0.01)
    assert found["A - B"]["standard_error"] == pytest.approx(0.09) and found["A - B"]["wins"] == 1
    assert quality.difference(found["A - B"]) == ("+0.0100 ± 0.0900", "1/2")
    alone = quality.paired_differences(quality.variant_table(runs[:1]), ["A"], "auc")
    assert quality.difference(alone["B - A"]) == ("-0.1000", "0/1") and quality.difference(None) == ("–", "–")


def test_a_whole_table(tmp_path, monkeypatch, capsys):
    data = tiny.prepared_fields(tmp_path / "fields", rows=400)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "quick.json").write_text(json.dumps(
        tiny.CONFIG.changed(epochs=0.5, cycles=1, mlp_children=8, batch_size=64).to_dict()))
    arguments = ["--data", str(data.directory), "--name", "tiny", "--seeds", "2", "--config", "quick.json",
                 "--set", "learning_rate=0.01"]
    assert quality.main(arguments) == 0
    report = json.loads((tmp_path / "bench" / "results" / "tiny.json").read_text())
    assert list(report["variants"]) == ["AMEIR-I", "AMEIR-B", "AMEIR-C", "DNN", "DeepFM"]
    assert report["references"] == ["DNN", "DeepFM"] and report["metric"] == "auc" and len(report["found"]) == 2
    assert report["changed_settings"]["learning_rate"] == 0.01 and "beside" not in report and report["config"]["learning_rate"] == 0.01
    for seed in range(2):
        run = json.loads((tmp_path / "runs" / "quality" / "tiny" / f"seed-{seed}" / "metrics.json").read_text())
        for name, entry in report["variants"].items():
            assert entry["auc"]["runs"][seed] == run["variants"][name]["auc"]["runs"][0]
        assert run["variants"]["DNN"]["run_seeds"] == [seed]
    text = (tmp_path / "bench" / "results" / "tiny.md").read_text(encoding="utf-8")
    # The same runs under a budget's name, beside themselves.
    first = (tmp_path / "bench" / "results" / "tiny.json").rename(tmp_path / "first.json")
    assert quality.main([*arguments, "--collect", "--beside", str(first)]) == 0
    beside = json.loads((tmp_path / "bench" / "results" / "tiny.json").read_text())["beside"]
    assert beside["name"] == "first" and set(beside["differences"]) == set(report["variants"])
    assert all(found["mean"] == 0 and found["of"] == 2 for found in beside["differences"].values())
    assert text == quality.as_markdown(report) and text in capsys.readouterr().out + "\n"
    for word in ("# tiny, 2 seeds", "AUC − DeepFM (paired)", "| AMEIR-C |", "learning_rate 0.01", "- 1, AMEIR-C: "):
        assert word in text
    # Another collection of the same runs, against another row; and a row that is not there.
    assert quality.main([*arguments, "--collect", "--against", "AMEIR-I", "--note", "Beside a backup."]) == 0
    assert "\nBeside a backup.\n" in (tmp_path / "bench" / "results" / "tiny.md").read_text()
    again = json.loads((tmp_path / "bench" / "results" / "tiny.json").read_text())
    assert set(again["paired_differences"]) == {f"{name} - AMEIR-I" for name in again["variants"] if name != "AMEIR-I"}
    with pytest.raises(InputError, match="--against POP: no such row"):
        quality.main([*arguments, "--collect", "--against", "POP"])


def test_a_failed_seed_is_told(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert quality.main(["--data", "nowhere", "--name", "tiny", "--seeds", "1"]) == 1
    assert "failed, see runs/quality/tiny/0.log" in capsys.readouterr().err
    assert not (tmp_path / "bench").exists()


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_tables_are_those_of_stored_reports(path):
    assert quality.as_markdown(json.loads(path.read_text(encoding="utf-8"))) == path.with_suffix(".md").read_text(
        encoding="utf-8")


def test_the_page_on_budgets_quotes_the_stored_table():
    page = (ROOT / "docs/population.md").read_text(encoding="utf-8").split("## Budgets")[1].split("\n## ")[0]
    gains = json.loads((ROOT / "bench/results/movielens-100k-budget.json").read_text(encoding="utf-8"))["beside"]["differences"]
    for name in ("AMEIR-A", "AMEIR-C"):
        assert quality.difference(gains[name])[0] in page
    ranks = json.loads((ROOT / "bench/results/movielens-100k.json").read_text(encoding="utf-8"))["rank_correlation"]["behavior"]
    longer, default = (json.loads((ROOT / f"bench/results/movielens-100k{kind}.json").read_text(encoding="utf-8"))["seconds_per_search"]
                       for kind in ("-budget", ""))
    assert f"took {np.mean(longer):.0f} s on average, a default one with its longer table {np.mean(default):.0f} s" in " ".join(page.split())
    for kind in ("supernet", "adapted"):
        assert f"{ranks[kind]['valid']['rho']:+.2f} ± {ranks[kind]['valid']['standard_error']:.2f}" in page


def test_the_readme_quotes_stored_tables():
    section = (ROOT / "README.md").read_text(encoding="utf-8").split("## Other data")[1].split("\n## ")[0]
    planted = json.loads((ROOT / "bench/results/planted.json").read_text(encoding="utf-8"))
    for study, kind in (("rank_behavior", "supernet"), ("rank_interactions", "shared"), ("rank_interactions", "crosses")):
        assert f"{planted[study][kind]['valid']['rho']:+.2f} ± {planted[study][kind]['valid']['standard_error']:.2f}" in section
    shares = [search["share"] for search in planted["searches"]]
    for name in ("AMEIR-C", "AMEIR-A"):
        assert " and ".join(f"{share[name]:.1%}" for share in shares) in section
