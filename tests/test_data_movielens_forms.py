"""MovieLens as GroupLens publishes it: each form against the same ratings worked out row by row, and bad files."""

from __future__ import annotations

import csv
import gzip
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import zstandard

from ameir_fast import InputError
from ameir_fast.data import Dataset, prepare_movielens
from tests import data_helpers as helpers
from tests import mini_movielens as mini
from tests.test_data_movielens import compare, stored_rows

GENRES = (
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
)


def tables(folder: Path) -> tuple[list[dict], list[dict], list[dict]]:
    return tuple(mini.read(folder / f"mini.{kind}") for kind in ("inter", "item", "user"))


def title(row: dict) -> str:
    year = row["release_year:token"]
    named = f'Café, {row["item_id:token"]}: "The" End'
    return named + (f" ({year})" if year.isdigit() else " (1995) (V)" if year == "V" else "")


def write_100k(raw: Path, folder: Path) -> Path:
    ratings, items, users = tables(raw)
    folder.mkdir()
    (folder / "u.data").write_text("".join("\t".join(r.values()) + "\n" for r in ratings))
    lines = []
    for row in items:
        own = row["class:token_seq"].split()
        lines.append(
            [
                row["item_id:token"],
                title(row),
                "01-Jan-1995",
                "",
                "http://us.imdb.com/M/title-exact?x",
                *("01"[g in own] for g in GENRES),
            ]
        )
    (folder / "u.item").write_bytes("".join("|".join(line) + "\n" for line in lines).encode("latin-1"))
    (folder / "u.user").write_text("".join("|".join(u.values()) + "\n" for u in users))
    (folder / "u.genre").write_text("".join(f"{g}|{k}\n" for k, g in enumerate(GENRES)))
    return folder


def write_1m(raw: Path, folder: Path) -> Path:
    ratings, items, users = tables(raw)
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join("::".join(r.values()) + "\n" for r in ratings))
    lines = ["::".join((row["item_id:token"], title(row), "|".join(row["class:token_seq"].split()))) for row in items]
    (folder / "movies.dat").write_bytes("\n".join(lines).encode("latin-1"))  # no newline at the end
    starts = {name: max(low, 1) for low, _, name in mini.BANDS}
    text = ""
    for u in users:
        band = next(name for low, high, name in mini.BANDS if low <= int(u["age:token"]) <= high)
        text += (
            "::".join(
                (u["user_id:token"], u["gender:token"], str(starts[band]), u["occupation:token"], u["zip_code:token"])
            )
            + "\n"
        )
    (folder / "users.dat").write_text(text)
    return folder


def write_20m(raw: Path, folder: Path) -> Path:
    ratings, items, _ = tables(raw)
    folder.mkdir()
    with open(folder / "ratings.csv", "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(["userId", "movieId", "rating", "timestamp"])
        writer.writerows([*list(r.values())[:2], f"{r['rating:float']}.0", r["timestamp:float"]] for r in ratings)
    with open(folder / "movies.csv", "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\r\n")
        writer.writerow(["movieId", "title", "genres"])
        for row in items:
            genres = "|".join(row["class:token_seq"].split())
            writer.writerow([row["item_id:token"], title(row), genres.replace("unknown", "(no genres listed)")])
    return folder


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """RecBole's form, each item's genres in the order that u.item has them."""
    folder = mini.write(tmp_path_factory.mktemp("mini") / "raw")
    items = mini.read(folder / "mini.item")
    mini._table(
        folder / "mini.item",
        list(items[0]),
        [(*list(r.values())[:3], " ".join(sorted(r["class:token_seq"].split(), key=GENRES.index))) for r in items],
    )
    return folder


@pytest.mark.parametrize("write", [write_100k, write_1m])
def test_originals_with_users(raw, tmp_path, write):
    folder = write(raw, tmp_path / "original")
    statistics = prepare_movielens(folder, tmp_path / "out", user_field=True)
    data = Dataset.open(tmp_path / "out")
    compare(stored_rows(data), mini.expected(raw), 20)
    prepare_movielens(raw, tmp_path / "recbole", user_field=True)
    assert statistics == Dataset.open(tmp_path / "recbole").statistics
    assert data.schema == Dataset.open(tmp_path / "recbole").schema


@pytest.mark.parametrize("write", [write_100k, write_1m, write_20m])
def test_ratings_without_attributes_are_counted(raw, tmp_path, write):
    folder = write(raw, tmp_path / "original")
    ratings, items, users = tables(raw)
    unknown = {"item": sum(r["item_id:token"] not in {i["item_id:token"] for i in items} for r in ratings)}
    assert unknown["item"] > 0
    if write is not write_20m:
        name = "u.user" if write is write_100k else "users.dat"
        lines = (folder / name).read_text().splitlines(keepends=True)
        (folder / name).write_text("".join(lines[3:]))
        gone = {u["user_id:token"] for u in users[:3]}
        unknown["user"] = sum(r["user_id:token"] in gone for r in ratings)
        assert unknown["user"] > 0
    statistics = prepare_movielens(folder, tmp_path / "out")
    assert statistics["without_attributes"] == unknown and statistics["rows"] == len(ratings)
    statistics = prepare_movielens(folder, tmp_path / "next", retrieval=True)
    assert statistics.get("without_attributes", {}) == {k: n for k, n in unknown.items() if k == "user"}


def test_the_csv_form_has_no_users_and_half_stars(raw, tmp_path):
    folder = write_20m(raw, tmp_path / "csv")
    prepare_movielens(folder, tmp_path / "out", user_field=True)
    data = Dataset.open(tmp_path / "out")
    assert data.field_names == ("user", "item", "first_genre", "release_year", "genres", "hour", "weekday")
    wanted = mini.expected(raw)
    for row in wanted:
        row["history"] = [(i, None if s is None else f"{s}.0") for i, s in row["history"]]
    found = stored_rows(data)
    for row in wanted:
        for name in ("age_group", "gender", "occupation", "zip_prefix"):
            row.pop(name)
    for a, b in zip(found, wanted, strict=True):
        assert all(a[name] == b[name] for name in a if name != "history") and a["history"] == b["history"][-20:]


def test_half_stars(tmp_path):
    rng = random.Random(3)
    rows = [(rng.randint(1, 6), rng.randint(1, 9), rng.randint(1, 10) / 2, 10**9 + 60 * k) for k in range(200)]
    folder = tmp_path / "ml-10m"
    folder.mkdir()
    (folder / "ratings.dat").write_text("".join(f"{u}::{i}::{s:g}::{t}\n" for u, i, s, t in rows))
    (folder / "movies.dat").write_text("".join(f"{i}::Film {i} (19{80 + i})::Drama|Sci-Fi\n" for i in range(1, 10)))
    prepare_movielens(folder, tmp_path / "out")
    data = Dataset.open(tmp_path / "out")
    batch = helpers.whole(data, "test")
    first, stars = data.splits["test"][0], data.tokens("rating")
    for k, (found, (user, _, star, time)) in enumerate(zip(helpers.histories(batch), rows[first:], strict=True)):
        earlier = [f"{s:.1f}" for u, _, s, t in rows if u == user and t < time][-20:]
        assert [stars[s] for _, s in found] == earlier and bool(batch.label[k]) == (star >= 4)


@pytest.mark.parametrize("split", ["time", "leave_one_out", None])
def test_retrieval(raw, tmp_path, split):
    folder = write_1m(raw, tmp_path / "original")
    prepare_movielens(folder, tmp_path / "out", retrieval=True, split=split, max_history=6)
    data = Dataset.open(tmp_path / "out")
    assert data.task == "retrieval" and data.schema.fields == () and data.schema.target == ()
    assert [(b.name, b.vocabulary) for b in data.schema.behavior] == [("history_item", "item")]
    assert data.field_names == ("user", "age_group", "gender", "occupation", "zip_prefix", "hour", "weekday")
    rows = sorted(mini.read(raw / "mini.inter"), key=lambda r: int(r["timestamp:float"]))
    part = dict(zip(map(id, rows), (r["split"] for r in mini.expected(raw)), strict=True))
    if split != "time":
        by_user: dict[str, list[dict]] = {}
        for row in rows:
            by_user.setdefault(row["user_id:token"], []).append(row)
        part = {}
        for own in by_user.values():
            names = ["train"] * len(own) if len(own) < 3 else ["train"] * (len(own) - 2) + ["valid", "test"]
            part |= dict(zip(map(id, own), names, strict=True))
    known = {r["item_id:token"] for r in rows if part[id(r)] == "train"}
    tokens = data.tokens("item")
    for name in ("train", "valid", "test"):
        wanted = []
        for row in rows:
            earlier = [
                r["item_id:token"]
                for r in rows
                if r["user_id:token"] == row["user_id:token"]
                and int(r["timestamp:float"]) < int(row["timestamp:float"])
            ]
            if part[id(row)] == name and row["item_id:token"] in known and earlier:
                wanted.append((row["item_id:token"], [i if i in known else None for i in earlier][-6:]))
        batch = helpers.whole(data, name)
        found = [
            (tokens[i], [tokens[h] for (h,) in events])
            for i, events in zip(batch.items.tolist(), helpers.histories(batch), strict=True)
        ]
        assert found == wanted, name


@pytest.mark.parametrize("write", [write_1m, write_20m])
def test_a_random_split_a_threshold_and_rare_values(raw, tmp_path, write):
    folder = write(raw, tmp_path / "original")
    options = {"split": "random", "threshold": 2.5, "min_count": 5, "parts": (0.5, 0.25, 0.25), "user_field": True}
    prepare_movielens(folder, tmp_path / "out", seed=3, **options)
    data = Dataset.open(tmp_path / "out")
    assert [data.size(s) for s in ("train", "valid", "test")] == [120, 60, 60]
    prepare_movielens(folder, tmp_path / "again", seed=3, **options)
    assert Dataset.open(tmp_path / "again").checksum == data.checksum
    prepare_movielens(folder, tmp_path / "other", seed=4, **options)
    assert Dataset.open(tmp_path / "other").labels("test").tolist() != data.labels("test").tolist()
    batches = [helpers.whole(data, split) for split in data.splits]
    assert sum(b.label.sum().item() for b in batches) == sum(int(r["rating:float"]) >= 3 for r in tables(raw)[0])
    # In training rows every id but 0 occurs five times or more; the order of time doesn't tell the parts apart.
    for k, field in enumerate(f for f in data.schema.fields if f.kind == "categorical"):
        if field.vocabulary not in ("genre", "age_group", "hour", "weekday"):
            found = np.bincount(batches[0].fields[:, k].numpy(), minlength=data.schema.size(field.vocabulary))
            assert found[1:].min(initial=5) >= 5 and len(data.tokens(field.vocabulary)) > 1, field.name
    assert data.schema.size("user") < 24 and data.schema.size("item") < 20
    splits = data.statistics["splits"]
    assert splits["train"]["last_time"] > splits["test"]["first_time"]


def test_rare_movies_cannot_be_found(raw, tmp_path):
    folder = write_1m(raw, tmp_path / "original")
    statistics = prepare_movielens(folder, tmp_path / "out", retrieval=True, split="time", min_count=12)
    data = Dataset.open(tmp_path / "out")
    rows = sorted(mini.read(raw / "mini.inter"), key=lambda r: int(r["timestamp:float"]))
    part = [r["split"] for r in mini.expected(raw)]
    counts = Counter(r["item_id:token"] for r, p in zip(rows, part, strict=True) if p == "train")
    assert set(data.tokens("item")[1:]) == {item for item, n in counts.items() if n >= 12} != set(counts)
    assert statistics["dropped"]["unknown item"] > 0


def test_which_options_go_together(raw, tmp_path):
    with pytest.raises(InputError, match="min_count 0 is not at least 1"):
        prepare_movielens(raw, tmp_path / "out", min_count=0)
    with pytest.raises(InputError, match="split 'leave_one_out' is none of those that ctr data can have"):
        prepare_movielens(raw, tmp_path / "out", split="leave_one_out")
    with pytest.raises(InputError, match="split 'random' is none of those that retrieval"):
        prepare_movielens(raw, tmp_path / "out", retrieval=True, split="random")


def test_which_form_it_is(raw, tmp_path):
    with pytest.raises(InputError, match="holds none of MovieLens's forms"):
        prepare_movielens(tmp_path, tmp_path / "out")
    folder = write_1m(raw, tmp_path / "both")
    shutil.copy(write_20m(raw, tmp_path / "csv") / "ratings.csv", folder)
    with pytest.raises(InputError, match="holds more than one of MovieLens's forms"):
        prepare_movielens(folder, tmp_path / "out")
    folder = write_1m(raw, tmp_path / "missing")
    (folder / "movies.dat").unlink()
    with pytest.raises(InputError, match="movies.dat: no such file"):
        prepare_movielens(folder, tmp_path / "out")


def changed(folder: Path, name: str, line: int, new: str | bytes) -> Path:
    lines = (folder / name).read_bytes().split(b"\n")
    lines[line - 1] = new if isinstance(new, bytes) else new.encode()
    (folder / name).write_bytes(b"\n".join(lines))
    return folder


@pytest.mark.parametrize(
    ("write", "name", "line", "new", "message"),
    [
        (write_100k, "u.data", 7, "1\t2\t3", "u.data: line 7 has 3 columns, not 4"),
        (write_100k, "u.data", 7, "1\t2\tx\t880000000", "u.data: line 7: column 'rating' is 'x', not a number"),
        (write_100k, "u.data", 7, b"1\t2\t3\t88\xff", "u.data: line 7 is not UTF-8"),
        (
            write_100k,
            "u.data",
            7,
            "1\t2\t4.5\t880000000",
            "u.data: line 7: column 'rating' is 4.5, none of 1, 2, 3, 4, 5",
        ),
        (write_100k, "u.data", 9, "\t2\t4\t880000000", "u.data: line 9: column 'user' is missing"),
        (write_100k, "u.item", 3, "3|no flags", "u.item: line 3 has 2 columns, not 24"),
        (write_100k, "u.item", 3, "3|A||||" + "|".join(["2"] * 19), "u.item: line 3: column 'unknown' is '2', neither"),
        (write_100k, "u.user", 2, "2|old|F|other|94043", "u.user: line 2: column 'age' is 'old', not a number"),
        (write_100k, "u.user", 2, "1|24|F|other|94043", "u.user: line 2: column 'user' has '1' a second time"),
        (write_1m, "ratings.dat", 5, "1::2::3::4::5", "ratings.dat: line 5 has 5 columns, not 4"),
        (
            write_1m,
            "ratings.dat",
            5,
            "1::2::3::later",
            "ratings.dat: line 5: column 'timestamp' is 'later', not a number",
        ),
        (
            write_1m,
            "ratings.dat",
            5,
            "1::2::3::1e30",
            "ratings.dat: line 5: column 'timestamp' is 1e30, not seconds since 1970",
        ),
        (
            write_1m,
            "movies.dat",
            5,
            "4::Again (1990)::Drama",
            "movies.dat: line 5: column 'item' has '4' a second time",
        ),
        (write_20m, "ratings.csv", 5, "userId,movieId,rating,timestamp\r", "ratings.csv: line 5 repeats the header"),
        (
            write_20m,
            "ratings.csv",
            5,
            "1,2,0.7,880000000",
            "ratings.csv: line 5: column 'rating' is 0.7, none of 0.5, 1, ",
        ),
        (
            write_20m,
            "ratings.csv",
            1,
            "userId,movieId,stars,timestamp",
            "ratings.csv: column 'rating' is missing; it has",
        ),
        (write_20m, "movies.csv", 5, b'4,"Caf\xe9",Drama', "movies.csv: line 5 is not UTF-8"),
    ],
)
def test_bad_files(raw, tmp_path, write, name, line, new, message):
    folder = changed(write(raw, tmp_path / "original"), name, line, new)
    with pytest.raises(InputError) as caught:
        prepare_movielens(folder, tmp_path / "out")
    assert message in str(caught.value) and "\n" not in str(caught.value)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["original"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("ratings.csv", b"", "ratings.csv: the file is empty"),
        ("ratings.csv", b"userId,movieId,rating,timestamp\n", "no rows"),
        ("movies.csv", b"movieId,title,genres\n", "movies.csv: there are no rows"),
        (
            "ratings.csv",
            gzip.compress(b"userId,movieId,rating,timestamp\n1,2,3.0,4\n" * 99, mtime=0)[:-12],
            "damaged or cut off",
        ),
    ],
)
def test_empty_and_cut_off_files(raw, tmp_path, name, content, message):
    folder = write_20m(raw, tmp_path / "csv")
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        prepare_movielens(folder, tmp_path / "out")


def test_packed_ratings(raw, tmp_path):
    """Compressed content is told by its first bytes, whatever the name."""
    folder = write_1m(raw, tmp_path / "plain")
    prepare_movielens(folder, tmp_path / "one")
    (folder / "ratings.dat").write_bytes(gzip.compress((folder / "ratings.dat").read_bytes()))
    prepare_movielens(folder, tmp_path / "two")
    for path in (tmp_path / "one" / "columns").iterdir():
        assert np.array_equal(np.load(path), np.load(tmp_path / "two" / "columns" / path.name))


@pytest.mark.parametrize("form", ["recbole", "100k", "1m", "20m"])
def test_names_may_say_that_files_are_packed(raw, tmp_path, form):
    folder = tmp_path / "plain"
    if form == "recbole":
        shutil.copytree(raw, folder)
    else:
        {"100k": write_100k, "1m": write_1m, "20m": write_20m}[form](raw, folder)
    prepare_movielens(folder, tmp_path / "one")
    for k, path in enumerate(sorted(folder.iterdir())):
        pack, end = ((gzip.compress, ".gz"), (zstandard.ZstdCompressor().compress, ".zst"))[k % 2]
        path.with_name(path.name + end).write_bytes(pack(path.read_bytes()))
        path.unlink()
    prepare_movielens(folder, tmp_path / "two")
    for path in (tmp_path / "one" / "columns").iterdir():
        assert np.array_equal(np.load(path), np.load(tmp_path / "two" / "columns" / path.name))
    shutil.copy(next(folder.glob("*.gz")), folder / next(folder.glob("*.gz")).stem)
    with pytest.raises(InputError, match="holds 2 files .*, not one"):
        prepare_movielens(folder, tmp_path / "three")
