"""FuxiCTR's configurations: csv and parquet against plain Python, what is refused."""

from __future__ import annotations

import gzip
from collections import Counter

import polars as pl
import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_fuxictr
from tests import data_helpers as helpers
from tests.fuxictr_files import COLUMNS, CONFIG, make_rows, write

yaml = pytest.importorskip("yaml", reason="PyYAML is not installed (the fuxictr extra)")


def expected_counts(rows: list[dict]) -> dict[str, Counter]:
    counts = {
        name: Counter(str(r[name]) for r in rows if r[name] != "") for name in ("userid", "adgroup_id", "cate_id")
    }
    counts["level"] = Counter(r["level"] or "0" for r in rows)
    counts["tags"] = Counter(t for r in rows for t in r["tags"].split()[-2:])
    for shared, name in (("adgroup_id", "click_sequence"), ("cate_id", "cate_sequence")):
        counts[shared].update(v for r in rows for v in r[name].split("^") if v)
    least = {name: 1 if name == "level" else 2 for name in counts}
    return {name: Counter({v: n for v, n in c.items() if n >= least[name]}) for name, c in counts.items()}


def compare(data: Dataset, parts: dict[str, list[dict]]) -> None:
    counts = expected_counts(parts["train"])
    tokens = {name: data.tokens(name) for name in counts}
    for name in counts:
        assert Counter(tokens[name][1:]) == Counter(list(counts[name])), name
    keep = lambda name, value: value if value in counts[name] else None
    names = ("userid", "adgroup_id", "cate_id", "level")
    for split, rows in parts.items():
        batch = helpers.whole(data, split)
        bags, events = helpers.bags(batch), helpers.histories(batch)
        for k, row in enumerate(rows):
            assert int(batch.label[k]) == row["clk"]
            for i, name in enumerate(names):
                wanted = row[name] or "0" if name == "level" else str(row[name])
                assert tokens[name][batch.fields[k, i]] == keep(name, wanted), name
            assert [tokens["tags"][t] for t in bags[k]] == [keep("tags", t) for t in row["tags"].split()[-2:]]
            wanted = [
                (keep("adgroup_id", a), keep("cate_id", c))
                for a, c in zip(row["click_sequence"].split("^"), row["cate_sequence"].split("^"), strict=True)
                if a
            ]
            assert [(tokens["adgroup_id"][a], tokens["cate_id"][c]) for a, c in events[k]] == wanted[-5:]


def test_csv(tmp_path):
    parts = write(tmp_path / "tiny")
    notes = []
    prepare_fuxictr(
        tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny", on_note=notes.append
    )
    data = Dataset.open(tmp_path / "out")
    assert [(f.name, f.kind, f.vocabulary) for f in data.schema.fields] == [
        ("userid", "categorical", "userid"),
        ("adgroup_id", "categorical", "adgroup_id"),
        ("cate_id", "categorical", "cate_id"),
        ("level", "categorical", "level"),
        ("price", "categorical", "price"),
        ("tags", "multi_categorical", "tags"),
    ]
    assert [(b.name, b.vocabulary) for b in data.schema.behavior] == [
        ("click_sequence", "adgroup_id"),
        ("cate_sequence", "cate_id"),
    ]
    assert data.schema.target == ("adgroup_id", "cate_id") and data.schema.max_history == 5
    assert notes == ["left out: feature group (meta, for metrics only)"]
    compare(data, parts)
    prepare_fuxictr(
        tmp_path / "tiny", tmp_path / "less", dataset_id="tiny", root=tmp_path / "tiny", bins=0, on_note=notes.append
    )
    assert "price" not in Dataset.open(tmp_path / "less").field_names
    assert notes[1:] == [*notes[:1], "left out: feature price (numeric, which is no category)"]


@pytest.mark.parametrize("fill", ["", ", fill_na: 3"])
def test_numbers_are_cut_into_ranges(tmp_path, fill):
    parts = write(tmp_path / "tiny")
    text = CONFIG.replace("type: numeric", f"type: numeric{fill}")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny", bins=4)
    data = Dataset.open(tmp_path / "out")
    place = [f.name for f in data.schema.fields].index("price")
    ids = helpers.whole(data, "test").fields[:, place].tolist()
    given = [float(r["price"]) if r["price"] else (3.0 if fill else None) for r in parts["test"]]
    ranges = sorted({(v, i) for v, i in zip(given, ids, strict=True) if v is not None})
    assert len(ranges) == len({v for v, _ in ranges}) and [i for _, i in ranges] == sorted(i for _, i in ranges)
    assert {i for v, i in zip(given, ids, strict=True) if v is None} == (set() if fill else {0})
    assert ranges[0][1] == 1 and ranges[-1][1] > 1


def test_parquet_with_lists(tmp_path, monkeypatch):
    """Typed columns, sequences as lists, several files in a folder."""
    monkeypatch.setattr("ameir_fast.data.parquet.PIECE", 64)
    parts = write(tmp_path / "tiny")
    text = CONFIG.replace("data_format: csv", "data_format: parquet").replace(".csv", "")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    for name, rows in parts.items():
        frame = pl.DataFrame(rows, infer_schema_length=None).with_columns(
            pl.col("level").replace("", None).cast(pl.Int64),
            pl.col("price").replace("", None).cast(pl.Float64),
            *(
                pl.when(pl.col(c) == "").then(pl.lit([], pl.List(pl.String))).otherwise(pl.col(c).str.split(s)).alias(c)
                for c, s in (("tags", " "), ("click_sequence", "^"), ("cate_sequence", "^"))
            ),
        )
        (tmp_path / "tiny" / "data" / name).mkdir()
        frame.head(70).write_parquet(tmp_path / "tiny" / "data" / name / "part_0.parquet")
        frame.tail(-70).write_parquet(tmp_path / "tiny" / "data" / name / "part_1.parquet")
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    compare(Dataset.open(tmp_path / "out"), parts)


def test_one_file_is_parted_in_its_order(tmp_path):
    parts = write(tmp_path / "tiny")
    text = CONFIG.replace("    valid_data: data/valid.csv\n    test_data: data/test.csv\n", "")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    data = Dataset.open(tmp_path / "out")
    rows = parts["train"]
    compare(data, {"train": rows[:160], "valid": rows[160:180], "test": rows[180:]})


def test_the_same_file_for_two_splits_is_refused(tmp_path):
    """Its rows would be in training and in another split."""
    write(tmp_path / "tiny")
    for old, new in (("test_data: data/test.csv", "test_data: data/train.csv"), ("valid_data: data/valid.csv", "valid_data: data/train.csv")):
        (tmp_path / "tiny" / "dataset_config.yaml").write_text(CONFIG.replace(old, new))
        with pytest.raises(InputError, match=rf"{new.split('/')[-1]}: is given twice"):
            prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")


def test_validation_rows_may_be_the_test_rows(tmp_path):
    """As in FuxiCTR's TaobaoAd_x1; it is said."""
    parts = write(tmp_path / "tiny")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(CONFIG.replace("valid_data: data/valid.csv", "valid_data: data/test.csv"))
    notes = []
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny", on_note=notes.append)
    compare(Dataset.open(tmp_path / "out"), {"train": parts["train"], "valid": parts["test"], "test": parts["test"]})
    assert [n for n in notes if "valid_data and test_data are both data/test.csv: models are chosen by the rows" in n]


def test_which_sequences_are_the_history(tmp_path):
    write(tmp_path / "tiny")
    prepare_fuxictr(
        tmp_path / "tiny",
        tmp_path / "out",
        dataset_id="tiny",
        root=tmp_path / "tiny",
        history=["cate_sequence"],
        max_history=3,
    )
    data = Dataset.open(tmp_path / "out")
    assert [b.name for b in data.schema.behavior] == ["cate_sequence"] and data.schema.target == ("cate_id",)
    assert data.schema.max_history == 3
    assert ("click_sequence", "multi_categorical", "adgroup_id") in [
        (f.name, f.kind, f.vocabulary) for f in data.schema.fields
    ]
    with pytest.raises(InputError, match="'price' is no active sequence feature; there are tags, click_sequence, "):
        prepare_fuxictr(
            tmp_path / "tiny", tmp_path / "no", dataset_id="tiny", root=tmp_path / "tiny", history=["price"]
        )
    text = CONFIG.replace("share_embedding: cate_id", "share_embedding: adgroup_id")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    with pytest.raises(InputError, match="several sequences share one embedding"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "no", dataset_id="tiny", root=tmp_path / "tiny")


def test_values_that_stand_for_missing_ones(tmp_path):
    write(tmp_path / "tiny")
    text = CONFIG.replace(
        '"adgroup_id", "cate_id"], active: True', '"adgroup_id", "cate_id"], fill_na: c, active: True'
    )
    text = text.replace("type: categorical, min_categr_count: 1", "type: categorical, fill_na: 3, min_categr_count: 1")
    text = text.replace('splitter: "^", max_len: 5', 'splitter: "^", fill_na: "101", max_len: 5')
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    data = Dataset.open(tmp_path / "out")
    assert sorted(data.tokens("level")[1:]) == ["0", "4"]
    # One column fills with "c", the sequence that shares its vocabulary does not.
    assert "c" in data.tokens("cate_id") and "101" in data.tokens("adgroup_id")
    rows = make_rows(40, 3)
    batch, cates = helpers.whole(data, "test"), data.tokens("cate_id")
    assert all(cates[batch.fields[k, 2]] is None for k, r in enumerate(rows) if r["cate_id"] in ("", "c"))
    ads = data.tokens("adgroup_id")
    for found, row in zip(helpers.histories(batch), rows, strict=True):
        wanted = (
            [None if a in ("101", "") else a for a in row["click_sequence"].split("^")] if row["click_sequence"] else []
        )
        assert [ads[a] for a, _ in found] == [a if a in ads else None for a in wanted][-5:]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("data_format: csv", "data_format: npz", "tiny: data_format 'npz' is neither csv nor parquet"),
        (
            "    test_data: data/test.csv\n",
            "",
            "tiny: names neither train_data, valid_data and test_data, nor train_data alone",
        ),
        ("data/train.csv", "data/other.csv", "other.csv: no such file"),
        ("data/train.csv", "x" * 300 + "/train.csv", "train.csv: no such file"),  # longer than a name can be
        (
            "label_col: {name: clk, dtype: float}",
            "label_col: [{name: clk}, {name: buy}]",
            "label_col does not name one label",
        ),
        ("label_col: {name: clk, dtype: float}", "label_col: {dtype: float}", "tiny: name is missing"),
        ("name: clk", "name: click", "train.csv: column 'click' is missing; it has clk, userid"),
        ("name: level", "name: grade", "train.csv: column 'grade' is missing"),
        (
            "dtype: int, type: categorical",
            "dtype: int64, type: categorical",
            "feature 'level': dtype 'int64' is none of str",
        ),
        (
            "dtype: int, type: categorical",
            "dtype: int, type: numeral",
            "feature 'level': type 'numeral' is none of categorical",
        ),
        (
            "dtype: int, type: categorical",
            "dtype: int, type: categorical, preprocess: convert_hour",
            "feature 'level': preprocess 'convert_hour' is code of its own",
        ),
        (
            "dtype: int, type: categorical",
            "dtype: int, type: categorical, category_processor: hash_bucket",
            "feature 'level': category_processor 'hash_bucket' is not supported",
        ),
        (
            "dtype: int, type: categorical",
            "dtype: int, type: categorical, fill_na: none",
            "feature 'level': fill_na is 'none'",
        ),
        ("share_embedding: cate_id", "share_embedding: shop", "share_embedding is 'shop', no active feature"),
        (
            "share_embedding: cate_id",
            "share_embedding: price",
            "share_embedding is 'price', no active feature with ids",
        ),
        ("type: numeric", "type: numeric, fill_na: none", "feature 'price': fill_na is 'none'"),
        ("max_len: 2", "max_len: many", "feature 'tags': max_len is 'many'"),
        ("name: level", "name: userid", "feature 'userid' is there twice"),
        ("feature_cols:\n        [", "feature_cols:\n        [userid, ", "feature_cols: 'userid' is not an object"),
        ("### a comment", "tiny: [", "dataset_config.yaml: line .*is not YAML"),
        (
            "### a comment",
            "evil: !!python/object/apply:os.system ['true']",
            "dataset_config.yaml: line 1: is not YAML .could not determine a constructor",
        ),
    ],
)
def test_bad_configurations(tmp_path, old, new, message):
    write(tmp_path / "tiny")
    assert old in CONFIG
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(CONFIG.replace(old, new, 1))
    with pytest.raises(InputError, match=message):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


def test_which_entry(tmp_path):
    write(tmp_path / "tiny")
    with pytest.raises(InputError, match="names several data sets: tiny, other"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out")
    with pytest.raises(InputError, match="names no data set 'huge': tiny, other"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="huge")
    with pytest.raises(InputError, match="nowhere.yaml: no such file"):
        prepare_fuxictr(tmp_path / "nowhere.yaml", tmp_path / "out")
    with pytest.raises(InputError, match="data: holds no dataset_config.yaml"):
        prepare_fuxictr(tmp_path / "tiny" / "data", tmp_path / "out")


@pytest.mark.parametrize(
    ("line", "new", "message"),
    [
        (5, "1,u1,100", "train.csv: line 5 has 3 columns, not 9"),
        (5, "2,u1,100,c,3,1.5,x,,", "train.csv: line 5: column 'clk' is 2, a label that is neither 0 nor 1"),
        (5, ",u1,100,c,3,1.5,x,,", "train.csv: line 5: column 'clk' is missing"),
        (5, "1,u1,100,c,high,1.5,x,,", "train.csv: line 5: column 'level' is 'high', not a whole number"),
        (
            5,
            "1,u1,100,c,3,1.5,x,100^101,c",
            "train.csv: line 5: feature 'cate_sequence' has 1 elements, but 'click_sequence' 2",
        ),
        (5, b"1,u\xff,100,c,3,1.5,x,,", "train.csv: line 5 is not UTF-8"),
        (5, ",".join(COLUMNS) + "\r", "train.csv: line 5 repeats the header"),
    ],
)
def test_bad_rows(tmp_path, line, new, message):
    write(tmp_path / "tiny")
    path = tmp_path / "tiny" / "data" / "train.csv"
    lines = path.read_bytes().split(b"\n")
    lines[line - 1] = new if isinstance(new, bytes) else new.encode()
    path.write_bytes(b"\n".join(lines))
    with pytest.raises(InputError) as caught:
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    assert message in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny"]


@pytest.mark.parametrize("named", [".csv.gz", ""])
def test_packed_files(tmp_path, named):
    """Named with their ending, or by the folder that they lie in."""
    write(tmp_path / "tiny")
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "one", dataset_id="tiny", root=tmp_path / "tiny")
    config = tmp_path / "tiny" / "dataset_config.yaml"
    config.write_text(config.read_text().replace(".csv", named))
    for path in (tmp_path / "tiny" / "data").glob("*.csv"):
        place = path.with_suffix(".csv.gz") if named else path.with_suffix("") / "part.csv.gz"
        place.parent.mkdir(exist_ok=True)
        place.write_bytes(gzip.compress(path.read_bytes()))
        path.unlink()
    prepare_fuxictr(tmp_path / "tiny", tmp_path / "two", dataset_id="tiny", root=tmp_path / "tiny")
    for path in (tmp_path / "one" / "columns").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "columns" / path.name).read_bytes()


def test_bad_files(tmp_path):
    write(tmp_path / "tiny")
    path = tmp_path / "tiny" / "data" / "train.csv"
    path.write_bytes(gzip.compress(path.read_bytes())[:-9])
    with pytest.raises(InputError, match="train.csv: damaged or cut off"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    path.write_bytes(b"")
    with pytest.raises(InputError, match="train.csv: the file is empty"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    text = CONFIG.replace("data_format: csv", "data_format: parquet").replace(".csv", ".parquet")
    (tmp_path / "tiny" / "dataset_config.yaml").write_text(text)
    for name in ("train", "valid", "test"):
        (tmp_path / "tiny" / "data" / f"{name}.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match="train.parquet: cannot be read"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")
    frame = pl.DataFrame(make_rows(9, 0)).with_columns(clk=pl.Series([0, 1, None] * 3))
    for name in ("train", "valid", "test"):
        frame.write_parquet(tmp_path / "tiny" / "data" / f"{name}.parquet")
    with pytest.raises(InputError, match="train.parquet: row 3: column 'clk' is missing"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny", root=tmp_path / "tiny")


def test_without_pyyaml(tmp_path, monkeypatch):
    write(tmp_path / "tiny")
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    with pytest.raises(InputError, match=r"install PyYAML \(pip install 'ameir-fast\[fuxictr\]'\)"):
        prepare_fuxictr(tmp_path / "tiny", tmp_path / "out", dataset_id="tiny")
