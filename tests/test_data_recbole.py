"""RecBole's atomic files: rows against plain Python that reads the same files, options, bad files."""

from __future__ import annotations

import gzip
import random
from pathlib import Path

import pytest

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_recbole
from ameir_fast.data.recbole import Meaning
from tests import data_helpers as helpers

RATED = Meaning(threshold=("rating", 4))


def write(folder: Path, rows: int = 260, seed: int = 5, parts: bool = False) -> Path:
    """``shop.inter``, ``.user`` and ``.item`` with every type, late items and users, missing values."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, time = [], 1_000_000.0
    for k in range(rows):
        time += rng.choice([0, 0.5, 10, 3000])
        user, item = rng.randint(1, 4 + 6 * k // rows), rng.randint(1, 7 + 15 * k // rows)
        device = rng.choice(["phone", "desk", ""])
        lines.append(f"u{user}\ti{item}\t{rng.choice(['1', '2.5', '4.0', '5'])}\t{time}\t{device}")
    head = "user_id:token\titem_id:token\trating:float\ttimestamp:float\tdevice:token"
    if parts:
        for name, part in (("train", lines[:150]), ("valid", lines[150:200]), ("test", lines[200:])):
            helpers.write_lines(folder / f"shop.{name}.inter", head, part)
    else:
        helpers.write_lines(folder / "shop.inter", head, rng.sample(lines, rows))
    helpers.write_lines(
        folder / "shop.user",
        "user_id:token\tage:float\tcity:token",
        [f"u{u}\t{u * 1.5}\t{'AB'[u % 2]}" for u in range(1, 9)],
    )
    helpers.write_lines(
        folder / "shop.item",
        "class:token_seq\titem_id:token\tvector:float_seq\tbrand:token",
        [f"{' '.join(rng.sample(['x', 'y y', 'z'], i % 3))}\ti{i}\t0.5 0.25\tb{i % 4}" for i in range(1, 20)],
    )
    return folder


def table(path: Path) -> list[dict]:
    text = path.read_text().splitlines()
    names = [cell.split(":")[0] for cell in text[0].split("\t")]
    return [dict(zip(names, line.split("\t"), strict=True)) for line in text[1:]]


def joined(folder: Path) -> list[dict]:
    """All interactions with attributes, in the order of time, then of the file."""
    users = {r["user_id"]: r for r in table(folder / "shop.user")}
    items = {r["item_id"]: r for r in table(folder / "shop.item")}
    none = {"city": "", "class": "", "brand": ""}
    rows = [
        {**none, **users.get(r["user_id"], {}), **items.get(r["item_id"], {}), **r}
        for r in table(folder / "shop.inter")
    ]
    return sorted(rows, key=lambda r: float(r["timestamp"]))


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return write(tmp_path_factory.mktemp("recbole") / "shop")


def test_ratings_with_a_threshold(folder, tmp_path):
    notes = []
    statistics = prepare_recbole(folder, tmp_path / "out", RATED, max_history=5, bins=0, on_note=notes.append)
    data = Dataset.open(tmp_path / "out")
    assert [(f.name, f.kind) for f in data.schema.fields] == [
        ("item_id", "categorical"),
        ("device", "categorical"),
        ("city", "categorical"),
        ("class", "multi_categorical"),
        ("brand", "categorical"),
    ]
    assert data.field_names == ("user_id", "item_id", "device", "city", "class", "brand")
    assert data.schema.target == ("item_id",) and [b.vocabulary for b in data.schema.behavior] == ["item_id"]
    assert notes == [
        "left out: column age (float, which is no category)",
        "left out: column vector (float_seq, which is no category)",
    ]
    rows = joined(folder)
    assert statistics["rows"] == len(rows)
    first, second = data.splits["train"][1], data.splits["valid"][1]
    tokens = {v.name: data.tokens(v.name) for v in data.schema.vocabularies}
    seen = {name: {r[name] for r in rows[:first]} for name in ("item_id", "device", "city", "brand")}
    seen["class"] = {c for r in rows[:first] for c in r["class"].split()}
    positions = {f.name: i for i, f in enumerate(data.schema.fields)}
    for split, part in (("train", rows[:first]), ("valid", rows[first:second]), ("test", rows[second:])):
        batch = helpers.whole(data, split)
        events, classes = helpers.histories(batch), helpers.bags(batch)
        for k, row in enumerate(part):
            assert bool(batch.label[k]) == (float(row["rating"]) >= 4)
            for name in ("item_id", "device", "city", "brand"):
                found = tokens[name][batch.fields[k, positions[name]]]
                assert found == (row[name] if row[name] in seen[name] and row[name] else None)
            assert [tokens["class"][c] for c in classes[k]] == [
                c if c in seen["class"] else None for c in row["class"].split()
            ]
            earlier = [
                r["item_id"]
                for r in rows
                if r["user_id"] == row["user_id"] and float(r["timestamp"]) < float(row["timestamp"])
            ][-5:]
            assert [tokens["item_id"][i] for (i,) in events[k]] == [
                i if i in seen["item_id"] else None for i in earlier
            ]


def test_histories_of_several_columns(folder, tmp_path):
    meaning = Meaning(
        threshold=("rating", 4),
        history=("item_id", "rating"),
        target=("item_id", "brand"),
        leave_out=("device", "class"),
    )
    prepare_recbole(folder, tmp_path / "out", meaning, user_field=True)
    data = Dataset.open(tmp_path / "out")
    assert [f.name for f in data.schema.fields] == ["user_id", "item_id", "age", "city", "brand"]
    assert [(b.name, b.vocabulary) for b in data.schema.behavior] == [
        ("history_item_id", "item_id"),
        ("history_rating", "rating"),
    ]
    assert data.schema.target == ("item_id", "brand")
    assert sorted(data.tokens("rating")[1:]) == ["1.0", "2.5", "4.0", "5.0"]
    rows, stars, last = joined(folder), data.tokens("rating"), data.splits["test"][0]
    for found, row in zip(helpers.histories(helpers.whole(data, "test")), rows[last:], strict=True):
        wanted = [
            f"{float(r['rating']):.1f}"
            for r in rows
            if r["user_id"] == row["user_id"] and float(r["timestamp"]) < float(row["timestamp"])
        ][-50:]
        assert [stars[s] for _, s in found] == wanted


def test_numbers_are_cut_into_ranges(folder, tmp_path):
    notes = []
    prepare_recbole(folder, tmp_path / "out", RATED, bins=3, on_note=notes.append)
    assert notes == ["left out: column vector (float_seq, which is no category)"]
    data = Dataset.open(tmp_path / "out")
    assert data.schema.size("age") == 4
    place, rows = [f.name for f in data.schema.fields].index("age"), joined(folder)
    ids = [i for s in ("train", "valid", "test") for i in helpers.whole(data, s).fields[:, place].tolist()]
    ages = [r.get("age") for r in rows]
    assert all((i == 0) == (a is None) for i, a in zip(ids, ages, strict=True)) and 0 in ids
    pairs = sorted({(float(a), i) for i, a in zip(ids, ages, strict=True) if a})
    # As many training rows in each range as the jumps between ages allow.
    trained = sorted(float(a) for a in ages[: data.size("train")] if a)
    edges = [trained[k * len(trained) // 3] for k in (1, 2)]
    assert len(pairs) == 8 and all(i == 1 + sum(a >= e for e in edges) for a, i in pairs)


def test_retrieval(folder, tmp_path):
    prepare_recbole(folder, tmp_path / "out", Meaning(), retrieval=True)
    data = Dataset.open(tmp_path / "out")
    assert data.task == "retrieval" and data.schema.fields == () and data.field_names == ("user_id", "age", "city")
    by_user: dict[str, list[dict]] = {}
    for row in joined(folder):
        by_user.setdefault(row["user_id"], []).append(row)
    tokens, batch = data.tokens("item_id"), helpers.whole(data, "test")
    training = {r["item_id"] for own in by_user.values() for r in (own[:-2] if len(own) > 2 else own)}
    lasts = sorted((own[-1] for own in by_user.values() if len(own) > 2), key=lambda r: float(r["timestamp"]))
    wanted = [
        r["item_id"]
        for r in lasts
        if r["item_id"] in training
        and any(float(o["timestamp"]) < float(r["timestamp"]) for o in by_user[r["user_id"]])
    ]
    assert [tokens[i] for i in batch.items.tolist()] == wanted


def test_a_label_column_and_no_time(tmp_path):
    folder = tmp_path / "ads"
    folder.mkdir()
    rng = random.Random(1)
    lines = [f"{rng.choice('ab')}\t{rng.randint(1, 5)}\t{rng.randint(0, 1)}\t{rng.choice('pq')}" for _ in range(90)]
    helpers.write_lines(folder / "ads.inter", "uid:token\tad:token\tclick:float\tslot:token", lines)
    prepare_recbole(folder, tmp_path / "out", Meaning(label="click", user="uid", item="ad"))
    data = Dataset.open(tmp_path / "out")
    assert [f.name for f in data.schema.fields] == ["ad", "slot"] and data.schema.behavior == ()
    assert data.statistics["label_rate"] == pytest.approx(sum(line.split("\t")[2] == "1" for line in lines) / 90)


def test_ready_lists(tmp_path):
    """As RecBole's session data has them: ``item_id_list:token_seq`` beside the item that came next."""
    folder = tmp_path / "session"
    folder.mkdir()
    rng = random.Random(2)
    lines = [
        f"{k}\t{' '.join(str(rng.randint(1, 9)) for _ in range(rng.randint(1, 6)))}\t{rng.randint(1, 9)}"
        for k in range(120)
    ]
    for name, part in (("train", lines[:80]), ("valid", lines[80:100]), ("test", lines[100:])):
        helpers.write_lines(
            folder / f"session.{name}.inter", "session_id:token\titem_id_list:token_seq\titem_id:token", part
        )
    meaning = Meaning(user="session_id", history=("item_id_list",))
    prepare_recbole(folder, tmp_path / "out", meaning, retrieval=True)
    data = Dataset.open(tmp_path / "out")
    assert [data.size(s) for s in ("train", "valid", "test")] == [80, 20, 20]
    tokens, batch = data.tokens("item_id"), helpers.whole(data, "test")
    wanted = [line.split("\t") for line in lines[100:]]
    assert [[tokens[i] for (i,) in events] for events in helpers.histories(batch)] == [w[1].split() for w in wanted]
    assert [tokens[i] for i in batch.items.tolist()] == [w[2] for w in wanted]


def test_a_random_split_is_a_function_of_the_seed(folder, tmp_path):
    found = []
    for seed in (1, 1, 2):
        prepare_recbole(folder, tmp_path / "out", RATED, split="random", seed=seed, overwrite=True)
        found.append(helpers.whole(Dataset.open(tmp_path / "out"), "test").fields.tolist())
    assert found[0] == found[1] != found[2]


def test_a_split_by_files(tmp_path):
    folder = write(tmp_path / "shop", parts=True)
    prepare_recbole(folder, tmp_path / "out", RATED)
    assert [Dataset.open(tmp_path / "out").size(s) for s in ("train", "valid", "test")] == [150, 50, 60]


@pytest.mark.parametrize(
    ("meaning", "options", "message"),
    [
        (Meaning(), {}, "needs a label column .--label. or a threshold on one"),
        (Meaning(label="rating", threshold=("rating", 4)), {}, "needs a label column .--label. or a threshold on one"),
        (RATED, {"retrieval": True}, "belongs to the ctr task"),
        (Meaning(label="rating"), {}, "shop.inter: line 2: column 'rating' is .*, a label that is neither 0 nor 1"),
        (Meaning(label="stars"), {}, "shop.inter: there is no column 'stars' for the label; it has user_id, item_id"),
        (Meaning(threshold=("rating", 4), user="who"), {}, "there is no column 'who' for the user"),
        (Meaning(threshold=("rating", 4), item="rating"), {}, "column 'rating' for the item is float, not token"),
        (Meaning(threshold=("rating", 4), time="device"), {}, "column 'device' for the time is token, not float"),
        (Meaning(threshold=("rating", 4), history=("city",)), {}, "no column 'city' of an interaction or item"),
        (
            Meaning(threshold=("rating", 4), history=("class",)),
            {},
            "column 'class' is token_seq and can make no history",
        ),
        (Meaning(threshold=("rating", 4), target=("color",)), {}, "color"),
        (Meaning(threshold=("rating", 4), leave_out=("color",)), {}, "there is no column 'color' to leave out"),
        (RATED, {"split": "column"}, "is one file, which no split by files can part"),
        (RATED, {"split": "users"}, "split by 'users'"),
        (Meaning(time="when"), {"retrieval": True}, "retrieval needs histories, thus a column 'when'"),
    ],
)
def test_what_columns_cannot_mean(folder, tmp_path, meaning, options, message):
    with pytest.raises(InputError, match=message):
        prepare_recbole(folder, tmp_path / "out", meaning, **options)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("name", "line", "new", "message"),
    [
        (
            "shop.inter",
            1,
            "user_id\titem_id:token\trating:float\ttimestamp:float\tdevice:token",
            "shop.inter: line 1: 'user_id' is not name:type with a type of token, token_seq, float, float_seq",
        ),
        (
            "shop.inter",
            1,
            "user_id:token\titem_id:token\trating:double\ttimestamp:float\tdevice:token",
            "shop.inter: line 1: 'rating:double' is not name:type",
        ),
        (
            "shop.inter",
            1,
            "user_id:token\titem_id:token\trating:float\trating:token\tdevice:token",
            "shop.inter: line 1 names the column 'rating' twice",
        ),
        ("shop.inter", 9, "u1\ti1\t3", "shop.inter: line 9 has 3 columns, not 5"),
        ("shop.inter", 9, "u1\ti1\tgood\t5\tphone", "shop.inter: line 9: column 'rating' is 'good', not a number"),
        ("shop.inter", 9, "u1\ti1\t\t5\tphone", "shop.inter: line 9: column 'rating' is missing"),
        ("shop.inter", 9, "u1\ti1\t5\tnoon\tphone", "shop.inter: line 9: column 'timestamp' is 'noon', not a number"),
        ("shop.inter", 9, b"u1\ti1\t5\t5\tph\xffne", "shop.inter: line 9 is not UTF-8"),
        ("shop.user", 3, "u1\t3\tA", "shop.user: line 3: column 'user_id' has 'u1' a second time"),
        ("shop.item", 3, "x\t\t0.5\tb1", "shop.item: line 3: column 'item_id' is missing"),
        (
            "shop.item",
            1,
            "class:token_seq\titem_id:token\tvector:float_seq\tdevice:token",
            "shop.item: column 'device' is in .*shop.inter too",
        ),
    ],
)
def test_bad_files(tmp_path, name, line, new, message):
    folder = write(tmp_path / "shop")
    lines = (folder / name).read_bytes().split(b"\n")
    lines[line - 1] = new if isinstance(new, bytes) else new.encode()
    (folder / name).write_bytes(b"\n".join(lines))
    with pytest.raises(InputError, match=message):
        prepare_recbole(folder, tmp_path / "out", RATED)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["shop"]


def test_missing_and_cut_off_files(tmp_path):
    with pytest.raises(InputError, match="nowhere: no such directory"):
        prepare_recbole(tmp_path / "nowhere", tmp_path / "out", RATED)
    folder = write(tmp_path / "shop")
    packed = gzip.compress((folder / "shop.inter").read_bytes())
    (folder / "shop.inter").write_bytes(packed)
    prepare_recbole(folder, tmp_path / "out", RATED)
    (folder / "shop.inter").rename(folder / "shop.inter.gz")
    prepare_recbole(folder, tmp_path / "named", RATED)
    (folder / "shop.inter.gz").unlink()
    for path in (tmp_path / "out" / "columns").iterdir():
        assert path.read_bytes() == (tmp_path / "named" / "columns" / path.name).read_bytes()
    (folder / "shop.inter").write_bytes(packed[:-10])
    with pytest.raises(InputError, match="shop.inter: damaged or cut off"):
        prepare_recbole(folder, tmp_path / "out", RATED, overwrite=True)
    (folder / "shop.inter").write_bytes(b"")
    with pytest.raises(InputError, match="shop.inter: the file is empty"):
        prepare_recbole(folder, tmp_path / "out", RATED, overwrite=True)
    (folder / "shop.inter").unlink()
    with pytest.raises(InputError, match=r"shop: holds 0 files \*.inter"):
        prepare_recbole(folder, tmp_path / "out", RATED, overwrite=True)


def test_rows_without_user_item_or_time_are_counted(tmp_path):
    folder = write(tmp_path / "shop")
    with open(folder / "shop.inter", "a") as file:
        file.write("\ti1\t5\t1000001\tphone\nu1\t\t5\t1000001\tphone\nu1\ti1\t5\t\tphone\n\ti1\t5\t\tphone\n")
    dropped = prepare_recbole(folder, tmp_path / "out", RATED)["dropped"]
    assert dropped == {"missing user": 2, "missing time": 1, "missing item": 1}


def test_no_row_is_left(tmp_path):
    folder = write(tmp_path / "shop")
    text = (folder / "shop.inter").read_text().splitlines()
    helpers.write_lines(folder / "shop.inter", text[0], [line[line.index("\t"):] for line in text[1:]])
    with pytest.raises(InputError, match="shop.inter and others: no row is left: {'missing user': 260}"):
        prepare_recbole(folder, tmp_path / "out", RATED)


def test_rows_without_attributes_are_counted(folder, tmp_path):
    users, items = ({r[f"{k}_id"] for r in table(folder / f"shop.{k}")} for k in ("user", "item"))
    rows = table(folder / "shop.inter")
    unknown = {"item": sum(r["item_id"] not in items for r in rows), "user": sum(r["user_id"] not in users for r in rows)}
    assert min(unknown.values()) > 0
    statistics = prepare_recbole(folder, tmp_path / "out", RATED)
    assert statistics["without_attributes"] == unknown and statistics["rows"] == len(rows)
    # Items are not described where one is to be found.
    statistics = prepare_recbole(folder, tmp_path / "next", Meaning(), retrieval=True)
    assert statistics["without_attributes"] == {"user": unknown["user"]}
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "shop.inter").write_bytes((folder / "shop.inter").read_bytes())
    assert "without_attributes" not in prepare_recbole(tmp_path / "alone", tmp_path / "none", RATED)


@pytest.mark.parametrize(("threshold", "message"), [
    (float("nan"), "threshold nan is not a finite number"),
    (float("inf"), "threshold inf is not a finite number"),
    (9, "shop.inter: threshold 9 does not part the values 1 to 5 of column 'rating'"),
    (1, "threshold 1 does not part the values 1 to 5"),
])
def test_thresholds_that_part_nothing(folder, tmp_path, threshold, message):
    with pytest.raises(InputError, match=message):
        prepare_recbole(folder, tmp_path / "out", Meaning(threshold=("rating", threshold)))
    assert not (tmp_path / "out").exists()


def test_a_default_that_is_spelled_out_is_the_default(folder, tmp_path):
    prepare_recbole(folder, tmp_path / "one", Meaning(threshold=("rating", 4)))
    prepare_recbole(folder, tmp_path / "two", Meaning(threshold=("rating", 4.0)), parts=(0.8, 0.1, 0.1), min_count=1)
    assert Dataset.open(tmp_path / "one").checksum == Dataset.open(tmp_path / "two").checksum


def test_rare_values_are_unknown(folder, tmp_path):
    prepare_recbole(folder, tmp_path / "out", RATED, min_count=9, user_field=True)
    data = Dataset.open(tmp_path / "out")
    trained = joined(folder)[: data.size("train")]
    for name in ("user_id", "device", "brand", "city"):
        counts = {r[name]: sum(o[name] == r[name] for o in trained) for r in trained if r[name]}
        assert set(data.tokens(name)[1:]) == {value for value, count in counts.items() if count >= 9}
    assert len(data.tokens("user_id")) - 1 < len({r["user_id"] for r in trained})
    statistics = prepare_recbole(folder, tmp_path / "next", Meaning(), retrieval=True, min_count=9)
    assert statistics["dropped"]["unknown item"] > 0
    with pytest.raises(InputError, match="min_count 0 is not at least 1"):
        prepare_recbole(folder, tmp_path / "new", RATED, min_count=0)


def test_blank_lines_before_the_header(folder, tmp_path):
    prepare_recbole(folder, tmp_path / "one", RATED)
    (tmp_path / "shop").mkdir()
    for path in folder.iterdir():
        (tmp_path / "shop" / path.name).write_text("\n \n" + path.read_text())
    prepare_recbole(tmp_path / "shop", tmp_path / "two", RATED)
    assert Dataset.open(tmp_path / "one").checksum == Dataset.open(tmp_path / "two").checksum
    (tmp_path / "shop" / "shop.item").write_text("\nitem_id:token\titem_id:token\n")
    with pytest.raises(InputError, match="shop.item: line 2 names the column 'item_id' twice"):
        prepare_recbole(tmp_path / "shop", tmp_path / "new", RATED)
