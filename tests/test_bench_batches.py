"""The bench of feeding: made-up data as prepared data is, a row for each engine, everything by the command line."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest
from ameir_fast.bench import batches, feeding, suites

from ameir_fast import InputError
from ameir_fast.data import Dataset
from tests import data_helpers as helpers
from tests.test_cli import call


@pytest.mark.parametrize("name", sorted(batches.CASES))
def test_made_up_data_is_prepared_data(tmp_path, name):
    schema = suites.SUITES[name]()[0].schema
    data = batches.made_up(tmp_path, schema, 3000)
    assert data.schema == schema and data.splits == {"train": (0, 2400), "valid": (2400, 2700), "test": (2700, 3000)}
    seen = [batch.check(schema) for split in data.splits for batch in data.batches(split, 512)]
    assert sum(map(len, seen)) == 3000
    if not schema.behavior:
        return
    # Row by row: as many earlier rows as the user has, the newest 50 of them, and the same ones for each later row.
    user = np.load(tmp_path / "columns" / "row_user.npy").tolist()
    begin, end = (np.load(tmp_path / "columns" / f"history_{part}.npy").tolist() for part in ("begin", "end"))
    had: dict[int, int] = {}
    starts: dict[int, int] = {}
    for row, owner in enumerate(user):
        assert end[row] - begin[row] == had.setdefault(owner, 0)
        assert starts.setdefault(owner, begin[row]) == begin[row]
        had[owner] += 1
    lengths = [len(history) for batch in seen for history in helpers.histories(batch)]
    assert lengths == [min(50, b - a) for a, b in zip(begin, end, strict=True)] and max(lengths) == 50


def test_every_engine_feeds_and_leaves_native_code_as_it_was(tmp_path, monkeypatch):
    data = batches.made_up(tmp_path, suites.SUITES["criteo"]()[0].schema, 2000)
    for before in (None, "1"):
        if before:
            monkeypatch.setenv("AMEIR_FAST_NATIVE", before)
        rows = feeding.feeding(data, 0.3, batches.ENGINES, embedding=2, batch=64)
        assert [row["engine"] for row in rows] == list(batches.ENGINES)
        assert all(row["rows"] == 1600 and row["batch"] == 64 and row["rows_per_s"] > 0 < row["ratio"] for row in rows)
        assert rows[0]["ratio"] == rows[1]["ratio"]
        assert os.environ.get("AMEIR_FAST_NATIVE") == before


def test_the_permutation_is_read_to_its_end_and_again(tmp_path, monkeypatch):
    data = batches.made_up(tmp_path, suites.SUITES["criteo"]()[0].schema, 1000)
    seen = []
    monkeypatch.setattr(Dataset, "batch", lambda self, split, rows: seen.append(rows.tolist()) or rows)
    work = feeding._permuted(data, 128)
    assert [work() for _ in range(7)] == [128] * 7
    assert len({row for rows in seen[:6] for row in rows}) == 768 and seen[5] != seen[6]


def test_the_whole_bench(tmp_path, capsys, monkeypatch):
    short = lambda data, seconds, engines, width: feeding.feeding(data, 0.2, engines, 2)
    monkeypatch.setattr(batches, "feeding", short)
    work = tmp_path / "work"
    work.mkdir()
    assert call("bench", "batches", "--rows", "2000", "--work", work, "--json", tmp_path / "rows.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(row["case"], row["engine"]) for row in rows] == [
        (case, engine) for case, engines in batches.CASES.items() for engine in engines]
    assert {"suite", "embedding_dim", "versions", "cpu", "platform", "git", "date", "threads"} <= rows[0].keys()
    assert capsys.readouterr().out.count("rows/s") == len(rows) and os.listdir(work) == []
    with pytest.raises(SystemExit):
        batches.main(["--rows", "999"])
    assert capsys.readouterr().err == "error: 999 rows are fewer than 1000\n"


def test_a_full_disk_is_foreseen(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda place: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(InputError, match=r"^20,000,000 rows need 3.7 GB of disk, 0.0 are free"):
        batches.run(20_000_000, work=tmp_path)
    assert os.listdir(tmp_path) == []
