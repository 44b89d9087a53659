"""prepare_criteo: every published form against plain Python, real rows, and what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard

from ameir_fast import InputError, cli
from ameir_fast.data import Dataset, cells, criteo, prepare_criteo, text_source
from tests import data_helpers as helpers
from tests.shared import shared

ROOT = Path(__file__).resolve().parents[1]
COUNTS = [f"I{i}" for i in range(1, 14)]
HASHED = [f"C{i}" for i in range(1, 27)]
FIELDS = COUNTS + HASHED
MISSING = -(2**31)


def make_rows(rows: int = 400, seed: int = 0, text: bool = False) -> list[list[str]]:
    """Cells as in Criteo's train.txt: label, counts with gaps and negative ones, hashes with gaps."""
    rng = random.Random(seed)
    values = [[f"{rng.getrandbits(32):08x}" + ("é" if text else "") for _ in range(3 + 9 * i % 40)] for i in range(26)]
    found = []
    for _ in range(rows):
        counts = ["" if rng.random() < 0.3 else str(int(rng.paretovariate(0.5)) - 3) for _ in COUNTS]
        hashed = ["" if rng.random() < 0.1 else rng.choice(v) for v in values]
        found.append([str(int(rng.random() < 0.3)), *counts, *hashed])
    return found


def tsv(rows: list[list[str]]) -> bytes:
    return "".join("\t".join(row) + "\n" for row in rows).encode()


def table(rows: list[list[str]], header: list[str], separator: str = ",", line: str = "\n") -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=separator, lineterminator=line).writerows([header, *rows])
    return text.getvalue().encode()


def log2(cell: str) -> int:
    """The winners' rule: small values as they are, logarithms squared of the others, all of them distinct."""
    value = int(float(cell)) if cell else None
    return MISSING if value is None else value if value <= 2 else 2 + int(math.log(value) ** 2)


def check(data: Dataset, rows: list[list[str]], rule, least: int, fields=FIELDS) -> None:
    """Labels and ``fields`` of all rows, which are in the order of the splits, and the vocabularies of these fields."""
    train = rows[: data.size("train")]
    batches = [helpers.whole(data, split) for split in ("train", "valid", "test")]
    assert np.concatenate([b.label.numpy() for b in batches]).tolist() == [float(row[0]) for row in rows]
    ids = np.concatenate([b.fields.numpy() for b in batches])
    assert ids.shape == (len(rows), len(FIELDS))
    for name in fields:
        j = FIELDS.index(name)
        values = [rule(row[1 + j]) if name in COUNTS else row[1 + j] for row in rows]
        counts = Counter(value for value in values[: len(train)] if value != "")
        known = {value for value, count in counts.items() if count >= least}
        tokens = data.tokens(name)
        assert tokens[0] is None and set(tokens[1:]) == known
        assert [counts[t] for t in tokens[1:]] == sorted((counts[t] for t in known), reverse=True)
        assert [tokens[i] for i in ids[:, j]] == [value if value in known else None for value in values]


def prepared(tmp_path: Path, content: bytes, name: str = "train.txt", **options) -> Dataset:
    path = tmp_path / name
    path.write_bytes(content)
    prepare_criteo(path, tmp_path / "out", overwrite=True, **options)
    return Dataset.open(tmp_path / "out")


GOOD = make_rows(30)


# ---- forms ----------------------------------------------------------------------------------------


def test_train_txt(tmp_path):
    rows = make_rows()
    data = prepared(tmp_path, tsv(rows), min_count=3)
    assert data.splits == {"train": (0, 320), "valid": (320, 360), "test": (360, 400)}
    assert [f.name for f in data.schema.fields] == FIELDS and data.kind == "criteo"
    check(data, rows, log2, 3)
    assert data.statistics["rows"] == 400 and data.statistics["dropped"] == {}


FORMS = {
    "gzip": lambda rows: gzip.compress(tsv(rows)),
    "zstandard": lambda rows: zstandard.ZstdCompressor().compress(tsv(rows)),
    "carriage returns and a mark": lambda rows: b"\xef\xbb\xbf" + tsv(rows).replace(b"\n", b"\r\n"),
    "blank lines, no end": lambda rows: b"\n" + tsv(rows).replace(b"\n", b"\n\n").rstrip(b"\n"),
    "tabs and header": lambda rows: table(rows, ["label", *FIELDS], "\t"),
    "Kaggle's train.csv": lambda rows: table([[str(10**7 + i), *r] for i, r in enumerate(rows)],
                                              ["Id", "Label", *FIELDS]),
    "row numbers": lambda rows: table([[str(i), *r] for i, r in enumerate(rows)], ["", "label", *FIELDS]),
    "commas, no header": lambda rows: tsv(rows).replace(b"\t", b","),
    "columns in another order": lambda rows: table([r[::-1] for r in rows], ["label", *FIELDS][::-1]),
    "quotes": lambda rows: table(rows, ["label", *FIELDS]).replace(b"label", b'"label"'),
    "numbers as a data frame writes them": lambda rows: table(
        [[r[0] + ".0", *(c and c + ".0" for c in r[1:14]), *r[14:]] for r in rows], ["label", *FIELDS]),
}


def frame(tmp_path: Path, content: bytes) -> pl.DataFrame:
    """What the reader makes of a file."""
    path = tmp_path / "read"
    path.write_bytes(content)
    return helpers.rows_of(criteo.source({path: criteo.form(path)}, "log2"))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_every_form_gives_the_same(tmp_path, form):
    rows = make_rows(120)
    assert frame(tmp_path, form(rows)).equals(frame(tmp_path, tsv(rows)))


@pytest.mark.parametrize("native", [True, False])
def test_blocks_give_the_same(tmp_path, monkeypatch, native):
    if not native:
        monkeypatch.setattr(cells, "available", lambda: False)
    rows = make_rows(200)
    rows[150][3] = "2.0"  # one block has text where others have numbers
    plain = frame(tmp_path, tsv(rows))
    monkeypatch.setattr(text_source, "BLOCK", 1000)
    monkeypatch.setattr(text_source, "TOGETHER", 2)
    path = tmp_path / "read"
    assert len(list(criteo.source({path: criteo.form(path)}, "log2").chunks())) > 20
    assert frame(tmp_path, tsv(rows)).equals(plain)


def test_texts_of_any_kind_are_categories(tmp_path):
    rows = make_rows(120, text=True)
    check(prepared(tmp_path, tsv(rows), min_count=2), rows, log2, 2)


def test_several_files_and_folders(tmp_path):
    rows = make_rows(300)
    whole = prepared(tmp_path, tsv(rows), min_count=2)
    folder = tmp_path / "days"
    folder.mkdir()
    for day, part in (("day_2", rows[:100]), ("day_10.gz", rows[100:220]), ("day_11.csv", rows[220:])):
        content = table(part, ["label", *FIELDS]) if day.endswith("csv") else tsv(part)
        (folder / day).write_bytes(gzip.compress(content) if day.endswith("gz") else content)
    (folder / "README.md").write_text("not data")
    (folder / "readme.txt").write_text("not data")
    prepare_criteo(folder, tmp_path / "of-folder", min_count=2)
    prepare_criteo([folder / "day_2", folder / "day_10.gz", folder / "day_11.csv"], tmp_path / "of-files", min_count=2)
    for name in ("of-folder", "of-files"):
        assert Dataset.open(tmp_path / name).checksum == whole.checksum
    # What Criteo publishes: the test rows have no labels and are not read.
    (folder / "train.txt").write_bytes(tsv(rows))
    (folder / "test.txt").write_bytes(tsv([row[1:] for row in rows]))
    prepare_criteo(folder, tmp_path / "published", min_count=2)
    assert Dataset.open(tmp_path / "published").checksum == whole.checksum


# ---- options --------------------------------------------------------------------------------------


def log(cell: str) -> int:
    value = int(cell) if cell else None
    return MISSING if value is None else value if value <= 2 else 2 + int(math.log(value))


@pytest.mark.parametrize(("numeric", "rule"), [
    ("log2", log2), ("log", log), ("none", lambda cell: int(cell) if cell else MISSING)])
def test_numeric(tmp_path, numeric, rule):
    rows = make_rows(200)
    check(prepared(tmp_path, tsv(rows), min_count=1, numeric=numeric), rows, rule, 1)


@pytest.mark.parametrize("bins", [None, 7])
def test_quantiles(tmp_path, bins):
    """Each count against edges found by sorting the training rows' counts in plain Python."""
    rows = make_rows(300)
    data = prepared(tmp_path, tsv(rows), min_count=2, numeric="quantile", bins=bins)
    ids = np.concatenate([helpers.whole(data, split).fields.numpy() for split in ("train", "valid", "test")])
    for j in range(13):
        cells = [row[1 + j] for row in rows]
        known = sorted(int(cell) for cell in cells[:240] if cell)
        edges = {known[k * len(known) // (bins or 100)] for k in range(1, bins or 100)} - {known[0]}
        assert ids[:, j].tolist() == [cell and 1 + sum(edge <= int(cell) for edge in edges) or 0 for cell in cells]
    about = json.loads((tmp_path / "out" / "dataset.json").read_text())
    assert about["options"] == {"numeric": "quantile", "bins": bins or 100, "min_count": 2, "split": "order"}
    check(data, rows, None, 2, HASHED)


def test_numeric_edges(tmp_path):
    """Small, negative and huge counts, each token against the rule; whole floats, and fractions rounded down."""
    cells = ["", "-3", "-2", "-1", "0", "1", "2", "3", "4", "5", "7", "8", "65535", "2147483647", "99999999999"]
    rows = [["1", *([cell] * 13), *(["aa"] * 26)] for cell in cells * 12]
    check(prepared(tmp_path, tsv(rows), min_count=1), rows, log2, 1)
    data = prepared(tmp_path, tsv([["1", *(["2.7"] * 13), *(["aa"] * 26)]] * 10), min_count=1)
    assert data.tokens("I1") == [None, 2]


def test_min_count_is_ten_in_the_training_rows_alone(tmp_path):
    rows = [["0", *(["1"] * 13), *(["common"] * 26)] for _ in range(100)]
    for i in range(9):
        rows[i][14], rows[i][15] = "nine", "ten"
    rows[9][15] = "ten"
    for row in rows[80:]:
        row[14] = "nine"  # often, but later
    data = prepared(tmp_path, tsv(rows))
    assert data.tokens("C1") == [None, "common"] and data.tokens("C2") == [None, "common", "ten"]


def test_random_split(tmp_path):
    rows = make_rows(200)
    one = prepared(tmp_path, tsv(rows), min_count=2, split="random", seed=1)
    first = one.checksum
    assert prepared(tmp_path, tsv(rows), min_count=2, split="random", seed=1).checksum == first
    other = prepared(tmp_path, tsv(rows), min_count=2, split="random", seed=2)
    assert other.checksum != first
    assert [other.size(s) for s in ("train", "valid", "test")] == [160, 20, 20]
    assert json.loads((tmp_path / "out" / "dataset.json").read_text())["options"] == {
        "numeric": "log2", "min_count": 2, "split": "random", "seed": 2}


def test_preparing_imports_no_torch(tmp_path):
    """Which takes longer than preparing little data does."""
    (tmp_path / "train.txt").write_bytes(tsv(make_rows(30)))
    program = ("import sys; from ameir_fast import cli; result = cli._run(sys.argv[1:]); "
               "print(result, 'polars' in sys.modules, 'torch' in sys.modules)")
    done = subprocess.run([sys.executable, "-c", program, "prepare", "criteo", "--input", tmp_path / "train.txt",
                           "--output", tmp_path / "out"], capture_output=True, text=True, check=True,
                          env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.stdout.splitlines()[-1] == "0 True False"


# ---- rows to score --------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"numeric": "quantile", "bins": 5}, {"numeric": "none", "split": "random"}])
def test_like(tmp_path, options):
    """Criteo's folder: other rows get the ids that training gave, without labels, some of them, or all."""
    rows, more = make_rows(300), make_rows(90, seed=3)
    more = [[row[0], *row[1:14], *other[14:]] for row, other in zip(more, make_rows(90), strict=True)]  # known hashes
    more[5][20] = "ffffffff"
    folder = tmp_path / "dac"
    folder.mkdir()
    (folder / "train.txt").write_bytes(tsv(rows))
    (folder / "test.txt").write_bytes(tsv([row[1:] for row in more]))
    prepare_criteo(folder, tmp_path / "model", min_count=2, **options)
    prepare_criteo(folder, tmp_path / "test", like=tmp_path / "model")
    model, test = (Dataset.open(tmp_path / name) for name in ("model", "test"))
    assert test.schema == model.schema and test.splits == {"train": (0, 0), "valid": (0, 0), "test": (0, 90)}
    batch = helpers.whole(test, "test")
    assert np.isnan(batch.label.numpy()).all() and batch.fields[5, FIELDS.index("C7")] == 0
    for name in HASHED:
        ids = {token: i for i, token in enumerate(model.tokens(name)) if token}
        assert batch.fields[:, FIELDS.index(name)].tolist() == [ids.get(row[1 + FIELDS.index(name)], 0) for row in more]
    # The same rows with labels beside those of training: the same ids.
    prepare_criteo(folder / "train.txt", tmp_path / "again", like=tmp_path / "model")
    again = helpers.whole(Dataset.open(tmp_path / "again"), "test")
    assert again.label.tolist() == [float(row[0]) for row in rows]
    if options.get("split") != "random":
        assert (again.fields[:240] == helpers.whole(model, "train").fields).all()
    (folder / "some.txt").write_bytes(tsv([["" if k % 2 else row[0], *row[1:]] for k, row in enumerate(more)]))
    prepare_criteo(folder / "some.txt", tmp_path / "some", like=tmp_path / "model")
    label = helpers.whole(Dataset.open(tmp_path / "some"), "test").label.numpy()
    assert np.isnan(label[1::2]).all() and label[::2].tolist() == [float(row[0]) for row in more[::2]]


def test_what_is_refused_of_rows_to_score(tmp_path):
    train, test = tmp_path / "train.txt", tmp_path / "test.txt"
    train.write_bytes(tsv(GOOD))
    test.write_bytes(tsv([row[1:] for row in GOOD]))
    prepare_criteo(train, tmp_path / "model", numeric="log")
    for options, message in (({"numeric": "log2"}, "model: was prepared with numeric log, not log2"),
                             ({"min_count": 5}, "model: was prepared with min_count 10, not 5"),
                             ({"split": "order"}, "split, parts and seed do not go with like"),
                             ({"like": tmp_path / "none"}, "none/dataset.json: no such file")):
        with pytest.raises(InputError, match=message):
            prepare_criteo(test, tmp_path / "out", **{"like": tmp_path / "model", **options})
    with pytest.raises(InputError, match=r"test.txt: of this file and .*train.txt only one has labels"):
        prepare_criteo([train, test], tmp_path / "out", like=tmp_path / "model")
    with pytest.raises(InputError, match="bins go with numeric quantile, not with log2"):
        prepare_criteo(train, tmp_path / "out", bins=5)
    about = json.loads((tmp_path / "model" / "dataset.json").read_text())
    for part, message in (({"kind": "avazu"}, "model: was prepared from avazu, not from criteo"),
                          ({"options": None}, "dataset.json: 'options' is missing or malformed")):
        (tmp_path / "model" / "dataset.json").write_text(json.dumps({**about, **part}))
        with pytest.raises(InputError, match=message):
            prepare_criteo(test, tmp_path / "out", like=tmp_path / "model")
    assert not (tmp_path / "out").exists()


# ---- refused --------------------------------------------------------------------------------------

def broken(row: int, column: int, cell: str | None) -> bytes:
    rows = [list(r) for r in GOOD]
    rows[row][column : column + 1] = [] if cell is None else [cell]
    return tsv(rows)


REFUSED = {
    "label 2": (broken(4, 0, "2"), r"line 5: column 'label' is 2, a label that is neither 0 nor 1"),
    "label a word": (broken(4, 0, "yes"), r"line 5: column 'label' is 'yes', not a number"),
    "no label": (broken(29, 0, ""), r"line 30: column 'label' is missing"),
    "count a word": (broken(7, 3, "many"), r"line 8: column 'I3' is 'many', not a number"),
    "count nan": (broken(7, 13, "nan"), r"line 8: column 'I13' is 'nan', not a number"),
    "too few": (broken(11, 20, None), r"line 12 has 39 columns, not 40"),
    "too many": (broken(11, 20, "aa\tbb"), r"line 12 has 41 columns, not 40"),
    "another table": (b"a,b\n1,2\n", r"line 1 has 2 columns; Criteo's rows have 40"),
    "no labels": (tsv([row[1:] for row in GOOD]), "has no labels; rows to learn from need them, others are prepared with --like"),
    "no labels, header": (table([row[1:] for row in GOOD], FIELDS), "has no labels"),
    "only a header": (table([], ["label", *FIELDS]), "there are no rows"),
    "header again": (table([*GOOD, ["label", *FIELDS], *GOOD], ["label", *FIELDS]), "line 32 repeats the header"),
    "header later": (tsv([*GOOD, ["label", *FIELDS]]), "line 31: column 'label' is 'label', not a number"),
    "name twice": (table([[*row, "1"] for row in GOOD], ["label", *FIELDS, "Label"]), "names the column 'label' twice"),
    "not UTF-8": (tsv(GOOD) + broken(0, 20, "x").replace(b"x", b"\xff"), "line 31 is not UTF-8"),
    "zero byte": (broken(3, 20, "a\0b"), "line 4 holds a NUL byte"),
    "empty": (b"", "the file is empty"),
    "cut off": (gzip.compress(tsv(GOOD))[:-20], "damaged or cut off"),
    "long line": (tsv(GOOD) + b"1" * (10 << 20), "line 31 has more than 1,048,576 bytes"),
    "long first line": (b"1" * (10 << 20), "line 1 has more than 1,048,576 bytes"),
    "two rows": (tsv(GOOD[:2]), "the valid split is empty"),
}


@pytest.mark.parametrize(("content", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused(tmp_path, content, message):
    path = tmp_path / "train.txt"
    path.write_bytes(content)
    before = helpers.files_below(tmp_path)
    place = "" if "split" in message else f"{re.escape(str(path))}: .*"
    with pytest.raises(InputError, match=place + message):
        prepare_criteo(path, tmp_path / "out")
    assert helpers.files_below(tmp_path) == before


def test_a_line_far_into_a_packed_file_is_named(tmp_path):
    rows = make_rows(50) * 400  # 20,000 lines, several blocks
    rows[19_876] = [*rows[19_876][:5], "x", *rows[19_876][6:]]
    path = tmp_path / "train.gz"
    path.write_bytes(gzip.compress(tsv(rows), 1))
    with pytest.raises(InputError, match=r"train.gz: line 19877: column 'I5' is 'x', not a number"):
        prepare_criteo(path, tmp_path / "out")


def test_paths_that_are_refused(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    for path, message in ((tmp_path / "none", "no such file"), (folder, "holds no text file"),
                          (tmp_path / "dac.tar.gz", "is an archive")):
        (tmp_path / "dac.tar.gz").touch()
        with pytest.raises(InputError, match=f"{re.escape(str(path))}: {message}"):
            prepare_criteo(path, tmp_path / "out")
    for name in ("train.txt", "train.csv"):
        (folder / name).write_bytes(tsv(GOOD))
    with pytest.raises(InputError, match="holds train.csv and train.txt; name the one to read"):
        prepare_criteo(folder, tmp_path / "out")
    with pytest.raises(InputError, match="no input file"):
        prepare_criteo([], tmp_path / "out")
    for option in ({"numeric": "sqrt"}, {"split": "time"}):
        with pytest.raises(InputError, match="is none of"):
            prepare_criteo(folder / "train.txt", tmp_path / "out", **option)


# ---- real rows ------------------------------------------------------------------------------------


def test_the_published_form(tmp_path):
    """8,000 rows of the real file."""
    path = shared("criteo/criteo_raw_8k.tsv.gz")
    prepare_criteo(path, tmp_path / "out")
    with gzip.open(path, "rt") as file:
        rows = [line.rstrip("\n").split("\t") for line in file]
    assert len(rows) == 8000
    check(Dataset.open(tmp_path / "out"), rows, log2, 10)


def test_a_table_with_row_numbers(tmp_path):
    """80,000 rows, by the command."""
    path = shared("criteo/criteo_80k.csv.gz")
    with pytest.raises(SystemExit) as ended:
        cli.main(["prepare", "criteo", "--input", str(path), "--output", str(tmp_path / "out"), "--min-count", "20",
                  "--numeric", "none", "--json", str(tmp_path / "result.json")])
    assert ended.value.code == 0
    with gzip.open(path, "rt", newline="") as file:
        rows = [row[1:] for row in csv.reader(file)][1:]
    data = Dataset.open(tmp_path / "out")
    check(data, rows, lambda cell: int(cell) if cell else MISSING, 20, ["I2", "I5", "C3", "C20"])
    assert json.loads((tmp_path / "result.json").read_text())["statistics"] == data.statistics
    assert data.statistics["rows"] == 80_000 and round(data.statistics["label_rate"], 4) == 0.2245
