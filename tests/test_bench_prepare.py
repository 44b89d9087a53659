"""The bench of ``prepare``: rows as published, equal results, memory of another process, one row for each thing said."""

from __future__ import annotations

import gzip
import json
import os
import sys
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from ameir_fast.bench import criteo_rows, prepare
from ameir_fast.bench.feeding import feeding

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_criteo
from ameir_fast.data.criteo import COUNTS, HASHED
from tests.shared import shared
from tests.test_cli import call


def table(path) -> pl.DataFrame:
    return pl.read_csv(path, separator="\t", has_header=False, new_columns=["label", *COUNTS, *HASHED],
                       infer_schema=False)


def test_made_up_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(criteo_rows, "CHUNK", 3000)
    told = []
    criteo_rows.write(tmp_path / "a", 7000, moved=told.append)
    criteo_rows.write(tmp_path / "b", 7000)
    criteo_rows.write(tmp_path / "c", 7000, seed=1)
    first = (tmp_path / "a").read_bytes()
    assert first == (tmp_path / "b").read_bytes() != (tmp_path / "c").read_bytes()
    assert told == [3000, 6000, 7000] and first.count(b"\n") == 7000
    found = table(tmp_path / "a")
    assert found[:3000].select("I5", "C3").join(found[3000:6000], on=["I5", "C3"], how="semi").height < 300
    missing = sum(found.null_count().row(0)) / (39 * 7000)
    assert 0.12 < missing < 0.22 and found["label"].null_count() == 0
    assert 0.2 < found["label"].cast(pl.Int8).mean() < 0.3
    assert found["I2"].cast(pl.Int64).min() == -2 and found["I5"].cast(pl.Int64).max() > 50_000
    for name in ("C1", "C3", "C17"):
        assert found[name].drop_nulls().str.contains("^[0-9a-f]{8}$").all()
    # Zipf: the most frequent value has about 1 of ln(100,000) shares, most others few.
    counts = found["C3"].drop_nulls().value_counts(sort=True)["count"]
    assert 0.03 < counts[0] / 7000 < 0.09 and counts.median() <= 2 and len(counts) > 2000
    assert found["C17"].n_unique() == 10


def test_made_up_rows_look_like_the_real_ones(tmp_path):
    """Bytes a row and shares of missing cells, by column, against 8,000 real rows."""
    with gzip.open(shared("criteo/criteo_raw_8k.tsv.gz")) as file:
        (tmp_path / "real").write_bytes(file.read())
    criteo_rows.write(tmp_path / "made", 8000)
    sizes = [(tmp_path / name).stat().st_size for name in ("real", "made")]
    assert abs(sizes[1] / sizes[0] - 1) < 0.05
    real, made = (np.array(table(tmp_path / name).null_count().row(0)) / 8000 for name in ("real", "made"))
    assert np.abs(real - made).max() < 0.1


def test_memory_of_a_process():
    """What this process has doesn't count, and what the other one lets go of again does."""
    ballast = np.ones(400 << 17)
    program = "import time; b = b'x' * (100 << 20); time.sleep(0.3); del b; time.sleep(0.2)"
    done = prepare.measured([sys.executable, "-c", program])
    assert ballast.sum() > 0
    assert 100 << 20 < done.peak_bytes < 200 << 20
    assert 0.5 < done.seconds < 20
    with pytest.raises(RuntimeError, match="exit code 3: .*what went wrong"):
        prepare.measured([sys.executable, "-c", "import sys; print('what went wrong'); sys.exit(3)"])


def test_feeding(tmp_path):
    criteo_rows.write(tmp_path / "train.txt", 3000)
    prepare_criteo(tmp_path / "train.txt", tmp_path / "out")
    batches, training = feeding(Dataset.open(tmp_path / "out"), 0.2)
    assert (batches["engine"], training["engine"]) == ("batches", "training")
    assert batches["rows"] == 2400 and batches["rows_per_s"] > 0 < training["rows_per_s"]
    assert batches["ratio"] == training["ratio"] > 0 < batches["first_batch_s"]


def test_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(prepare, "_facts", dict)
    with pytest.raises(InputError, match="999 rows are fewer than 1000"):
        prepare.run([10_000], pandas_rows=999)
    with pytest.raises(InputError, match=r"10,000,000,000,000 rows need 7000000 GB of disk, .* choose another place"):
        prepare.run([10**13], work=tmp_path)
    assert os.listdir(tmp_path) == []
    monkeypatch.setattr(prepare.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="the baseline needs pandas: pip install"):
        prepare.run()


def test_the_whole_bench(tmp_path, capsys, monkeypatch):
    """Both engines on a small file, one of them on a larger one, feeding; and that unequal ids are noticed."""
    pytest.importorskip("pandas", reason="the baseline (extra `bench`)")
    monkeypatch.setattr(prepare, "feeding", lambda data, seconds: feeding(data, 0.2))
    work = tmp_path / "work"
    work.mkdir()
    assert call("bench", "prepare", "--rows", "5000", "--pandas-rows", "2000", "--rounds", "2", "--work", work,
                "--json", tmp_path / "rows.jsonl") == 0
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    assert [(r["case"], r["engine"], r.get("rounds")) for r in rows] == [
        ("criteo 2,000 rows", "ameir-fast", 2), ("criteo 2,000 rows", "pandas", 2),
        ("criteo 5,000 rows", "ameir-fast", 1), ("feeding", "batches", 5), ("feeding", "training", 5)]
    assert rows[1]["ratio"] == 1 and rows[2]["ratio"] == pytest.approx(rows[2]["rows_per_s"] / rows[1]["rows_per_s"])
    assert rows[3]["rows"] == 4000 and all(r["peak_bytes"] > 1 << 20 for r in rows[:3])
    assert {"cpus", "versions", "cpu", "platform", "git", "date", "suite"} <= rows[0].keys()
    assert capsys.readouterr().out.count("rows/s") == 5 and os.listdir(work) == []
    write = criteo_rows.write

    def write_another(file, rows):
        write(file, rows, seed=int(file.exists()))

    monkeypatch.setattr(criteo_rows, "write", write_another)
    write(work / "train.txt", 2000)
    prepare._prepare("pandas", work, work / "train.txt")
    prepare._prepare("ameir-fast", work, prepare._written(work, 2000))
    with pytest.raises(AssertionError, match="pandas and ameir-fast differ in label"):
        prepare._check_equal(work)


def test_the_pages_quote_the_stored_rows():
    root = Path(__file__).resolve().parents[1]
    stored = [json.loads(line) for line in (root / "bench/results/prepare.jsonl").read_text().splitlines()]
    (ours, theirs, large), (batches, _) = stored[:3], stored[3:]
    assert (ours["rows"], large["rows"], theirs["engine"]) == (10_000_000, 30_000_000, "pandas")
    page, readme = ((root / name).read_text(encoding="utf-8") for name in ("docs/data.md", "README.md"))

    def memory(row) -> str:
        return f"{row['peak_bytes'] / 2**30:.2f}"

    assert f"{batches['rows_per_s']:,.0f} rows/s, {batches['ratio']:.0f} times" in page
    said = " ".join(readme.split())
    assert f"{ours['ratio']:.2f} times as fast as by pandas, in {memory(ours)} GiB against {memory(theirs)}" in said
