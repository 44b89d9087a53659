"""bench.strategies: what each strategy of step 1 finds with the same shared weights."""

from __future__ import annotations

import json

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


def test_differences_are_paired():
    about = {"children": 9, "seconds": 2.0, "plain": 0.5}
    rows = [{**about, "seed": seed, "strategy": name, "best": best, "trained": 0.5}
            for seed, name, best in ((0, "random", 0.6), (0, "beam", 0.7), (1, "random", 0.8), (1, "beam", 0.85))]
    rows[1]["seconds"] = 3.0
    _, _, drawn, beam = strategies.table(rows)
    assert drawn == "| random | 9 | 1.0 | 0.7000 | – | 0.5000 | – |"
    assert beam == "| beam | 9 | 1.2 | 0.7750 | +0.0750 ± 0.0250 | 0.5000 | +0.0000 ± 0.0000 |"
