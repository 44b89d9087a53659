"""A small MovieLens-like data set in RecBole's form, prepared; enough for a whole search in seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ameir_fast.data import Dataset, prepare_movielens
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


CONFIG = SearchConfig(
    embedding_dim=4, batch_size=256, epochs=2.0, inherited_epochs=2.0, evaluate_every=0.5, patience=2, runs=1, validation_subset=120,
    top_k=2, finalists=3, race_epochs=(0.5, 1.0), mlp_finalists=3, mlp_race_epochs=(0.5,), warmup_epochs=0.5, behavior_epochs=1.0, behavior_children=40,
    interaction_warmup_epochs=0.5, cycles=2, keep_interactions=8, updates_per_interaction=2,
    interactions_per_step=4, mlp_epochs=1.0, mlp_children=64)
