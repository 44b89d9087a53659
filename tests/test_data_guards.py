"""prepare_table: leave-one-out, columns of unusual types, and schemas that would only fail later."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_table

SCHEMA = {
    "version": 1,
    "label": "label",
    "user": "user",
    "time": "time",
    "fields": [{"name": "item"}, {"name": "user"}],
    "history": {"fields": [{"name": "before", "column": "item", "vocabulary": "item"}]},
    "target": ["item"],
}


def table(**columns) -> pl.DataFrame:
    rng = random.Random(3)
    rows = {
        "user": [f"u{rng.randint(1, 9) if k else 10}" for k in range(120)],
        "item": [rng.randint(1, 15) for _ in range(120)],
        "time": [k // 2 for k in range(120)],
        "label": [rng.randint(0, 1) for _ in range(120)],
    }
    return pl.DataFrame({**rows, **columns})


def prepare(frame: pl.DataFrame, folder: Path, **changes) -> Dataset:
    schema = {**SCHEMA, **changes}
    (folder / "schema.json").write_text(json.dumps({k: v for k, v in schema.items() if v is not None}))
    frame.write_parquet(folder / "table.parquet")
    prepare_table(folder / "table.parquet", folder / "out", folder / "schema.json")
    return Dataset.open(folder / "out")


def test_leave_one_out_takes_each_users_last_two(tmp_path: Path) -> None:
    frame = table()
    data = prepare(frame, tmp_path, split={"by": "leave_one_out"})
    wanted: dict[str, list] = {"train": [], "valid": [], "test": []}
    for user in dict.fromkeys(frame["user"]):
        own = [k for k, name in enumerate(frame["user"]) if name == user]  # ascending in time already
        parts = [own, [], []] if len(own) < 3 else [own[:-2], own[-2:-1], own[-1:]]
        for name, rows in zip(wanted, parts, strict=True):
            wanted[name] += rows
    assert frame["user"].to_list().count("u10") == 1  # a user too short to be parted is trained on
    for name, rows in wanted.items():
        batch = data.batch(name, np.arange(data.size(name)))
        tokens = [data.tokens("item")[i] for i in batch.fields[:, 0]]
        seen = set(frame["item"][wanted["train"]])
        assert tokens == [i if i in seen else None for i in frame["item"][sorted(rows)]]
        assert data.labels(name).tolist() == frame["label"][sorted(rows)].to_list()


def test_hashes_of_64_bits_without_sign(tmp_path: Path) -> None:
    big = pl.Series([2**64 - 1 - (k % 7) for k in range(120)], dtype=pl.UInt64)
    data = prepare(table(item=big), tmp_path)
    assert sorted(data.tokens("item")[1:]) == sorted({str(v) for v in big})


@pytest.mark.parametrize("dtype", [pl.Categorical, pl.Boolean, pl.Date])
def test_other_types_are_categories_too(tmp_path: Path, dtype) -> None:
    column = pl.Series([k % 2 for k in range(120)])
    data = prepare(
        table(item=column.cast(pl.String if dtype == pl.Categorical else pl.Int32).cast(dtype)), tmp_path
    )
    assert data.schema.size("item") == 3


@pytest.mark.parametrize(
    "column",
    [
        pl.Series([b"x"] * 120),
        pl.Series([{"a": 1}] * 120),
        pl.Series([[1]] * 120),
        pl.Series([None] * 120, dtype=pl.Null),
    ],
)
def test_what_is_no_category_is_refused(tmp_path: Path, column: pl.Series) -> None:
    with pytest.raises(InputError, match="table.parquet: column 'item' holds"):
        prepare(table(item=column), tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"item": {"column": "item"}}, '"item" belongs to the retrieval task'),
        ({"task": "retrieval", "item": {"column": "item"}, "target": []}, '"label" belongs to the ctr task'),
        ({"target": [["item"]]}, "'target' is"),
        ({"split": {"parts": [float("nan"), 0.5, 0.5]}}, "split parts"),
        (
            {"split": {"by": "column", "column": "item"}},
            "row 1: column 'item' is .*none of train, valid, test",
        ),
        ({"fields": [{"name": "item"}, {"name": "x" * 200, "column": "user"}]}, "more than 100 bytes"),
    ],
)
def test_schemas_that_do_not_fit(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(table(), tmp_path, **changes)
    assert not (tmp_path / "out").exists()


def test_everything_at_one_time_cannot_be_split_by_it(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match="the train split is empty: 120 rows, split by time|the valid split is empty"
    ):
        prepare(table(time=[5] * 120), tmp_path)


@pytest.mark.parametrize("rows", [[0.5], [[0, 1]], ["a"]])
def test_rows_that_are_no_positions(tmp_path: Path, rows: list) -> None:
    data = prepare(table(), tmp_path)
    with pytest.raises(InputError, match="not integers"):
        data.batch("train", rows)
    assert len(data.batch("train", [])) == 0


@pytest.mark.parametrize("split, message", [
    ({"by": "leave_one_out", "parts": [0.8, 0.1, 0.1]}, "parts belong to splits by time, order or random, not by leave"),
    ({"by": "time", "seed": 3}, "seed belongs to a split at random, not by time"),
])
def test_splits_without_parts_or_seed(tmp_path: Path, split: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        prepare(table(), tmp_path, split=split)


CSV = "item,user,time,label\n" + "".join(f"{k % 3},u{k % 5},{k},{k % 2}\n" for k in range(60))


def prepare_csv(text: str, folder: Path) -> Dataset:
    (folder / "schema.json").write_text(json.dumps(SCHEMA))
    (folder / "table.csv").write_text(text)
    prepare_table(folder / "table.csv", folder / "out", folder / "schema.json", overwrite=True)
    return Dataset.open(folder / "out")


def test_blank_lines_before_the_header(tmp_path: Path) -> None:
    wanted = prepare_csv(CSV, tmp_path).checksum
    assert prepare_csv("\n\n" + CSV, tmp_path).checksum == wanted
    with pytest.raises(InputError, match="table.csv: line 3 names the column 'user' twice"):
        prepare_csv("\n\n" + CSV.replace("item", "user", 1), tmp_path)
    with pytest.raises(InputError, match="table.csv: there are no rows"):
        prepare_csv("\n\n", tmp_path)


@pytest.mark.parametrize("odd", ["", "\n", '4,"u"u,99,1\n'])
def test_a_long_cell_beside_an_odd_line(tmp_path: Path, odd: str) -> None:
    """The csv module alone would refuse more than 131,072 characters."""
    long = "x" * 600_000
    text = CSV + odd + f'7,"{long}",60,1\n'
    if odd.startswith("4"):
        with pytest.raises(InputError, match="line 62 cannot be read"):
            prepare_csv(text, tmp_path)
    else:
        assert len(prepare_csv(text, tmp_path)) == 61
    with pytest.raises(InputError, match="begins a row of more than 1,048,576 bytes|has more than 1,048,576 bytes"):
        prepare_csv(CSV + "\n" + f'7,"{long}\n{long}",60,1\n', tmp_path)


def test_nothing_left_names_file_and_reason(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="table.parquet: the valid split is empty: 2 rows, split by time.*; left out"
                                         " before: {'missing user': 118}"):
        prepare(table(user=["a", "b", *[None] * 118]), tmp_path)
    with pytest.raises(InputError, match="table.parquet: the train split is empty after leaving out rows: {'history"):
        prepare(table(), tmp_path, history={**SCHEMA["history"], "min_history": 99})


def test_what_a_kill_after_the_end_leaves_is_removed(tmp_path: Path) -> None:
    """The output is there already; the same command says so and takes the rest away."""
    prepare_csv(CSV, tmp_path)
    left = tmp_path / ".ameir-fast-out.prepare"
    left.mkdir()
    (left / "identity.json").write_text("{}")
    (left / "write.json").write_text("{}")
    with pytest.raises(InputError, match="out is in use"):
        prepare_table(tmp_path / "table.csv", tmp_path / "out", tmp_path / "schema.json")
    assert not left.exists() and len(Dataset.open(tmp_path / "out")) == 60


def test_a_directory_of_other_things_is_no_prepared_data(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no prepared data \(there is no dataset.json\)"):
        Dataset.open(tmp_path)
    (tmp_path / "table.csv").write_text(CSV)
    (tmp_path / "schema.json").write_text(json.dumps(SCHEMA))
    with pytest.raises(InputError, match=r"no prepared data \(there is no dataset.json\)"):
        prepare_table(tmp_path / "table.csv", tmp_path / "out", tmp_path / "schema.json", like=tmp_path)
