"""prepare_avazu: the published form against plain Python, real rows, and what is refused."""

from __future__ import annotations

import csv
import gzip
import json
import random
import re
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard

from ameir_fast import InputError, cli
from ameir_fast.data import Dataset, avazu, prepare_avazu
from tests import data_helpers as helpers
from tests.shared import shared

HEADER = ["id", "click", "hour", "C1", "banner_pos", "site_id", "site_domain", "site_category", "app_id", "app_domain",
          "app_category", "device_id", "device_ip", "device_model", "device_type", "device_conn_type",
          *(f"C{i}" for i in range(14, 22))]
NUMBERED = [c for c in HEADER[3:] if c[0] == "C" or c in ("banner_pos", "device_type", "device_conn_type")]
FIELDS = ["hour", "weekday", "weekend", *HEADER[3:]]
START = datetime(2014, 10, 21, tzinfo=UTC)


def make_rows(rows: int = 400, seed: int = 0) -> list[dict]:
    """As in Kaggle's train.csv: in the order of time, several rows an hour."""
    rng = random.Random(seed)
    pools = {c: [str(rng.randrange(-1, 400)) if c in NUMBERED else f"{rng.getrandbits(32):08x}" for _ in range(30)]
             for c in HEADER[3:]}
    found, time = [], START
    for k in range(rows):
        time += timedelta(hours=rng.random() < 0.4)
        found.append({"id": str(10**19 + k), "click": str(int(rng.random() < 0.2)), "hour": f"{time:%y%m%d%H}",
                      **{c: pool[int(30 * rng.random() ** 2)] for c, pool in pools.items()}})
    return found


def text(rows: list[dict], header=HEADER, line: str = "\r\n") -> bytes:
    return line.join([",".join(header), *(",".join(row[c] for c in header) for row in rows), ""]).encode()


def values(row: dict) -> list:
    """What the fields of a row mean, by Python's own calendar."""
    time = datetime.strptime(row["hour"], "%y%m%d%H")
    return [time.hour, time.isoweekday(), int(time.isoweekday() in (6, 7)),
            *(int(row[c]) if c in NUMBERED else row[c] for c in HEADER[3:])]


def check(data: Dataset, rows: list[dict], least: int) -> None:
    """Every stored field and label against ``rows``, which are in the order of the splits."""
    train = rows[: data.size("train")]
    batches = [helpers.whole(data, split) for split in ("train", "valid", "test")]
    assert np.concatenate([b.label.numpy() for b in batches]).tolist() == [float(row["click"]) for row in rows]
    ids = np.concatenate([b.fields.numpy() for b in batches])
    assert ids.shape == (len(rows), len(FIELDS))
    for j, column in enumerate(zip(*map(values, rows), strict=True)):
        counts = Counter(column[: len(train)])
        known = {v for v, n in counts.items() if n >= (1 if j < 3 else least)}
        tokens = data.tokens(FIELDS[j])
        assert {t for t in tokens if t is not None} == known
        assert [tokens[i] for i in ids[:, j]] == [v if v in known else None for v in column]


def prepared(tmp_path: Path, content: bytes, name: str = "train.csv", **options) -> Dataset:
    path = tmp_path / name
    path.write_bytes(content)
    prepare_avazu(path, tmp_path / "out", overwrite=True, **options)
    return Dataset.open(tmp_path / "out")


def test_train_csv(tmp_path):
    rows = make_rows()
    data = prepared(tmp_path, text(rows))
    assert [f.name for f in data.schema.fields] == FIELDS and data.kind == "avazu"
    check(data, rows, 2)
    # No hour is parted, and the boundaries are the nearest ones.
    hours = [row["hour"] for row in rows]
    for (_, end), wanted in ((data.splits["train"], 320), (data.splits["valid"], 360)):
        assert hours[end - 1] < hours[end]
        assert abs(end - wanted) == min(abs(k - wanted) for k in range(1, 400) if hours[k - 1] < hours[k])
    parts = data.statistics["splits"]
    first = datetime.strptime(hours[0], "%y%m%d%H").replace(tzinfo=UTC)
    assert parts["train"]["first_time"] == first.timestamp()
    assert parts["train"]["last_time"] < parts["valid"]["first_time"]


FORMS = {
    "gzip": lambda rows: gzip.compress(text(rows)),
    "zstandard": lambda rows: zstandard.ZstdCompressor().compress(text(rows)),
    "line feeds": lambda rows: text(rows, line="\n"),
    "another order": lambda rows: text(rows, HEADER[::-1]),
    "tabs, no id": lambda rows: text(rows, HEADER[1:]).replace(b",", b"\t"),
    "quotes": lambda rows: text(rows).replace(b"hour", b'"hour"'),
    "numbers as a data frame writes them": lambda rows: text([{**r, "C20": r["C20"] + ".0"} for r in rows]),
}


def frame(tmp_path: Path, content: bytes) -> pl.DataFrame:
    """What the reader makes of a file."""
    path = tmp_path / "read"
    path.write_bytes(content)
    return helpers.rows_of(avazu.source({path: avazu.form(path)}))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same(tmp_path, form):
    rows = make_rows(150)
    assert frame(tmp_path, form(rows)).equals(frame(tmp_path, text(rows)))


def test_the_folder_that_kaggle_publishes(tmp_path):
    rows = make_rows(150)
    plain = prepared(tmp_path, text(rows)).checksum
    folder = tmp_path / "avazu"
    folder.mkdir()
    (folder / "train.gz").write_bytes(gzip.compress(text(rows)))
    (folder / "test.gz").write_bytes(gzip.compress(text(rows, [c for c in HEADER if c != "click"])))
    (folder / "sampleSubmission.gz").write_bytes(gzip.compress(b"id,click\n"))
    prepare_avazu(folder, tmp_path / "of-folder")
    assert Dataset.open(tmp_path / "of-folder").checksum == plain


def test_the_other_splits(tmp_path):
    rows = make_rows(200)
    data = prepared(tmp_path, text(rows), split="order")
    assert data.splits == {"train": (0, 160), "valid": (160, 180), "test": (180, 200)}
    check(data, rows, 2)
    sums = [prepared(tmp_path, text(rows), split="random", seed=seed).checksum for seed in (1, 2, 1)]
    assert sums[0] == sums[2] != sums[1]
    # An order that is not that of time: rows are put in order, equal hours as they come.
    mixed = random.Random(0).sample(rows, len(rows))
    check(prepared(tmp_path, text(mixed)), sorted(mixed, key=lambda row: row["hour"]), 2)


def test_min_count(tmp_path):
    rows = [{**row, "device_ip": f"{k:08x}", "device_id": f"{k // 2:08x}"} for k, row in enumerate(make_rows(100))]
    data = prepared(tmp_path, text(rows), split="order")
    assert data.tokens("device_ip") == [None] and len(data.tokens("device_id")) == 41
    assert len(prepared(tmp_path, text(rows), split="order", min_count=1).tokens("device_ip")) == 81


def test_missing_values(tmp_path):
    rows = make_rows(60)
    rows[3] = {**rows[3], "C14": "", "site_id": ""}
    batch = helpers.whole(prepared(tmp_path, text(rows), min_count=1, split="order"), "train")
    assert batch.fields[3, FIELDS.index("C14")] == 0 == batch.fields[3, FIELDS.index("site_id")]


def test_like(tmp_path):
    """Kaggle's folder: rows to score keep the order of the file and get the ids that training gave."""
    rows = make_rows(200)
    more = random.Random(0).sample([{**row, "C14": "999", "click": ""} for row in make_rows(80)], 80)
    folder = tmp_path / "avazu"
    folder.mkdir()
    (folder / "train.gz").write_bytes(gzip.compress(text(rows)))
    (folder / "test.gz").write_bytes(gzip.compress(text(more, [c for c in HEADER if c != "click"])))
    prepare_avazu(folder, tmp_path / "model")
    prepare_avazu(folder, tmp_path / "test", like=tmp_path / "model")
    model, test = (Dataset.open(tmp_path / name) for name in ("model", "test"))
    assert test.schema == model.schema and test.splits["test"] == (0, 80)
    batch = helpers.whole(test, "test")
    assert np.isnan(batch.label.numpy()).all()
    for j, column in enumerate(zip(*map(values, more), strict=True)):
        ids = {token: i for i, token in enumerate(model.tokens(FIELDS[j])) if token is not None}
        assert batch.fields[:, j].tolist() == [ids.get(value, 0) for value in column]
    assert not batch.fields[:, FIELDS.index("C14")].any()
    for options, message in (({"min_count": 5}, "was prepared with min_count 2, not 5"),
                             ({"split": "time"}, "split, parts and seed do not go with like")):
        with pytest.raises(InputError, match=message):
            prepare_avazu(folder, tmp_path / "out", like=tmp_path / "model", **options)


GOOD = make_rows(40)


def broken(row: int, **cells: str) -> bytes:
    return text([{**r, **cells} if k == row else r for k, r in enumerate(GOOD)])


REFUSED = {
    "label 2": (broken(4, click="2"), r"line 6: column 'click' is 2, a label that is neither 0 nor 1"),
    "no label": (broken(39, click=""), r"line 41: column 'click' is missing"),
    "month 13": (broken(4, hour="14130100"), r"line 6: column 'hour' is 14130100, no hour of the form YYMMDDHH"),
    "hour 24": (broken(9, hour="14102124"), r"line 11: column 'hour' is 14102124, no hour"),
    "30 February": (broken(9, hour="15023000"), r"line 11: column 'hour' is 15023000, no hour"),
    "with century": (broken(9, hour="2014102100"), r"line 11: column 'hour' is '?2014102100'?, no hour"),
    "negative hour": (broken(9, hour="-14102100"), r"line 11: column 'hour' is -14102100, no hour"),
    "hour a word": (broken(9, hour="noon"), r"line 11: column 'hour' is 'noon', not a whole number"),
    "no hour": (broken(9, hour=""), r"line 11: column 'hour' is missing"),
    "number a word": (broken(9, C14="many"), r"line 11: column 'C14' is 'many', not a number"),
    "fraction": (broken(9, C21="1.5"), r"line 11: column 'C21' is '1.5', not a whole number"),
    "too many": (broken(9, C14="1,2"), r"line 11 has 25 columns, not 24"),
    "header again": (text(GOOD) + text(GOOD), "line 42 repeats the header"),
    "name twice": (text(GOOD, [*HEADER[:-1], "C20"]), "names the column 'C20' twice"),
    "no header": (text(GOOD).split(b"\n", 1)[1], "line 1 names no column 'hour'; Avazu's files begin with a header"),
    "column missing": (text(GOOD, HEADER[:-1]), "line 1 names no column 'C21'"),
    "no labels": (text(GOOD, [c for c in HEADER if c != "click"]), "has no labels; rows to learn from need them"),
    "only a header": (text([]), "there are no rows"),
    "not UTF-8": (text(GOOD) + b"\xff" + text(GOOD), "line 42 is not UTF-8"),
    "empty": (b"", "the file is empty"),
    "cut off": (gzip.compress(text(GOOD))[:-20], "damaged or cut off"),
    "long line": (text(GOOD) + b"1" * (10 << 20), "line 42 has more than 1,048,576 bytes"),
    "one hour": (text([{**r, "hour": "14102100"} for r in GOOD]),
                 "the valid split is empty: 40 rows, split by time, and rows of one time stay together"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, content, message):
    path = tmp_path / "train.csv"
    path.write_bytes(content)
    before = helpers.files_below(tmp_path)
    place = "" if "split" in message else f"{re.escape(str(path))}: .*"
    with pytest.raises(InputError, match=place + message):
        prepare_avazu(path, tmp_path / "out")
    assert helpers.files_below(tmp_path) == before


def test_unknown_split(tmp_path):
    with pytest.raises(InputError, match="split 'user' is none of time, order, random"):
        prepare_avazu(tmp_path / "train.csv", tmp_path / "out", split="user")


def test_real_rows(tmp_path):
    """The first hour of the real file, by the command."""
    path = shared("avazu/train_first_hour.csv.gz")
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", "avazu", "--input", str(path), "--output", str(tmp_path / "out"), "--split", "order",
                  "--json", str(tmp_path / "result.json")])
    assert ended.value.code == 0
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    data = Dataset.open(tmp_path / "out")
    check(data, rows, 2)
    assert json.loads((tmp_path / "result.json").read_text())["statistics"] == data.statistics
    assert data.statistics["rows"] == 9999 and data.statistics["splits"]["test"]["rows"] == 1000
