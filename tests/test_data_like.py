"""Ranges learnt from training rows, the split by order, and rows prepared like those of another directory."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, pieces, prepare_table
from ameir_fast.data.build import build
from ameir_fast.data.plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan
from ameir_fast.data.source import FrameSource
from tests.test_data_build import FIELDS, PLANS, VOCABULARIES, Chunks, contents, ctr, make_frame


def column(directory: Path, name: str) -> np.ndarray:
    return np.load(directory / "columns" / f"{name}.npy")


def stored_json(directory: Path, name: str):
    return json.loads((directory / "vocabularies" / f"{name}.json").read_text(encoding="utf-8"))


# ---- split by order ----------------------------------------------------------------------------------


def test_by_order_cuts_the_input_by_position(tmp_path: Path) -> None:
    frame = pl.DataFrame({"label": [k % 2 for k in range(103)], "row": range(103)})
    plan = TablePlan(task="ctr", label="label", fields=(FieldPlan("row", "row", "row"),),
                     vocabularies={"row": VocabularyPlan(size=103)}, split=SplitPlan("order", (0.5, 0.2, 0.3)))
    build(FrameSource(frame), plan, tmp_path / "out", kind="k", options={})
    assert Dataset.open(tmp_path / "out").splits == {"train": (0, 52), "valid": (52, 72), "test": (72, 103)}
    assert column(tmp_path / "out", "field.row").tolist() == list(range(103))


# ---- ranges --------------------------------------------------------------------------------------------


def edges_by_hand(values: list[float], bins: int) -> list[float]:
    values = sorted(values)
    cuts = {values[k * len(values) // bins] for k in range(1, bins)} if values else set()
    return sorted(v for v in cuts if v > values[0])


def number_frame(rows: int = 400, seed: int = 0) -> pl.DataFrame:
    rng = random.Random(seed)
    odd = [None, float("nan"), float("inf"), -float("inf")]
    return pl.DataFrame({
        "label": [rng.randint(0, 1) for _ in range(rows)],
        "real": [rng.choice(odd) if rng.random() < 0.1 else rng.gauss(0, 1) + 3 * (k > 300) for k in range(rows)],
        "whole": pl.Series(
            [None if rng.random() < 0.2 else int(rng.expovariate(0.3)) for _ in range(rows)], dtype=pl.Int16
        ),
        "text": [rng.choice(["", "1", "2.5", "-3e2", "7"]) for _ in range(rows)],
        "same": [4.0] * rows,
        "late": [None if k < 330 else 1.5 for k in range(rows)],
        "list": pl.Series([[rng.random() for _ in range(rng.randint(0, 3))] + [None] for _ in range(rows)]),
    })


@pytest.mark.parametrize(("size", "piece"), [(400, 1 << 20), (7, 33), (1, 1 << 20)])
@pytest.mark.parametrize("bins", [2, 5, 40])
def test_ranges_hold_equal_shares_of_the_training_rows(tmp_path: Path, monkeypatch, size, piece, bins) -> None:
    frame = number_frame()
    names = ("real", "whole", "text", "same", "late")
    plan = TablePlan(
        task="ctr", label="label", split=SplitPlan("order"),
        fields=(*(FieldPlan(n, n, n) for n in names), FieldPlan("list", "list", "list", "multi_categorical")),
        vocabularies={n: VocabularyPlan(bins=bins) for n in (*names, "list")},
    )
    monkeypatch.setattr(pieces, "ROWS", piece)
    build(Chunks(frame, size), plan, tmp_path / "out", kind="k", options={})
    data = Dataset.open(tmp_path / "out")
    for name in names:
        values = [None if v in (None, "") or not math.isfinite(float(v)) else float(v) for v in frame[name]]
        edges = edges_by_hand([v for v in values[:320] if v is not None], bins)
        assert stored_json(tmp_path / "out", name) == {"edges": edges}
        wanted = [0 if v is None or name == "late" else 1 + sum(e <= v for e in edges) for v in values]
        assert column(tmp_path / "out", f"field.{name}").tolist() == wanted
        sizes = {v.name: v.size for v in data.schema.vocabularies}
        assert sizes[name] == (1 if name == "late" else len(edges) + 2) <= bins + 1
        assert len(data.tokens(name)) == max(2, sizes[name])
        if name in ("real", "whole"):
            counts = np.bincount(wanted[:320])
            assert (counts[1:] > 0).all()
    elements = [v for row in frame["list"].to_list() for v in row if v is not None]
    edges = edges_by_hand([v for row in frame["list"][:320].to_list() for v in row if v is not None], bins)
    assert column(tmp_path / "out", "field.list.ids").tolist() == [1 + sum(e <= v for e in edges) for v in elements]


def test_names_of_ranges(tmp_path: Path) -> None:
    frame = pl.DataFrame({"label": [0, 1] * 10, "x": [k / 2 for k in range(20)]})
    plan = TablePlan(task="ctr", label="label", fields=(FieldPlan("x", "x", "x"),),
                     vocabularies={"x": VocabularyPlan(bins=3)}, split=SplitPlan("order", (0.9, 0.05, 0.05)))
    build(FrameSource(frame), plan, tmp_path / "out", kind="k", options={})
    assert Dataset.open(tmp_path / "out").tokens("x") == [None, "[-inf, 3)", "[3, 6)", "[6, inf)"]


def test_a_text_that_is_no_number(tmp_path: Path) -> None:
    frame = pl.DataFrame({"label": [0, 1] * 10, "x": ["1", "2", "three", ""] * 5})
    plan = TablePlan(task="ctr", label="label", fields=(FieldPlan("x", "x", "x"),),
                     vocabularies={"x": VocabularyPlan(bins=3)}, split=SplitPlan("order"))
    with pytest.raises(InputError, match="'three' in a column to be cut into ranges is not a number"):
        build(FrameSource(frame), plan, tmp_path / "out", kind="k", options={})
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"bins": 1}, '"bins" is 1, not at least 2'), ({"bins": 3, "size": 4}, 'both "size" and "bins"'),
     ({"bins": 3, "min_count": 2}, '"min_count" does not go with "bins"'),
     ({"bins": "x"}, "'bins' is 'x', not an integer")],
)
def test_wrong_bins(tmp_path: Path, changes: dict, message: str) -> None:
    (tmp_path / "s.json").write_text(json.dumps(TABLE | {"vocabularies": {"price": changes}}))
    with pytest.raises(InputError, match=message):
        prepare_table(price_table(tmp_path / "t.csv"), tmp_path / "out", tmp_path / "s.json")


TABLE = {"version": 1, "label": "click", "split": {"by": "order"},
         "fields": [{"name": "price"}, {"name": "shop"}], "vocabularies": {"price": {"bins": 4}}}


def price_table(
    path: Path, rows: int = 60, label: bool = True, price=lambda k: str(k * 0.25), shop=lambda k: k % 3
) -> Path:
    lines = [",".join(["click"] * label + ["price", "shop"])]
    lines += [",".join([str(k % 2)] * label + [price(k), str(shop(k))]) for k in range(rows)]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_a_table_with_ranges(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(TABLE))
    prepare_table(price_table(tmp_path / "t.csv"), tmp_path / "out", tmp_path / "s.json")
    assert stored_json(tmp_path / "out", "price") == {"edges": [3.0, 6.0, 9.0]}
    bad = price_table(tmp_path / "bad.csv", price=lambda k: "cheap" if k == 7 else str(k))
    with pytest.raises(InputError, match=r"bad\.csv: line 9: column 'price' holds 'cheap', not a number"):
        prepare_table(bad, tmp_path / "other", tmp_path / "s.json")
    pl.read_csv(tmp_path / "t.csv").write_parquet(tmp_path / "t.parquet")
    prepare_table(tmp_path / "t.parquet", tmp_path / "again", tmp_path / "s.json")
    assert column(tmp_path / "again", "field.price").tolist() == column(tmp_path / "out", "field.price").tolist()


# ---- like ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["no time", "built history", "ready lists", "retrieval", "by column"])
@pytest.mark.parametrize("size", [1, 157])
def test_the_same_rows_again_get_the_same_ids(tmp_path: Path, name: str, size: int) -> None:
    """Rows prepared like themselves: columns are those of the original, in another order of rows."""
    plan, frame = PLANS[name], make_frame()
    build(Chunks(frame, size), plan, tmp_path / "first", kind="k", options={})
    build(Chunks(frame, size), plan, tmp_path / "second", kind="k", options={}, like=tmp_path / "first")
    first, second = Dataset.open(tmp_path / "first"), Dataset.open(tmp_path / "second")
    assert second.splits == {"train": (0, 0), "valid": (0, 0), "test": (0, len(first))}
    assert second.schema == first.schema and second.field_names == first.field_names
    found, wanted = contents(tmp_path / "second"), contents(tmp_path / "first")
    for file in wanted:
        if file.startswith(("vocabularies", "schema", "columns/events")):
            assert found[file] == wanted[file]
    # The order of the original's rows is split, then time, then place; like it, but all of one split.
    ids = [n for n in wanted if n.startswith("columns/field.") and "offsets" not in n and ".ids." not in n]
    stack = lambda folder: sorted(zip(*(np.load(folder / n).tolist() for n in ids), strict=True))
    assert stack(tmp_path / "second") == stack(tmp_path / "first")
    assert second.statistics["rows"] == first.statistics["rows"]
    assert second.statistics["splits"]["train"]["label_rate"] is None
    assert second.statistics["label_rate"] == first.statistics["label_rate"]


@pytest.mark.parametrize("labels", ["absent", "all missing", "some missing", "none missing"])
def test_new_rows(tmp_path: Path, labels: str) -> None:
    plan = ctr(fields=FIELDS[:2] + FIELDS[7:8], vocabularies={"item": VOCABULARIES["item"]}, split=SplitPlan("order"))
    old, new = make_frame(), make_frame(seed=9).with_columns(item=pl.col("item") + 3)
    build(FrameSource(old), plan, tmp_path / "old", kind="k", options={})
    given = {"absent": new.drop("label"), "all missing": new.with_columns(label=pl.lit(None, pl.Float64)),
             "some missing": new.with_columns(label=pl.when(pl.int_range(pl.len()) != 4).then("label")),
             "none missing": new}[labels]
    build(FrameSource(given), plan, tmp_path / "new", kind="k", options={}, like=tmp_path / "old")
    tokens = {v: k for k, v in enumerate(stored_json(tmp_path / "old", "item")) if k}
    assert column(tmp_path / "new", "field.item").tolist() == [tokens.get(v, 0) for v in new["item"]]
    assert 0 in column(tmp_path / "new", "field.item") and column(tmp_path / "new", "field.item").max() > 0
    tags = {v: k for k, v in enumerate(stored_json(tmp_path / "old", "tag")) if k}
    wanted = [tags.get(t, 0) for row in new["tags"] for t in (row if row is not None else []) if t is not None]
    assert column(tmp_path / "new", "field.tags.ids").tolist() == wanted
    stored = column(tmp_path / "new", "label")
    expected = given["label"].cast(pl.Float32).to_numpy() if labels != "absent" else np.full(157, np.nan, np.float32)
    assert np.array_equal(stored, expected, equal_nan=True)
    statistics = Dataset.open(tmp_path / "new").statistics
    assert (statistics["label_rate"] is None) == (labels != "none missing")
    about = json.loads((tmp_path / "new" / "dataset.json").read_text())
    assert about["like"] == Dataset.open(tmp_path / "old").checksum


def test_integers_as_text_find_their_ids(tmp_path: Path) -> None:
    plan = ctr(fields=(FieldPlan("whole", "whole", "whole"),), vocabularies={}, split=SplitPlan("order"))
    frame = make_frame()
    build(FrameSource(frame), plan, tmp_path / "old", kind="k", options={})
    text = frame.with_columns(pl.col("whole").cast(pl.String))
    build(FrameSource(text), plan, tmp_path / "new", kind="k", options={}, like=tmp_path / "old")
    assert column(tmp_path / "new", "field.whole").tolist() == column(tmp_path / "old", "field.whole").tolist()


def test_what_does_not_fit_the_other_directory(tmp_path: Path) -> None:
    plan = ctr(fields=FIELDS[:1], vocabularies={}, split=SplitPlan("order"))
    build(FrameSource(make_frame()), plan, tmp_path / "old", kind="k", options={})

    def refused(message: str, **parts) -> None:
        with pytest.raises(InputError, match=message) as caught:
            other = ctr(**{"fields": FIELDS[:1], "vocabularies": {}, "split": SplitPlan("order"), **parts})
            build(FrameSource(make_frame()), other, tmp_path / "new", kind="k", options={}, like=tmp_path / "old")
        assert "\n" not in str(caught.value) and [p.name for p in tmp_path.iterdir()] == ["old"]

    refused("old: has the vocabularies item, but these rows need item, text", fields=(FIELDS[0], FIELDS[2]))
    refused("old: its schema has fields .*item.*, but these rows have .*same",
            fields=(FieldPlan("same", "item", "item"),))
    refused("old: its schema has max_history 0, but these rows have 3", time="time", user="user", max_history=3,
            history=(HistoryPlan("before", "item", "item"),))
    path = tmp_path / "old" / "vocabularies" / "item.json"
    kept = path.read_bytes()
    path.write_bytes(kept.replace(b"1", b"2", 1))
    refused("item.json: its checksum is not")
    path.write_bytes(kept)
    with pytest.raises(InputError, match="nowhere: no such directory of prepared data"):
        build(FrameSource(make_frame()), plan, tmp_path / "new", kind="k", options={}, like=tmp_path / "nowhere")


def test_a_table_without_labels(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(json.dumps(TABLE))
    prepare_table(price_table(tmp_path / "t.csv"), tmp_path / "old", tmp_path / "s.json")
    new = price_table(tmp_path / "new.csv", 9, label=False, price=lambda k: "" if k == 2 else str(k), shop=lambda k: k)
    prepare_table(new, tmp_path / "new", tmp_path / "s.json", like=tmp_path / "old")
    assert column(tmp_path / "new", "field.price").tolist() == [1, 1, 0, 2, 2, 2, 3, 3, 3]
    tokens = stored_json(tmp_path / "old", "shop")
    assert column(tmp_path / "new", "field.shop").tolist() == [tokens.index(str(k)) if k < 3 else 0 for k in range(9)]
    assert np.isnan(column(tmp_path / "new", "label")).all()
    with pytest.raises(InputError, match="new.csv: column 'click' is missing"):
        prepare_table(new, tmp_path / "other", tmp_path / "s.json")
    wrong = price_table(tmp_path / "wrong.csv", 9)
    wrong.write_text(wrong.read_text().replace("\n1,", "\n2,", 1))
    with pytest.raises(InputError, match="wrong.csv: line 3: column 'click' is '2', a label that is neither"):
        prepare_table(wrong, tmp_path / "other", tmp_path / "s.json", like=tmp_path / "old")
    some = price_table(tmp_path / "some.csv", 9)
    some.write_text(some.read_text().replace("\n1,", "\n,", 1))
    prepare_table(some, tmp_path / "some", tmp_path / "s.json", like=tmp_path / "old")
    assert np.isnan(column(tmp_path / "some", "label")).tolist() == [False, True] + [False] * 7
    by_column = TABLE | {"split": {"by": "column", "column": "part"}}
    (tmp_path / "s.json").write_text(json.dumps(by_column))
    prepare_table(new, tmp_path / "again", tmp_path / "s.json", like=tmp_path / "old")
    assert Dataset.open(tmp_path / "again").splits == {"train": (0, 0), "valid": (0, 0), "test": (0, 9)}
