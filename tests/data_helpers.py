"""Small data in the forms that ``ameir_fast.data`` reads, and the same data read by plain Python."""

from __future__ import annotations

import csv
import random
from collections import Counter
from pathlib import Path

import numpy as np
import polars as pl

GENRES = ("Action", "Comedy", "Drama", "unknown")
START = 874724710


def write_mini_movielens(
    folder: Path, *, users: int = 14, items: int = 25, ratings: int = 420, seed: int = 0
) -> Path:
    """RecBole's form of MovieLens: equal times, users and items that appear late, missing attributes."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    lines, time = [], START
    for k in range(ratings):
        time += rng.choice([0, 0, 1, 50, 4000])
        # The later, the more users and items there are: some have no training row.
        known_users, known_items = 3 + (users - 3) * k // ratings, 8 + (items - 8) * k // ratings
        lines.append((rng.randint(1, known_users), rng.randint(1, known_items), rng.randint(1, 5), time))
    rng.shuffle(lines)  # as in the real file, nothing is sorted
    write_lines(
        folder / "ml-mini.inter",
        "user_id:token\titem_id:token\trating:float\ttimestamp:float",
        ["\t".join(map(str, line)) for line in lines],
    )
    write_lines(
        folder / "ml-mini.user",
        "user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token",
        [
            f"{u}\t{7 + 6 * u}\t{'MF'[u % 2]}\t{('writer', 'other', 'artist')[u % 3]}\t"
            + ("V3N4P" if u == 2 else str(10000 * (u % 9)))
            for u in range(1, users + 1)
        ],
    )
    titles = []
    for i in range(1, items + 1):
        genres = " ".join(rng.sample(GENRES[:3], 1 + i % 3)) if i % 7 else ("unknown" if i % 2 else "")
        titles.append(f'{i}\tTitle "{i}"\t{"" if i == 3 else 1950 + 3 * i % 49}\t{genres}')
    write_lines(
        folder / "ml-mini.item",
        "item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq",
        titles,
    )
    return folder


def write_lines(path: Path, header: str, lines: list[str]) -> Path:
    path.write_text("\n".join([header, *lines]) + "\n", encoding="utf-8")
    return path


def read_mini(folder: Path) -> list[dict]:
    """Every rating with the attributes of its user and item, in the order (time, place in the file)."""

    def table(suffix: str) -> list[dict]:
        text = next(folder.glob(f"*.{suffix}")).read_text(encoding="utf-8").splitlines()
        names = [name.split(":")[0] for name in text[0].split("\t")]
        return [dict(zip(names, line.split("\t"), strict=True)) for line in text[1:]]

    users = {row["user_id"]: row for row in table("user")}
    items = {row["item_id"]: row for row in table("item")}
    rows = []
    for row in table("inter"):
        rows.append(
            {
                **users[row["user_id"]],
                **items[row["item_id"]],
                **row,
                "rating": int(float(row["rating"])),
                "time": int(float(row["timestamp"])),
            }
        )
    return sorted(rows, key=lambda row: row["time"])  # stable


def earlier(rows: list[dict], k: int, user: str, time: str) -> list[dict]:
    """All rows of the same user with a strictly smaller time, in the order of ``rows``."""
    return [row for row in rows if row[user] == rows[k][user] and row[time] < rows[k][time]]


def histories(batch) -> list[list[tuple[int, ...]]]:
    """The history of every row of a batch as tuples of ids."""
    values, offsets = batch.history.tolist(), batch.history_offsets.tolist()
    return [[tuple(event) for event in values[a:b]] for a, b in zip(offsets, offsets[1:], strict=False)]


def bags(batch, count: int = 1, which: int = 0) -> list[list[int]]:
    """The bag of every row of one of ``count`` multi-categorical fields."""
    values, offsets = batch.bag_ids.tolist(), batch.bag_offsets.tolist()
    every = [values[a:b] for a, b in zip(offsets, offsets[1:], strict=False)]
    return every[which::count]


def whole(data, split: str):
    """All rows of a split in one batch."""
    return data.batch(split, np.arange(data.size(split)))


# ---- tables ----------------------------------------------------------------------------------------

CLICKS_SCHEMA = {
    "version": 1,
    "task": "ctr",
    "label": "click",
    "user": "user",
    "time": "ts",
    "fields": [
        {"name": "item"},
        {"name": "shop", "column": "shop_name"},
        {"name": "tags", "kind": "multi_categorical", "separator": "|", "vocabulary": "tag"},
        {"name": "slot"},
        {"name": "user", "default": False},
    ],
    "history": {
        "max_history": 4,
        "fields": [
            {"name": "history_item", "column": "item", "vocabulary": "item"},
            {"name": "history_click", "column": "click"},
        ],
    },
    "target": ["item", "shop"],
    "vocabularies": {"slot": {"size": 5}, "item": {"min_count": 2}},
    "split": {"by": "time", "parts": [0.7, 0.15, 0.15]},
}

RETRIEVAL_SCHEMA = {
    "version": 1,
    "task": "retrieval",
    "user": "user",
    "time": "ts",
    "item": {"column": "item", "vocabulary": "item"},
    "fields": [{"name": "slot"}],
    "history": {
        "max_history": 6,
        "fields": [{"name": "history_item", "column": "item", "vocabulary": "item"}],
    },
    "split": {"by": "time"},
}

CLICK_COLUMNS = ("user", "item", "shop_name", "tags", "slot", "click", "ts")


def make_clicks(rows: int = 300, seed: int = 1) -> list[dict]:
    """Rows of a click log, not sorted, with values missing in fields where that is allowed."""
    rng = random.Random(seed)
    time, log = 1_700_000_000, []
    for k in range(rows):
        time += rng.choice([0, 1, 30])
        item = rng.randint(1, 6 + 30 * k // rows)
        log.append(
            {
                "user": f"u{rng.randint(1, 9)}",
                "item": item,
                "shop_name": rng.choice(["", "north", "south"]),
                "tags": "|".join(rng.sample(["a", "b", "c", "d"], rng.randint(0, 3))),
                "slot": rng.randint(0, 4),
                "click": int(rng.random() < 0.4),
                "ts": time,
            }
        )
    rng.shuffle(log)
    return log


def write_csv(path: Path, rows: list[dict], columns=CLICK_COLUMNS) -> Path:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows({name: row[name] for name in columns} for row in rows)
    return path


def seen_often(rows: list[dict], column: str, least: int) -> set:
    """Values of a column with at least so many occurrences."""
    return {value for value, count in Counter(row[column] for row in rows).items() if count >= least}


def rows_of(source) -> pl.DataFrame:
    """Everything that a source yields."""
    return pl.concat(
        chunk if isinstance(chunk, pl.DataFrame) else pl.DataFrame({n: c.rows() for n, c in chunk.columns.items()})
        for chunk in source.chunks())


def files_below(folder: Path) -> set[str]:
    """Every file and directory below a folder, hidden ones included."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}
