"""prepare_table: a log as csv, csv.gz and parquet against plain Python; splits, vocabularies, bad input."""

from __future__ import annotations

import copy
import gzip
import json
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_table
from tests import data_helpers as helpers

SPLITS = ("train", "valid", "test")


def prepare(source, output, schema) -> Dataset:
    path = output.parent / f"{output.name}.schema.json"
    path.write_text(schema if isinstance(schema, str) else json.dumps(schema), encoding="utf-8")
    prepare_table(source, output, path)
    return Dataset.open(output)


def changed(schema: dict, **parts) -> dict:
    return {**copy.deepcopy(schema), **parts}


@pytest.fixture(scope="module")
def log():
    return helpers.make_clicks()


@pytest.fixture(scope="module")
def source(log, tmp_path_factory):
    return helpers.write_csv(tmp_path_factory.mktemp("clicks") / "clicks.csv", log)


@pytest.fixture(scope="module")
def data(source, tmp_path_factory):
    return prepare(source, tmp_path_factory.mktemp("prepared") / "clicks", helpers.CLICKS_SCHEMA)


def in_time(log: list[dict]) -> list[dict]:
    """Rows by time, those of equal time in the order of the file (``sorted`` is stable)."""
    return sorted(log, key=lambda row: row["ts"])


def part(data: Dataset, rows: list[dict], split: str) -> list[dict]:
    begin, end = data.splits[split]
    return rows[begin:end]


def values(data: Dataset, batch, name: str) -> list:
    """A categorical field with values (as text) in place of ids."""
    names = [f.name for f in data.schema.fields]
    tokens = data.tokens(data.schema.fields[names.index(name)].vocabulary)
    found = [tokens[i] for i in batch.fields[:, names.index(name)].tolist()]
    return [None if v is None else str(v) for v in found]


# ---- what is stored ----------------------------------------------------------------------------------


@pytest.mark.parametrize("split", SPLITS)
def test_every_row_is_what_the_file_says(data, log, split):
    rows = in_time(log)
    train, mine = part(data, rows, "train"), part(data, rows, split)
    batch = helpers.whole(data, split).check(data.schema)
    assert batch.label.tolist() == [float(row["click"]) for row in mine]
    known = helpers.seen_often(train, "item", 2)
    assert values(data, batch, "item") == [str(row["item"]) if row["item"] in known else None for row in mine]
    assert values(data, batch, "shop") == [row["shop_name"] or None for row in mine]
    slot = [f.name for f in data.schema.fields].index("slot")
    assert batch.fields[:, slot].tolist() == [row["slot"] for row in mine]  # ids as they are
    tag = data.tokens("tag")
    assert [[tag[i] for i in bag] for bag in helpers.bags(batch)] == [
        [t for t in row["tags"].split("|") if t] for row in mine
    ]


@pytest.mark.parametrize("split", SPLITS)
def test_history_is_exactly_the_users_strictly_earlier_rows(data, log, split):
    rows = in_time(log)
    known = helpers.seen_often(part(data, rows, "train"), "item", 2)
    item, click = data.tokens("item"), data.tokens("history_click")
    begin, _ = data.splits[split]
    for k, history in enumerate(helpers.histories(helpers.whole(data, split)), start=begin):
        before = helpers.earlier(rows, k, "user", "ts")[-4:]
        found = [(None if item[i] is None else str(item[i]), str(click[c])) for i, c in history]
        assert found == [
            (str(row["item"]) if row["item"] in known else None, str(row["click"])) for row in before
        ]


def test_splits_and_vocabularies(data, log):
    rows = in_time(log)
    times = {split: [row["ts"] for row in part(data, rows, split)] for split in SPLITS}
    assert max(times["train"]) < min(times["valid"]) and max(times["valid"]) < min(times["test"])
    assert abs(len(times["train"]) / len(rows) - 0.7) < 0.02
    train = part(data, rows, "train")
    assert {str(t) for t in data.tokens("item")[1:]} == {str(i) for i in helpers.seen_often(train, "item", 2)}
    assert data.schema.size("slot") == 5
    assert {row["item"] for row in rows} > {row["item"] for row in train}, (
        "the log should have items training never saw"
    )
    assert "user" in data.field_names and "user" not in [f.name for f in data.schema.fields]


def test_statistics_say_what_the_file_says(data, log):
    found = data.statistics
    assert found["rows"] == len(log) and found["users"] == len({row["user"] for row in log})
    assert found["items"] == len({row["item"] for row in log})
    assert found["label_rate"] == pytest.approx(np.mean([row["click"] for row in log]))


# ---- forms of the same table -------------------------------------------------------------------------


def contents(data: Dataset) -> list:
    """Everything a reader sees, values in place of ids where there are any."""
    found = []
    for split in SPLITS:
        batch = helpers.whole(data, split)
        found.append(
            (
                batch.label.tolist(),
                values(data, batch, "item"),
                values(data, batch, "shop"),
                [[data.tokens("tag")[i] for i in bag] for bag in helpers.bags(batch)],
                [[str(data.tokens("item")[i]) for i, _ in history] for history in helpers.histories(batch)],
            )
        )
    return found


def test_other_forms_of_the_table_give_the_same_rows(data, log, source, tmp_path):
    with gzip.open(tmp_path / "clicks.csv.gz", "wb") as file:
        file.write(source.read_bytes())
    folder = tmp_path / "parts"
    folder.mkdir()
    helpers.write_csv(folder / "0.csv", log[:100])
    helpers.write_csv(folder / "1.csv", log[100:])
    lists = [
        {**row, "tags": [t for t in row["tags"].split("|") if t], "shop_name": row["shop_name"] or None}
        for row in log
    ]
    pl.DataFrame(lists, schema_overrides={"tags": pl.List(pl.String)}).write_parquet(
        tmp_path / "clicks.parquet"
    )
    dated = [{**row, "ts": datetime.fromtimestamp(row["ts"], UTC).replace(tzinfo=None)} for row in lists]
    pl.DataFrame(dated, schema_overrides={"tags": pl.List(pl.String)}).write_parquet(
        tmp_path / "dated.parquet"
    )
    iso = [{**row, "ts": datetime.fromtimestamp(row["ts"], UTC).strftime("%Y-%m-%d %H:%M:%S")} for row in log]
    helpers.write_csv(tmp_path / "iso.csv", iso)
    forms = {
        "gz": tmp_path / "clicks.csv.gz",
        "folder": folder,
        "files": [folder / "0.csv", folder / "1.csv"],
        "parquet": tmp_path / "clicks.parquet",
        "dated": tmp_path / "dated.parquet",
        "iso": tmp_path / "iso.csv",
    }
    for name, form in forms.items():
        other = (
            prepare(form, tmp_path / name / "out", helpers.CLICKS_SCHEMA)
            if (tmp_path / name).mkdir() is None
            else None
        )
        assert contents(other) == contents(data), name


def test_columns_nobody_named_are_not_read(log, tmp_path, data):
    rows = [{**row, "huge": "x" * 50} for row in log]
    source = helpers.write_csv(tmp_path / "wide.csv", rows, ("huge", *helpers.CLICK_COLUMNS))
    assert contents(prepare(source, tmp_path / "out", helpers.CLICKS_SCHEMA)) == contents(data)


def test_later_rows_change_nothing_earlier(data, log, tmp_path):
    start = part(data, in_time(log), "valid")[0]["ts"]
    edited = [
        row
        if row["ts"] < start
        else {**row, "item": 77, "click": 1 - row["click"], "shop_name": "new", "tags": "z"}
        for row in log
    ]
    other = prepare(helpers.write_csv(tmp_path / "c.csv", edited), tmp_path / "out", helpers.CLICKS_SCHEMA)
    mine, theirs = helpers.whole(data, "train"), helpers.whole(other, "train")
    for name in ("fields", "history", "history_offsets", "label", "bag_ids", "bag_offsets"):
        assert getattr(mine, name).equal(getattr(theirs, name)), name
    assert other.schema == data.schema
    assert not helpers.whole(data, "test").label.equal(helpers.whole(other, "test").label)


# ---- splits ------------------------------------------------------------------------------------------


def test_split_at_random_is_a_function_of_the_seed(source, log, tmp_path):
    def split(name, seed):
        return prepare(
            source, tmp_path / name, changed(helpers.CLICKS_SCHEMA, split={"by": "random", "seed": seed})
        )

    first, again, other = split("a", 1), split("b", 1), split("c", 2)
    assert first.checksum == again.checksum
    assert [first.size(s) for s in SPLITS] == [240, 30, 30]
    assert first.labels("test").tolist() != other.labels("test").tolist()


def test_split_by_a_column(log, tmp_path):
    rows = [{**row, "part": SPLITS[min(2, k % 5 % 4)]} for k, row in enumerate(log)]
    source = helpers.write_csv(tmp_path / "p.csv", rows, (*helpers.CLICK_COLUMNS, "part"))
    schema = changed(helpers.CLICKS_SCHEMA, split={"by": "column", "column": "part"})
    data = prepare(source, tmp_path / "out", schema)
    for split in SPLITS:
        mine = in_time([row for row in rows if row["part"] == split])
        assert data.labels(split).tolist() == [float(row["click"]) for row in mine]
    rows[7]["part"] = "holdout"
    source = helpers.write_csv(tmp_path / "q.csv", rows, (*helpers.CLICK_COLUMNS, "part"))
    with pytest.raises(InputError, match=r"q\.csv.*line 9.*part.*holdout"):
        prepare(source, tmp_path / "out2", schema)


# ---- retrieval ---------------------------------------------------------------------------------------


def test_retrieval_predicts_each_rows_item_from_earlier_rows(source, log, tmp_path):
    data = prepare(source, tmp_path / "out", helpers.RETRIEVAL_SCHEMA)
    rows = in_time(log)
    item = data.tokens("item")
    wanted = [
        (str(row["item"]), [str(e["item"]) for e in helpers.earlier(rows, k, "user", "ts")][-6:])
        for k, row in enumerate(rows)
    ]
    cold = sum(item_ not in {str(t) for t in item[1:]} for item_, _ in wanted)
    wanted = [
        (i, [h if h in {str(t) for t in item[1:]} else "None" for h in history])
        for i, history in wanted
        if history and i in {str(t) for t in item[1:]}
    ]
    found = []
    for split in SPLITS:
        batch = helpers.whole(data, split).check(data.schema)
        found += [
            (str(item[i]), [str(item[h]) for (h,) in history])
            for i, history in zip(batch.items.tolist(), helpers.histories(batch), strict=True)
        ]
    assert found == wanted and cold > 0
    assert data.schema.target == () and data.schema.item_vocabulary == "item"
    assert data.statistics["label_rate"] is None
    assert sum(data.statistics["dropped"].values()) == len(log) - len(found)


# ---- bad input ---------------------------------------------------------------------------------------


def refused(source, tmp_path, schema, match):
    """The error of a preparation, which is one line and leaves nothing behind."""
    before = helpers.files_below(tmp_path)
    with pytest.raises(InputError, match=match) as caught:
        prepare(source, tmp_path / "out", schema)
    assert "\n" not in str(caught.value)
    assert helpers.files_below(tmp_path) - before <= {"out.schema.json"}


@pytest.mark.parametrize(
    "column, value, match",
    [
        ("click", "", r"bad\.csv.*line 4.*click.*missing"),
        ("click", "nan", r"bad\.csv.*line 4.*click"),
        ("click", "2", r"bad\.csv.*line 4.*click.*2.*neither 0 nor 1"),
        ("click", "0.5", r"bad\.csv.*line 4.*click.*0\.5.*neither 0 nor 1"),
        ("click", "yes", r"bad\.csv.*line 4.*click.*yes"),
        ("slot", "5", r"bad\.csv.*line 4.*slot.*5.*0\.\.4"),
        ("slot", "-1", r"bad\.csv.*line 4.*slot.*-1.*0\.\.4"),
        ("slot", "99999999999", r"bad\.csv.*line 4.*slot.*99999999999"),
        ("slot", "x", r"bad\.csv.*line 4.*slot.*x"),
        ("ts", "soon", r"bad\.csv.*line 4.*ts.*soon"),
    ],
)
def test_a_wrong_value_names_file_line_and_value(log, tmp_path, column, value, match):
    rows = [dict(row) for row in log]
    rows[2][column] = value
    refused(helpers.write_csv(tmp_path / "bad.csv", rows), tmp_path, helpers.CLICKS_SCHEMA, match)


def test_the_line_is_counted_in_its_own_file(log, tmp_path):
    rows = [dict(row) for row in log]
    rows[152]["click"] = 3
    files = [
        helpers.write_csv(tmp_path / "0.csv", rows[:150]),
        helpers.write_csv(tmp_path / "1.csv", rows[150:]),
    ]
    refused(files, tmp_path, helpers.CLICKS_SCHEMA, r"1\.csv.*line 4.*3")


@pytest.mark.parametrize(
    "bad, match", [(None, "row 3.*click"), (float("nan"), "row 3.*click"), (2.0, "row 3.*2")]
)
def test_wrong_labels_in_parquet(log, tmp_path, bad, match):
    rows = [{**row, "tags": row["tags"].split("|"), "click": float(row["click"])} for row in log]
    rows[2]["click"] = bad
    pl.DataFrame(rows).write_parquet(tmp_path / "bad.parquet")
    refused(tmp_path / "bad.parquet", tmp_path, helpers.CLICKS_SCHEMA, match)


def test_missing_files_and_columns_are_named(log, source, tmp_path):
    refused(tmp_path / "nowhere.csv", tmp_path, helpers.CLICKS_SCHEMA, r"nowhere\.csv")
    less = helpers.write_csv(
        tmp_path / "less.csv", log, [c for c in helpers.CLICK_COLUMNS if c != "shop_name"]
    )
    refused(less, tmp_path, helpers.CLICKS_SCHEMA, r"less\.csv.*shop_name")
    refused([source, less], tmp_path, helpers.CLICKS_SCHEMA, r"less\.csv.*shop_name")
    (tmp_path / "notes.docx").write_bytes(b"text")
    refused(tmp_path / "notes.docx", tmp_path, helpers.CLICKS_SCHEMA, r"notes\.docx")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", tmp_path, helpers.CLICKS_SCHEMA, "empty")
    (tmp_path / "nothing.csv").write_bytes(b"")
    refused(tmp_path / "nothing.csv", tmp_path, helpers.CLICKS_SCHEMA, r"nothing\.csv")
    refused(helpers.write_csv(tmp_path / "norows.csv", []), tmp_path, helpers.CLICKS_SCHEMA, r"norows\.csv")


def test_damaged_files_are_named(source, log, tmp_path):
    packed = gzip.compress(source.read_bytes())
    (tmp_path / "cut.csv.gz").write_bytes(packed[: len(packed) // 2])
    refused(tmp_path / "cut.csv.gz", tmp_path, helpers.CLICKS_SCHEMA, r"cut\.csv\.gz")
    pl.DataFrame([{**row, "tags": row["tags"].split("|")} for row in log]).write_parquet(
        tmp_path / "whole.parquet"
    )
    content = (tmp_path / "whole.parquet").read_bytes()
    (tmp_path / "cut.parquet").write_bytes(content[: len(content) // 2])
    refused(tmp_path / "cut.parquet", tmp_path, helpers.CLICKS_SCHEMA, r"cut\.parquet")


def test_output_in_use(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(InputError, match="out is in use"):
        prepare(source, tmp_path / "out", helpers.CLICKS_SCHEMA)
    assert (tmp_path / "out" / "mine.txt").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    "change, match",
    [
        ({"version": 2}, "version 2"),
        ({"version": None}, "version"),
        ({"task": "regression"}, "regression"),
        ({"label": None}, "label"),
        ({"user": None}, "user"),
        ({"time": None, "split": {"by": "random"}}, "time"),
        ({"colour": 1}, "colour"),
        ({"target": ["item"]}, "target"),
        ({"target": ["item", "tags"]}, "tags"),
        ({"fields": [{"name": "item"}, {"name": "item"}], "vocabularies": {}}, "two field entries.*item"),
        ({"fields": [{"name": "item", "kind": "numeric"}], "vocabularies": {}}, "numeric"),
        ({"fields": [{"column": "item"}]}, "name"),
        ({"fields": [{"name": "item", "colum": "x"}]}, "colum"),
        ({"vocabularies": {"slot": {"size": 0}}}, "size"),
        ({"vocabularies": {"colour": {"min_count": 2}}}, "colour"),
        ({"split": {"by": "moon"}}, "moon"),
        ({"split": {"by": "time", "parts": [0.9, 0.2, 0.1]}}, "parts"),
        ({"history": {"fields": []}}, "history|target"),
        ({"history": 5}, "history"),
    ],
)
def test_a_wrong_schema_is_one_clear_error(source, tmp_path, change, match):
    schema = {k: v for k, v in changed(helpers.CLICKS_SCHEMA, **change).items() if v is not None}
    refused(source, tmp_path, schema, match)


def test_a_schema_that_gives_the_answer_away_is_refused(source, tmp_path):
    fields = [*helpers.CLICKS_SCHEMA["fields"], {"name": "clicked", "column": "click"}]
    refused(source, tmp_path, changed(helpers.CLICKS_SCHEMA, fields=fields), "clicked.*label")
    refused(
        source,
        tmp_path,
        changed(helpers.RETRIEVAL_SCHEMA, fields=[{"name": "it", "column": "item"}]),
        "it.*item",
    )


def test_schema_files_that_cannot_be_read(source, tmp_path):
    with pytest.raises(InputError, match=r"gone\.json"):
        prepare_table(source, tmp_path / "out", tmp_path / "gone.json")
    refused(source, tmp_path, '{"version": 1,', r"out\.schema\.json")
    refused(source, tmp_path, "[]", "schema")


def test_a_split_without_rows_is_an_error(log, tmp_path):
    same = [{**row, "ts": 5} for row in log]
    refused(helpers.write_csv(tmp_path / "same.csv", same), tmp_path, helpers.CLICKS_SCHEMA, "split is empty")


def test_the_example_of_the_documentation(tmp_path):
    """docs/data.md: its table under its schema gives a data set."""
    page = (Path(__file__).parent.parent / "docs" / "data.md").read_text(encoding="utf-8")
    blocks = {kind: page.split(f"```{kind}\n")[1].split("```")[0] for kind in ("csv", "json")}
    (tmp_path / "clicks.csv").write_text(blocks["csv"], encoding="utf-8")
    data = prepare(tmp_path / "clicks.csv", tmp_path / "out", blocks["json"])
    assert [data.size(split) for split in SPLITS] == [3, 1, 1]
    (history,) = helpers.histories(helpers.whole(data, "test"))
    # The last row, by u1, at a time when u1 had met the items 7 and 8.
    assert [data.tokens("item")[item] for item, _ in history] == ["7", "8"]


def test_numbers_with_a_fraction_are_no_categories(log, tmp_path):
    rows = [{**row, "tags": row["tags"].split("|"), "shop_name": 1.0} for row in log]
    rows[2]["shop_name"] = 1.5
    pl.DataFrame(rows).write_parquet(tmp_path / "bad.parquet")
    refused(
        tmp_path / "bad.parquet", tmp_path, helpers.CLICKS_SCHEMA, r"bad\.parquet.*row 3.*shop_name.*1\.5"
    )


def test_cells_of_csv_are_categories_as_they_stand(log, tmp_path):
    written = ["0.5", "1.0", "1", "1e0"]
    rows = [{**row, "shop_name": written[k % 4]} for k, row in enumerate(log)]
    source = helpers.write_csv(tmp_path / "p.csv", rows, helpers.CLICK_COLUMNS)
    assert set(prepare(source, tmp_path / "out", helpers.CLICKS_SCHEMA).tokens("shop")[1:]) == set(written)


def test_a_panic_over_a_damaged_file_is_one_error_too(log, tmp_path, monkeypatch):
    """Polars panics over some damaged parquet files, which is no Exception; tests/test_data_fuzz.py has real ones."""
    pl.DataFrame(log).write_parquet(tmp_path / "bad.parquet")

    def collect(*arguments, **options):
        raise pl.exceptions.PanicException("assertion failed: offset + length <= self.length")

    monkeypatch.setattr(pl.LazyFrame, "collect", collect)
    refused(tmp_path / "bad.parquet", tmp_path, helpers.CLICKS_SCHEMA, r"bad\.parquet: cannot be read \(damaged, or")
