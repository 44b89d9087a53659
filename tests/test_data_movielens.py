"""MovieLens: every stored row against rows worked out one by one, leaks, bad input."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from ameir_fast.data import Dataset, files, prepare_movielens
from ameir_fast.errors import InputError
from tests import mini_movielens

SINGLE = (
    "item",
    "first_genre",
    "age_group",
    "gender",
    "occupation",
    "zip_prefix",
    "release_year",
    "hour",
    "weekday",
)
FIELDS = (
    "item",
    "first_genre",
    "age_group",
    "gender",
    "occupation",
    "zip_prefix",
    "release_year",
    "genres",
    "hour",
    "weekday",
)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    return mini_movielens.write(tmp_path_factory.mktemp("mini") / "raw")


@pytest.fixture(scope="module")
def directory(source) -> Path:
    output = source.parent / "prepared"
    prepare_movielens(source, output)
    return output


def stored_rows(data: Dataset) -> list[dict]:
    """Every row of a data set with values in place of ids."""
    schema = data.schema
    values = {v.name: data.tokens(v.name) for v in schema.vocabularies}
    rows = []
    for split in data.splits:
        batch = data.batch(split, np.arange(data.size(split)))
        batch.check(schema)
        for r in range(len(batch)):
            row = {"split": split, "label": bool(batch.label[r])}
            for i, f in enumerate(schema.fields):
                if f.kind == "categorical":
                    row[f.name] = values[f.vocabulary][batch.fields[r, i]]
                else:
                    assert batch.fields[r, i] == 0
            first, last = batch.bag_offsets[r], batch.bag_offsets[r + 1]
            row["genres"] = [values["genre"][g] for g in batch.bag_ids[first:last]]
            first, last = batch.history_offsets[r], batch.history_offsets[r + 1]
            row["history"] = [(values["item"][i], values["rating"][s]) for i, s in batch.history[first:last]]
            rows.append(row)
    return rows


def compare(stored: list[dict], wanted: list[dict], max_history: int) -> None:
    assert len(stored) == len(wanted)
    for found, row in zip(stored, wanted, strict=True):
        for name in ("split", "label", "genres", "user", *SINGLE):
            assert found[name] == row[name], (name, found, row)
        assert found["history"] == row["history"][-max_history:]


@pytest.mark.parametrize("max_history", [1, 3, 20])
def test_every_row_is_as_worked_out_by_hand(source: Path, tmp_path: Path, max_history: int) -> None:
    prepare_movielens(source, tmp_path / "out", user_field=True, max_history=max_history)
    data = Dataset.open(tmp_path / "out")
    assert [f.name for f in data.schema.fields] == ["user", *FIELDS]
    wanted = mini_movielens.expected(source)
    compare(stored_rows(data), wanted, max_history)
    assert any(r["item"] is None for r in wanted) and any(
        r["user"] is None for r in wanted
    )  # the case exists
    assert any(i is None for r in wanted for i, _ in r["history"])


def test_default_schema(directory: Path) -> None:
    data = Dataset.open(directory)
    schema = data.schema
    assert [f.name for f in schema.fields] == list(FIELDS)
    assert data.field_names == ("user", *FIELDS)
    assert [(b.name, b.vocabulary) for b in schema.behavior] == [
        ("history_item", "item"),
        ("rating", "rating"),
    ]
    assert schema.target == ("item", "first_genre")
    assert schema.size("rating") == 6 and schema.size("hour") == 25 and schema.size("weekday") == 8
    assert "user" not in [v.name for v in schema.vocabularies]
    assert schema.max_history == 20
    assert (data.kind, data.task) == ("movielens", "ctr")


def test_no_event_at_or_after_its_own_row(source: Path, directory: Path) -> None:
    """Read back from the stored columns themselves: times of the events that each row's range names."""
    ratings = mini_movielens.read(source / "mini.inter")
    number = {u: k for k, u in enumerate(dict.fromkeys(r["user_id:token"] for r in ratings))}
    user = np.array([number[r["user_id:token"]] for r in ratings])
    time = np.array([int(r["timestamp:float"]) for r in ratings])
    events = np.lexsort((np.arange(len(ratings)), time, user))
    load = lambda name: np.load(directory / "columns" / f"{name}.npy", allow_pickle=False)
    begin, end, stars = load("history_begin"), load("history_end"), load("events.rating")
    assert stars.tolist() == [int(ratings[e]["rating:float"]) for e in events]
    rows = sorted(range(len(ratings)), key=lambda r: (time[r], r))
    assert len({time[r] for r in rows}) < len(rows) / 2  # many ties
    for r, first, last in zip(rows, begin, end, strict=True):
        inside = events[first:last]
        assert (user[inside] == user[r]).all() and (time[inside] < time[r]).all()
        assert last - first == ((user == user[r]) & (time < time[r])).sum()


def test_splits_are_ordered_in_time(directory: Path) -> None:
    data = Dataset.open(directory)
    splits = data.statistics["splits"]
    assert splits["train"]["last_time"] < splits["valid"]["first_time"]
    assert splits["valid"]["last_time"] < splits["test"]["first_time"]
    sizes = [data.size(s) for s in ("train", "valid", "test")]
    assert sum(sizes) == 240 and all(abs(n - w) <= 3 for n, w in zip(sizes, (192, 24, 24), strict=True))


def test_later_rows_change_no_id_of_earlier_ones(source: Path, tmp_path: Path) -> None:
    """Other ratings, items and attributes after the first boundary leave training rows and vocabularies as
    they were.
    """
    prepare_movielens(source, tmp_path / "before")
    raw = tmp_path / "raw"
    shutil.copytree(source, raw)
    last = Dataset.open(tmp_path / "before").statistics["splits"]["train"]["last_time"]
    rows = mini_movielens.read(source / "mini.inter")
    lines = [
        (r["user_id:token"], r["item_id:token"], r["rating:float"], r["timestamp:float"])
        if int(r["timestamp:float"]) <= last
        else (12, 900 + int(r["item_id:token"]), 6 - int(r["rating:float"]), r["timestamp:float"])
        for r in rows
    ]
    mini_movielens._table(raw / "mini.inter", list(rows[0]), lines)
    prepare_movielens(raw, tmp_path / "after")
    before, after = Dataset.open(tmp_path / "before"), Dataset.open(tmp_path / "after")
    assert before.schema == after.schema
    for a, b in zip(before.batches("train", 50), after.batches("train", 50), strict=True):
        for part in ("fields", "history", "history_offsets", "label", "bag_ids", "bag_offsets"):
            assert getattr(a, part).equal(getattr(b, part))


def test_statistics_against_plain_counts(source: Path, directory: Path) -> None:
    found = Dataset.open(directory).statistics
    wanted = mini_movielens.expected(source)
    assert found["rows"] == 240 and found["users"] == len(mini_movielens.counts(source, "user_id:token"))
    assert found["items"] == len(mini_movielens.counts(source))
    assert found["label_rate"] == pytest.approx(sum(r["label"] for r in wanted) / 240)
    lengths = [len(r["history"]) for r in wanted]
    assert found["history"]["mean"] == pytest.approx(sum(lengths) / 240) and found["history"]["max"] == max(
        lengths
    )
    assert found["history"]["empty_share"] == pytest.approx(lengths.count(0) / 240)
    for name, part in found["splits"].items():
        rows = [r for r in wanted if r["split"] == name]
        assert part["rows"] == len(rows) and part["label_rate"] == pytest.approx(
            sum(r["label"] for r in rows) / len(rows)
        )
        assert part["new_user_share"] == pytest.approx(sum(r["user"] is None for r in rows) / len(rows))
    training = [r for r in wanted if r["split"] == "train"]
    assert found["vocabularies"]["item"] == 1 + len({r["item"] for r in training})
    assert found["dropped"] == {}


def test_the_same_input_gives_the_same_bytes(source: Path, directory: Path, tmp_path: Path) -> None:
    prepare_movielens(source, tmp_path / "again")
    assert Dataset.open(tmp_path / "again").checksum == Dataset.open(directory).checksum
    for path in (tmp_path / "again").rglob("*.*"):
        assert path.read_bytes() == (directory / path.relative_to(tmp_path / "again")).read_bytes()
    assert str(source) not in (directory / "dataset.json").read_text()


def edited(source: Path, target: Path, name: str, old: str, new: str) -> Path:
    shutil.copytree(source, target)
    text = (target / name).read_text(encoding="utf-8")
    assert old in text
    (target / name).write_text(text.replace(old, new, 1), encoding="utf-8")
    return target


def second_row(source: Path) -> list[str]:
    return (source / "mini.inter").read_text().splitlines()[2].split("\t")


@pytest.mark.parametrize(
    "name, column",
    [("mini.inter", "rating:float"), ("mini.item", "class:token_seq"), ("mini.user", "zip_code:token")],
)
def test_missing_column(source: Path, tmp_path: Path, name: str, column: str) -> None:
    raw = edited(source, tmp_path / "raw", name, column, "other")
    with pytest.raises(InputError, match=f"{name}: column '{column}' is missing; it has"):
        prepare_movielens(raw, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "place, value, message",
    [
        (2, "nan", "line 3: column 'rating:float' is 'nan', not a number"),
        (2, "", "line 3: column 'rating:float' is missing"),
        (2, "6", "line 3: column 'rating:float' is 6, none of 1, 2, 3, 4, 5"),
        (2, "3.5", "line 3: column 'rating:float' is 3.5, none of 1, 2, 3, 4, 5"),
        (3, "yesterday", "line 3: column 'timestamp:float' is 'yesterday', not a number"),
        (0, "", "line 3: column 'user_id:token' is missing"),
    ],
)
def test_bad_rating(source: Path, tmp_path: Path, place: int, value: str, message: str) -> None:
    row = second_row(source)
    changed = [*row[:place], value, *row[place + 1 :]]
    raw = edited(source, tmp_path / "raw", "mini.inter", "\t".join(row) + "\n", "\t".join(changed) + "\n")
    with pytest.raises(InputError) as caught:
        prepare_movielens(raw, tmp_path / "out")
    assert (
        message in str(caught.value) and "mini.inter" in str(caught.value) and "\n" not in str(caught.value)
    )
    assert not (tmp_path / "out").exists()


def test_truncated_ratings(source: Path, tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    shutil.copytree(source, raw)
    content = (raw / "mini.inter").read_bytes()
    (raw / "mini.inter").write_bytes(content[: content.rindex(b"\t") + 0])
    with pytest.raises(InputError, match="mini.inter: line 241 has 3 columns, not 4"):
        prepare_movielens(raw, tmp_path / "out")
    (raw / "mini.inter").write_bytes(b"")
    with pytest.raises(InputError, match="mini.inter: the file is empty"):
        prepare_movielens(raw, tmp_path / "out")
    (raw / "mini.inter").unlink()
    with pytest.raises(InputError, match=r"holds 0 files \*.inter"):
        prepare_movielens(raw, tmp_path / "out")


def test_repeated_item(source: Path, tmp_path: Path) -> None:
    raw = edited(source, tmp_path / "raw", "mini.item", "\n2\t", "\n1\t")
    with pytest.raises(InputError, match="mini.item: line 3: column 'item_id:token' has '1' a second time"):
        prepare_movielens(raw, tmp_path / "out")


def test_missing_input_and_output_in_use(source: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: no such file or directory"):
        prepare_movielens(tmp_path / "nowhere", tmp_path / "out")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("precious")
    with pytest.raises(InputError, match="out is in use"):
        prepare_movielens(source, tmp_path / "out")
    assert (tmp_path / "out" / "mine").read_text() == "precious"
    with pytest.raises(InputError, match="out is in use .* holds no prepared data, which is all that --overwrite replaces"):
        prepare_movielens(source, tmp_path / "out", overwrite=True)
    (tmp_path / "out" / "dataset.json").write_text("what is left of another one")
    prepare_movielens(source, tmp_path / "out", overwrite=True)
    assert Dataset.open(tmp_path / "out").size("train") > 0 and not (tmp_path / "out" / "mine").exists()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out"]
    with pytest.raises(InputError, match="max_history 0"):
        prepare_movielens(source, tmp_path / "other", max_history=0)


@pytest.mark.parametrize("allowed", [0, 3, 40])
def test_full_disk_leaves_nothing(source: Path, tmp_path: Path, monkeypatch, allowed: int) -> None:
    original, calls = files.write, []

    def full(file, data):
        calls.append(len(data))
        if len(calls) > allowed:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        original(file, data)

    monkeypatch.setattr(files, "write", full)
    with pytest.raises(OSError) as caught:
        prepare_movielens(source, tmp_path / "out")
    assert caught.value.errno == errno.ENOSPC and str(tmp_path / "out") in caught.value.filename
    assert list(tmp_path.iterdir()) == []


def test_interrupted_preparation_leaves_the_old_directory(source: Path, tmp_path: Path, monkeypatch) -> None:
    prepare_movielens(source, tmp_path / "out")
    before = Dataset.open(tmp_path / "out").checksum

    def interrupted(file, data):
        raise KeyboardInterrupt

    monkeypatch.setattr(files, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare_movielens(source, tmp_path / "out", max_history=5, overwrite=True)
    assert Dataset.open(tmp_path / "out").checksum == before
    assert [p.name for p in tmp_path.iterdir() if not p.name.startswith(".")] == ["out"]
    monkeypatch.undo()
    prepare_movielens(source, tmp_path / "out", max_history=5, overwrite=True)
    assert Dataset.open(tmp_path / "out").schema.max_history == 5
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
