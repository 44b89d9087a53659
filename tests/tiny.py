"""Small data sets, prepared, one for each of the paper's scenarios; enough for a whole search in seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from ameir_fast.data import Dataset, prepare_movielens, prepare_table
from ameir_fast.search import SearchConfig

GENRES = ("Action", "Comedy", "Drama", "Horror", "Musical")


def write_raw(directory: Path, users: int = 40, items: int = 50, ratings: int = 1500, seed: int = 0) -> Path:
    """``ml-100k.{inter,item,user}`` with taste by genre, in RecBole's tab-separated form."""
    directory.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    genre = rng.integers(len(GENRES), size=(items, 2))
    taste = rng.normal(size=(users, len(GENRES)))
    lines = ["item_id:token\tmovie_title:token_seq\trelease_year:token\tclass:token_seq"]
    for i in range(items):
        names = " ".join(dict.fromkeys(GENRES[g] for g in genre[i]))
        lines.append(f"{i + 1}\tMovie {i + 1}\t{1950 + i}\t{names}")
    (directory / "ml-100k.item").write_text("\n".join(lines) + "\n", encoding="utf-8")
    lines = ["user_id:token\tage:token\tgender:token\toccupation:token\tzip_code:token"]
    for u in range(users):
        lines.append(f"{u + 1}\t{18 + u}\t{'MF'[u % 2]}\t{('writer', 'doctor', 'other')[u % 3]}\t{10000 + 997 * u}")
    (directory / "ml-100k.user").write_text("\n".join(lines) + "\n", encoding="utf-8")
    pairs = rng.choice(users * items, size=ratings, replace=False)
    times = 880_000_000 + np.sort(rng.integers(0, 3_000_000, size=ratings))
    lines = ["user_id:token\titem_id:token\trating:float\ttimestamp:float"]
    for pair, time in zip(pairs, times, strict=True):
        user, item = divmod(int(pair), items)
        liking = taste[user, genre[item]].mean() + 0.5 * rng.normal()
        lines.append(f"{user + 1}\t{item + 1}\t{int(np.clip(np.round(3.6 + 1.3 * liking), 1, 5))}\t{time}")
    (directory / "ml-100k.inter").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return directory


def prepared(directory: Path) -> Dataset:
    prepare_movielens(write_raw(directory / "raw"), directory / "data", max_history=8)
    return Dataset.open(directory / "data")


def prepared_sequences(directory: Path, repeats: bool = True, users: int = 60, items: int = 40,
                       events: int = 20) -> Dataset:
    """Histories alone, for retrieval: an item is mostly followed by the next one, or by any (new) one."""
    rng = np.random.default_rng(0)
    lines = ["user,item,time"]
    for user in range(users):
        had: list[int] = []
        for time in range(events):
            item = (had[-1] + 1) % items if had and rng.random() < 0.9 else int(rng.integers(items))
            while not repeats and item in had:
                item = int(rng.integers(items))
            had.append(item)
            lines.append(f"u{user},i{item},{time * 100 + user}")
    schema = {"version": 1, "task": "retrieval", "item": {"column": "item", "vocabulary": "item"}, "user": "user",
              "time": "time", "fields": [], "history": {"max_history": 6, "fields": [
                  {"name": "history_item", "column": "item", "vocabulary": "item"}]}}
    return _table(directory, lines, schema)


def prepared_fields(directory: Path, rows: int = 1500) -> Dataset:
    """Clicks on fields alone; whether a click comes depends on two of them together."""
    rng = np.random.default_rng(1)
    values = rng.integers(6, size=(rows, 4))
    click = rng.random(rows) < 0.2 + 0.5 * ((values[:, 0] + values[:, 2]) % 2)
    lines = ["a,b,c,d,click", *(",".join(map(str, [*v, int(y)])) for v, y in zip(values, click, strict=True))]
    schema = {"version": 1, "task": "ctr", "label": "click", "fields": [{"name": n} for n in "abcd"],
              "split": {"by": "random", "seed": 3, "parts": [0.6, 0.2, 0.2]}}
    return _table(directory, lines, schema)


def _table(directory: Path, lines: list[str], schema: dict) -> Dataset:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "log.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (directory / "schema.json").write_text(json.dumps(schema), encoding="utf-8")
    prepare_table(directory / "log.csv", directory / "data", directory / "schema.json")
    return Dataset.open(directory / "data")


CONFIG = SearchConfig(
    embedding_dim=4, batch_size=256, epochs=2.0, inherited_epochs=2.0, evaluate_every=0.5, patience=2, runs=1, validation_subset=120,
    top_k=2, finalists=3, race_epochs=(0.5, 1.0), mlp_finalists=3, mlp_race_epochs=(0.5,), warmup_epochs=0.5, behavior_epochs=1.0, behavior_children=40,
    interaction_warmup_epochs=0.5, cycles=2, keep_interactions=8, updates_per_interaction=2,
    interactions_per_step=4, interaction_ranking="shared", mlp_epochs=1.0, mlp_children=64)
