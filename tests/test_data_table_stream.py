"""Tables read in pieces: the same bytes as in one go, lines over pieces and files, times that change their kind."""

from __future__ import annotations

import gzip
import json
from functools import partial
from pathlib import Path

import polars as pl
import pytest
import zstandard

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_table, reading
from ameir_fast.data.delimited import read_delimited
from tests import data_helpers as helpers


@pytest.fixture
def small_pieces(monkeypatch):
    monkeypatch.setattr(reading, "read_delimited", partial(read_delimited, size=200))
    monkeypatch.setattr("ameir_fast.data.parquet.PIECE", 7)


def prepare(source, output: Path, schema: dict = helpers.CLICKS_SCHEMA) -> Dataset:
    path = output.with_suffix(".json")
    path.write_text(json.dumps(schema))
    prepare_table(source, output, path)
    return Dataset.open(output)


def write(folder: Path, rows: list[dict], parts: int = 1, form: str = "csv") -> list[Path]:
    size, paths = -(-len(rows) // parts), []
    for k in range(parts):
        path = folder / f"part{k}.csv"
        helpers.write_csv(path, rows[k * size : (k + 1) * size])
        if form == "parquet":
            pl.read_csv(path, infer_schema_length=None).with_columns(pl.col("tags").fill_null("")).write_parquet(
                path.with_suffix(".parquet"), row_group_size=13
            )
            path = path.with_suffix(".parquet")
        elif form == "gz":
            (folder / f"part{k}.csv.gz").write_bytes(gzip.compress(path.read_bytes()))
            path = folder / f"part{k}.csv.gz"
        elif form == "zst":
            (folder / f"part{k}.csv.zst").write_bytes(zstandard.ZstdCompressor().compress(path.read_bytes()))
            path = folder / f"part{k}.csv.zst"
        paths.append(path)
    return paths


@pytest.mark.parametrize("form", ["csv", "parquet", "gz", "zst"])
def test_pieces_and_files_change_nothing(tmp_path, form, request):
    rows = helpers.make_clicks(300)
    for row in rows[::5]:
        row["shop_name"] = 'the "big", one'
    (tmp_path / "one").mkdir()
    (tmp_path / "many").mkdir()
    whole = prepare(write(tmp_path / "one", rows, form=form), tmp_path / "whole")
    request.getfixturevalue("small_pieces")
    prepare(write(tmp_path / "many", rows, 3, form), tmp_path / "pieces")
    for path in whole.directory.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / "pieces" / path.relative_to(whole.directory)).read_bytes(), path.name


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_errors_name_the_line_within_its_file(tmp_path, small_pieces, form):
    rows = helpers.make_clicks(120)
    rows[40 + 33]["click"] = 7
    paths = write(tmp_path, rows, 3, form)
    place = {"csv": "line 35", "parquet": "row 34"}[form]  # text begins with a header
    with pytest.raises(InputError, match=rf"part1\.{form}: {place}: column 'click' is .*7.*neither 0 nor 1"):
        prepare(paths, tmp_path / "out")
    rows[40 + 33].update(click=1, slot=9)
    paths = write(tmp_path, rows, 3, form)
    with pytest.raises(InputError, match=rf"part1\.{form}: {place}: column 'slot' holds the id 9, outside 0\.\.4"):
        prepare(paths, tmp_path / "out")


@pytest.mark.parametrize("at", [0, 250])
def test_a_time_with_a_fraction_wherever_it_comes(tmp_path, small_pieces, at):
    """All times are then numbers with fractions, as if the whole column had been seen at once."""
    rows = helpers.make_clicks(300)
    rows[at]["ts"] += 0.5
    data = prepare(write(tmp_path, rows), tmp_path / "out")
    times = sorted(row["ts"] for row in rows)
    assert data.statistics["splits"]["train"]["first_time"] == times[0]
    assert isinstance(data.statistics["splits"]["train"]["first_time"], float)
    assert sum(data.size(s) for s in ("train", "valid", "test")) == 300


def test_whole_times_stay_exact(tmp_path, small_pieces):
    rows = helpers.make_clicks(300)
    for k, row in enumerate(rows):
        row["ts"] = 2**60 + k
    data = prepare(write(tmp_path, rows), tmp_path / "out")
    assert data.statistics["splits"]["train"]["first_time"] == 2**60
    assert data.statistics["splits"]["test"]["last_time"] == 2**60 + 299


def test_what_is_no_time(tmp_path, small_pieces):
    rows = helpers.make_clicks(200)
    rows[70]["ts"], rows[150]["ts"], rows[160]["ts"] = "inf", "nan", ""
    data = prepare(write(tmp_path, rows), tmp_path / "out")
    assert data.statistics["dropped"]["missing time"] == 3 and data.statistics["rows"] == 197


def test_the_first_time_says_what_all_are(tmp_path, small_pieces):
    rows = helpers.make_clicks(200)
    for row in rows[:60]:
        row["ts"] = ""
    rows[150]["ts"] = "2024-01-01"
    with pytest.raises(InputError, match="line 152: column 'ts' is '2024-01-01', not a number as the first one is"):
        prepare(write(tmp_path, rows), tmp_path / "out")
    for row in rows[60:]:
        row["ts"] = "2024-01-01T10:00:00Z"
    rows[150]["ts"] = "17"
    with pytest.raises(InputError, match="line 152: column 'ts' is '17', neither a number nor an ISO 8601 time"):
        prepare(write(tmp_path, rows), tmp_path / "out")


def test_files_without_rows(tmp_path):
    rows = helpers.make_clicks(100)
    (tmp_path / "a").mkdir()
    empty = helpers.write_csv(tmp_path / "empty.csv", [])
    last = helpers.write_csv(tmp_path / "last.csv", [])
    data = prepare([empty, *write(tmp_path / "a", rows), last], tmp_path / "out")
    assert data.statistics["rows"] == 100
    with pytest.raises(InputError, match="empty.csv: there are no rows"):
        prepare([empty, last], tmp_path / "none")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a,b,c\n1,2,3\n4,5\n", "bad.csv: line 3 has 2 columns, not 3"),
        ("a,b,c\n1,2,3\n4,5,6,7\n", "bad.csv: line 3 has 4 columns, not 3"),
        ("a,b,a\n1,2,3\n", "bad.csv: line 1 names the column 'a' twice"),
        ("a,b,c\n1,2,3\na,b,c\n", "bad.csv: line 3 repeats the header"),
        ('a,b,c\n1,2,"3\n', "bad.csv: line 2 cannot be read .unexpected end of data"),
        ("", "bad.csv: the file is empty"),
    ],
)
def test_malformed_text_names_its_line(tmp_path, text, message):
    schema = {"version": 1, "label": "a", "fields": [{"name": "b"}, {"name": "c"}], "split": {"by": "random"}}
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(InputError, match=message):
        prepare(tmp_path / "bad.csv", tmp_path / "out", schema)


def test_columns_of_other_types_in_another_file(tmp_path):
    one, two = pl.DataFrame({"a": [0, 1], "b": [1, 2]}), pl.DataFrame({"a": [0, 1], "b": ["x", "y"]})
    one.write_parquet(tmp_path / "one.parquet")
    two.write_parquet(tmp_path / "two.parquet")
    schema = {"version": 1, "label": "a", "fields": [{"name": "b"}], "split": {"by": "random"}}
    with pytest.raises(InputError, match="two.parquet: column 'b' holds String, but Int64 in .*one.parquet"):
        prepare([tmp_path / "one.parquet", tmp_path / "two.parquet"], tmp_path / "out", schema)


def test_lines_are_counted_where_a_value_holds_one_and_where_some_are_blank(tmp_path, small_pieces):
    rows = helpers.make_clicks(60)
    for row in rows:
        row["shop_name"] = "two\nlines"
    rows[50]["click"] = 7
    (path,) = write(tmp_path, rows)
    lines = path.read_text().split("\n")
    path.write_text("\n".join([*lines[:5], "", *lines[5:]]))  # line 5 is a whole row's second
    with pytest.raises(InputError, match=r"part0\.csv: line 103: column 'click'"):
        prepare([path], tmp_path / "out")


@pytest.mark.parametrize("form", ["parquet", "csv"])
def test_rows_that_are_all_left_out_are_counted_in_the_error(tmp_path, form):
    frame = pl.DataFrame({"click": [0, 1] * 20, "user": [None] * 40, "ts": [None] * 3 + list(range(37))},
                         schema_overrides={"user": pl.Int64})
    path = tmp_path / f"rows.{form}"
    frame.write_parquet(path) if form == "parquet" else frame.write_csv(path)
    schema = {"version": 1, "label": "click", "user": "user", "time": "ts", "fields": [{"name": "user"}]}
    with pytest.raises(InputError, match=f"rows.{form}: no row is left: {{'missing user': 40}}"):
        prepare(path, tmp_path / "out", schema)
    assert not (tmp_path / "out").exists()
