"""bench.strategies: what each strategy of step 1 finds with the same shared weights."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import mean, stdev

import pytest

from ameir_fast.bench import strategies
from tests import tiny


def test_every_strategy_ranks_with_the_same_weights(tmp_path, capsys):
    tiny.prepared(tmp_path)
    stored = tmp_path / "rows.jsonl"
    settings = [f"--set={name}={json.dumps(value)}" for name, value in tiny.CONFIG.to_dict().items() if name in (
        "embedding_dim", "batch_size", "epochs", "blocks", "warmup_epochs", "behavior_epochs", "top_k")]
    assert strategies.main(["--data", str(tmp_path / "data"), "--json", str(stored), "--seeds=2", "--children=70", *settings]) == 0
    rows = [json.loads(line) for line in stored.read_text().splitlines()]
    assert [(row["seed"], row["strategy"]) for row in rows] == [(s, n) for s in (0, 1) for n in ("random", "evolution", "beam")]
    for row in rows:
        assert row["children"] == 70 and row["seconds"] > 0 and 0 < row["top"] <= row["best"] < 1 and 0 < row["trained"] < 1
    assert len({row["plain"] for row in rows}) == 2  # one a seed
    said = capsys.readouterr().out
    assert "| random | 70 | 1.0 |" in said and said.count(" ± ") == 4
    again = [*settings, "--data", str(tmp_path / "data"), "--json", str(stored), "--seeds=1", "--children=70"]
    assert strategies.main([*again, "--strategies=beam"]) == 0
    alone, = (json.loads(line) for line in stored.read_text().splitlines())
    assert {key: alone[key] for key in ("strategy", "best", "plain")} == {key: rows[2][key] for key in ("strategy", "best", "plain")}
    assert "| random" not in capsys.readouterr().out
    with pytest.raises(SystemExit):
        strategies.main([*again, "--strategies=beam,best-first"])
    assert "best-first unknown; there are random" in capsys.readouterr().err


def test_differences_are_paired():
    about = {"children": 9, "seconds": 2.0, "plain": 0.5}
    rows = [{**about, "seed": seed, "strategy": name, "best": best, "trained": 0.5}
            for seed, name, best in ((0, "random", 0.6), (0, "beam", 0.7), (1, "random", 0.8), (1, "beam", 0.85))]
    rows[1]["seconds"] = 3.0
    _, _, drawn, beam = strategies.table(rows)
    assert drawn == "| random | 9 | 1.0 | 0.7000 | – | 0.5000 | – |"
    assert beam == "| beam | 9 | 1.2 | 0.7750 | +0.0750 ± 0.0250 | 0.5000 | +0.0000 ± 0.0000 |"


def test_the_page_quotes_many_more_paths():
    root = Path(__file__).resolve().parents[1]
    page = " ".join((root / "docs" / "population.md").read_text(encoding="utf-8").split())
    read = lambda name: [json.loads(line) for line in (root / "bench/results" / name).read_text(encoding="utf-8").splitlines()]
    drawn = {row["seed"]: row for row in read("strategies.jsonl") if row["strategy"] == "random"}
    many = read("strategies-10000.jsonl")
    assert all(row["children"] == 10_000 and row["plain"] == drawn[row["seed"]]["plain"] for row in many)  # the same shared weights
    for key in ("best", "trained"):
        found = [row[key] - drawn[row["seed"]][key] for row in many]
        assert f"{mean(found):+.4f} ± {stdev(found) / len(found) ** 0.5:.4f}" in page
