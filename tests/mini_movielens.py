"""A small data set in the form of MovieLens-100K, and what preparing it must give, worked out row by row."""

from __future__ import annotations

import csv
import random
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

GENRES = ["Drama", "Comedy", "Action", "Sci-Fi", "Children's"]
BANDS = [
    (0, 17, "<18"),
    (18, 24, "18-24"),
    (25, 34, "25-34"),
    (35, 44, "35-44"),
    (45, 49, "45-49"),
    (50, 55, "50-55"),
    (56, 999, "56+"),
]


def write(directory: Path, *, ratings: int = 240, seed: int = 0) -> Path:
    """Twenty-four users who appear one after another, twenty items of which the last few appear late, many
    equal times.
    """
    rng = random.Random(seed)
    directory.mkdir(parents=True, exist_ok=True)
    rows, pairs = [], set()
    while len(rows) < ratings:
        share = len(rows) / ratings
        user = rng.randint(max(1, int(24 * share) - 6), min(24, int(24 * share) + 4))
        item = rng.randint(1, 14 if share < 0.7 else 20)
        stamp = 880_000_000 + (len(rows) // 3) * 50_000
        if (user, item) not in pairs:
            pairs.add((user, item))
            rows.append((user, item, rng.randint(1, 5), stamp))
    rng.shuffle(rows)
    _table(
        directory / "mini.inter", ["user_id:token", "item_id:token", "rating:float", "timestamp:float"], rows
    )
    years = ["1995", "1989", "1931", "unkonwn", "1990", "V"]
    _table(
        directory / "mini.item",
        ["item_id:token", "movie_title:token_seq", "release_year:token", "class:token_seq"],
        [
            (
                i,
                f'Film "{i}',
                years[i % 6],
                "unknown" if i == 3 else " ".join(rng.sample(GENRES, rng.randint(1, 3))),
            )
            for i in range(1, 20)
        ],
    )  # nothing is said of item 20
    zips = ["90210", "T8H1N", "02139", "55401"]
    _table(
        directory / "mini.user",
        ["user_id:token", "age:token", "gender:token", "occupation:token", "zip_code:token"],
        [
            (u, 5 + 3 * u, rng.choice("MF"), rng.choice(["student", "other"]), zips[u % 4])
            for u in range(1, 25)
        ],
    )
    return directory


def _table(path: Path, header: list[str], rows: list[tuple]) -> None:
    lines = ["\t".join(map(str, row)) for row in [header, *rows]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def expected(directory: Path) -> list[dict]:
    """Rows as they must be stored, values instead of ids, ``None`` for the unknown; read and reasoned without
    arrays.
    """
    name = next(directory.glob("*.inter")).name.split(".")[0]
    items = {r["item_id:token"]: r for r in read(directory / f"{name}.item")}
    users = {r["user_id:token"]: r for r in read(directory / f"{name}.user")}
    rows = [
        _row(r, items.get(r["item_id:token"]), users.get(r["user_id:token"]))
        for r in read(directory / f"{name}.inter")
    ]
    rows.sort(key=lambda r: r["time"])  # stable: the order of the file among equal times
    first, second = _boundary(rows, 0.8), _boundary(rows, 0.9)
    by_user: dict[str, list[dict]] = {}
    for k, row in enumerate(rows):
        row["split"] = "train" if k < first else "valid" if k < second else "test"
        by_user.setdefault(row["user"], []).append(row)
    for row in rows:
        earlier = [r for r in by_user[row["user"]] if r["time"] < row["time"]]
        row["history"] = [(r["item"], r["rating"]) for r in earlier]
    _forget(rows)
    return rows


def _row(rating: dict, item: dict | None, user: dict | None) -> dict:
    moment = datetime.fromtimestamp(int(rating["timestamp:float"]), UTC)
    row = {
        "user": rating["user_id:token"],
        "item": rating["item_id:token"],
        "rating": int(rating["rating:float"]),
        "time": int(rating["timestamp:float"]),
        "label": float(rating["rating:float"]) >= 4,
        "hour": moment.hour,
        "weekday": moment.isoweekday(),
        "genres": [],
        "first_genre": None,
        "release_year": None,
        "age_group": None,
        "gender": None,
        "occupation": None,
        "zip_prefix": None,
    }
    if item:
        row["genres"] = [g for g in item["class:token_seq"].split() if g != "unknown"]
        row["first_genre"] = row["genres"][0] if row["genres"] else None
        if item["release_year:token"].isdigit():
            year = int(item["release_year:token"])
            row["release_year"] = str(year) if year >= 1990 else f"{year // 10 * 10}s"
    if user:
        age = int(user["age:token"])
        row["age_group"] = next(name for low, high, name in BANDS if low <= age <= high)
        row["gender"], row["occupation"] = user["gender:token"], user["occupation:token"]
        digit = user["zip_code:token"][0]
        row["zip_prefix"] = digit if digit.isdigit() else "other"
    return row


def _boundary(rows: list[dict], share: float) -> int:
    at = round(share * len(rows))
    low = high = at
    while low > 0 and rows[low - 1]["time"] == rows[at]["time"]:
        low -= 1
    while high < len(rows) and rows[high]["time"] == rows[at]["time"]:
        high += 1
    if low == at:
        return at
    return low if at - low <= high - at else high


def _forget(rows: list[dict]) -> None:
    """What the training rows do not show becomes unknown."""
    training = [r for r in rows if r["split"] == "train"]
    names = (
        "user",
        "item",
        "age_group",
        "gender",
        "occupation",
        "zip_prefix",
        "release_year",
        "hour",
        "weekday",
        "rating",
    )
    seen = {name: {r[name] for r in training} for name in names}
    seen["genre"] = {g for r in training for g in r["genres"]}
    for row in rows:
        row["history"] = [
            (i if i in seen["item"] else None, r if r in seen["rating"] else None) for i, r in row["history"]
        ]
        row["genres"] = [g if g in seen["genre"] else None for g in row["genres"]]
        row["first_genre"] = row["first_genre"] if row["first_genre"] in seen["genre"] else None
    for row in rows:
        for name in names:
            if row[name] not in seen[name]:
                row[name] = None


def counts(directory: Path, name: str = "item_id:token") -> Counter:
    return Counter(r[name] for r in read(next(directory.glob("*.inter"))))
