"""Why sampled ranks and ranks among all items disagree: the command's figures against metrics computed another way."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from ameir_fast.bench import ranks

from ameir_fast.data import Dataset
from ameir_fast.errors import InputError

from . import tiny

ROOT = Path(__file__).resolve().parents[1]
STORED = sorted((ROOT / "bench" / "results").glob("*-ranks.json"))


@pytest.fixture(scope="module")
def sequences(tmp_path_factory):
    return tiny.prepared_sequences(tmp_path_factory.mktemp("ranks"), repeats=False)


def test_a_whole_report(sequences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    arguments = ["--data", str(sequences.directory), "--name", "tiny", "--set", "epochs=3", "--set", "batch_size=32",
                 "--set", "embedding_dim=8", "--set", "negatives=4"]
    assert ranks.main(arguments) == 0
    path = tmp_path / "bench" / "results" / "tiny.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    assert list(report["models"]) == ["DIN", "SASRec"] and report["changed_settings"]["epochs"] == 3
    text = path.with_suffix(".md").read_text(encoding="utf-8")
    assert text == ranks.as_markdown(report) and text in capsys.readouterr().out + "\n"
    for found in report["models"].values():
        assert found["curve"][-1]["epoch"] == 3
        best = max(found["curve"], key=lambda entry: entry["all"])
        assert best["epoch"] == pytest.approx(found["kept"])
        assert found["without"][0]["share"] == 0
        hits = list(found["hr"].values())
        assert hits == sorted(hits) and hits[-1] == 1  # fewer than 20,000 items
        assert sum(group["rows"] for group in found["groups"]) == sequences.size("test")
        mean = sum(group["rows"] * (group["all"] or 0) for group in found["groups"]) / sequences.size("test")
        assert mean == pytest.approx(found["hr"]["10"])
    assert "| 20–39 |" in text and "Seed 0, " in text
    # What has been trained is not trained again.
    (tmp_path / "runs" / "ranks" / "tiny" / "DIN.log").unlink()
    assert ranks.main(arguments) == 0
    assert json.loads(path.read_text(encoding="utf-8"))["models"] == report["models"]


class Fixed(torch.nn.Module):
    """Users and items by hand: scores are the items' own numbers."""

    def __init__(self, scores: torch.Tensor):
        super().__init__()
        self.scores = scores

    def forward(self, batch, items):
        return items(torch.ones(len(batch), 1), self.scores[:, None])


def test_popularity_in_scores(sequences):
    """Of scores that are the log of training rows, taking all of it out leaves ties; the correlation is 1."""
    arguments = type("Arguments", (), {"data": sequences.directory, "config": None, "set": None, "seed": 0})
    task = ranks.open_task(arguments)
    counts = torch.from_numpy(sequences.popularity()).clamp(min=0.5).log().float()
    found = ranks.judged(task, Fixed(counts))
    assert found["score_popularity"] == pytest.approx(1, abs=1e-5)
    assert ranks.judged(task, Fixed(-counts))["score_popularity"] == pytest.approx(-1, abs=1e-5)
    item = len(counts) - 1
    flat = found["without"][-1]
    assert flat["share"] == 1
    # Tied with n others an item has each rank alike: NDCG@5 is the mean gain of five ranks over n + 1.
    gain = sum(1 / torch.log2(torch.arange(2.0, 7.0))).item()
    assert flat["uniform100"] == pytest.approx(gain / 101, rel=0.1) and gain / item <= flat["all"] * 1.01
    by_rank = found["without"][0]["uniform100"]
    assert by_rank > flat["uniform100"]  # popular items are asked for more often


def test_bad_input(sequences, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        ranks.main(["--data", str(sequences.directory), "--name", "x", "--models", "POP"])
    assert "POP is none of DIN, GRU4Rec, SASRec, NextItNet" in capsys.readouterr().err
    fields = tiny.prepared_fields(tmp_path / "fields", rows=200)
    assert Dataset.open(fields.directory).task == "ctr"
    with pytest.raises(InputError, match="is not data of the retrieval task"):
        ranks.main(["--data", str(fields.directory), "--name", "x"])


@pytest.mark.parametrize("path", STORED, ids=lambda path: path.stem)
def test_stored_pages_are_those_of_stored_reports(path):
    assert ranks.as_markdown(json.loads(path.read_text(encoding="utf-8"))) == path.with_suffix(".md").read_text(encoding="utf-8")


def test_a_report_is_stored():
    assert STORED


def test_the_page_quotes_the_stored_report():
    section = (ROOT / "docs/evaluation.md").read_text(encoding="utf-8").split("## When sampled items say otherwise")[1].split("\n## ")[0]
    section = " ".join(section.split())
    models = json.loads((ROOT / "bench/results/beauty-ranks.json").read_text(encoding="utf-8"))["models"]
    plain, other = models["DIN"], models["SASRec"]

    def pair(first: float, second: float) -> str:
        return f"{first:.4f} against {second:.4f}"

    leads = {k: plain["hr"][str(k)] - other["hr"][str(k)] for k in ranks.CUTS}
    assert [k for k, lead in leads.items() if lead > 0.003] == [5, 10, 20, 50] and "from k = 5 to 50" in section
    assert [k for k, lead in leads.items() if lead < -0.003] == [500, 1000, 2000] and "from 500 to 2,000" in section
    assert "differences of less than 0.003" in section
    half, rare, popular = ranks.SHARES.index(0.5), ranks.COUNTS.index(1), ranks.COUNTS.index(80)
    for text in (pair(plain["hr"]["5"], other["hr"]["5"]), pair(other["hr"]["500"], plain["hr"]["500"]),
                 pair(plain["groups"][rare]["popular100"], other["groups"][rare]["popular100"]),
                 pair(plain["groups"][popular]["popular100"], other["groups"][popular]["popular100"]),
                 f"{plain['score_popularity']:.2f}, SASRec's {other['score_popularity']:.2f}",
                 f"an NDCG@5 of {plain['without'][half]['popular100']:.4f} there, above SASRec's {other['without'][0]['popular100']:.4f}",
                 f"{plain['without'][half]['all']:.4f} among all items, still above {other['without'][0]['all']:.4f}",
                 f"gains as much from the same ({other['without'][half]['popular100']:.4f})"):
        assert text in section
    best = max(other["curve"], key=lambda entry: entry["uniform100"])
    assert f"epoch {best['epoch']:.0f} (validation {best['uniform100']:.4f}), and falls to {other['curve'][-1]['uniform100']:.4f}" in section
    for group in range(len(ranks.COUNTS)):  # "ahead or level whether an item is rare or popular"
        assert plain["groups"][group]["all"] > other["groups"][group]["all"] - 0.002
