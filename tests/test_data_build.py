"""build: streamed rows give, byte for byte, what the same rows give in memory, whatever the size of the chunks."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ameir_fast.data import Dataset, pieces
from ameir_fast.data.build import build
from ameir_fast.data.plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan
from tests import prepare_oracle as oracle

ROWS = 157


class Chunks:
    """A frame in chunks of so many rows, some empty ones between them; ``files`` as given."""

    def __init__(self, frame: pl.DataFrame, size: int, files: tuple[Path, ...] = ()):
        self.frame, self.size, self.files, self.done = frame, size, files, 0.0
        self.dropped: dict[str, int] = {}

    def chunks(self):
        self.dropped = {"missing user": 3}
        for start in range(0, self.frame.height, self.size):
            if start % 3 == 0:
                yield self.frame.clear()
            self.done = min(1.0, (start + self.size) / self.frame.height)
            yield self.frame.slice(start, self.size)


def make_frame(rows: int = ROWS, seed: int = 0) -> pl.DataFrame:
    rng = random.Random(seed)
    pick = lambda *values: [rng.choice(values) for _ in range(rows)]
    lists = [[rng.choice(["x", "y", "", None, "zz"]) for _ in range(rng.randint(0, 4))] for _ in range(rows)]
    lists[5] = None
    ready = [[rng.randint(1, 9 if k < rows // 2 else 14) for _ in range(rng.randint(0, 5))] for k in range(rows)]
    return pl.DataFrame(
        {
            "user": [f"u{rng.randint(1, 12 + k // 12)}" for k in range(rows)],
            "time": [rng.randint(0, 60) + k // 4 for k in range(rows)],
            "label": pick(0.0, 1.0),
            "item": [None if rng.random() < 0.05 else rng.randint(1, 8 + k // 9) for k in range(rows)],
            "whole": pl.Series([rng.randint(1, 8 + k // 9) for k in range(rows)], dtype=pl.UInt32),
            "text": pick("", "é", "b", "long text that is not inlined", None),
            "big": pl.Series(pick(2**64 - 1, 2**63, 7), dtype=pl.UInt64),
            "flag": pl.Series(pick(True, False, None)),
            "kind": pl.Series(pick("one", "two", None), dtype=pl.Categorical),
            "slot": pl.Series(pick(0, 1, 2, 3, 4, 9, None), dtype=pl.Int8),
            "tags": pl.Series(lists, dtype=pl.List(pl.String)),
            "ready": pl.Series(ready, dtype=pl.List(pl.Int64)),
            "ready_text": pl.Series([[str(v) if v % 4 else None for v in r] for r in ready], dtype=pl.List(pl.String)),
            "part": [("train", "valid", "test")[min(2, max(0, k % 7 - 4))] for k in range(rows)],
        }
    )


FIELDS = (
    FieldPlan("item", "item", "item"),
    FieldPlan("same", "whole", "item"),
    FieldPlan("text", "text", "text", default=False),
    FieldPlan("big", "big", "big"),
    FieldPlan("flag", "flag", "kind"),
    FieldPlan("kind", "kind", "kind"),
    FieldPlan("slot", "slot", "slot"),
    FieldPlan("tags", "tags", "tag", "multi_categorical"),
    FieldPlan("user", "user", "user"),
)
VOCABULARIES = {"item": VocabularyPlan(min_count=2), "slot": VocabularyPlan(size=5, on_unknown="map"),
                "kind": VocabularyPlan(values=("two", "nobody", "true", "one"))}
BUILT = (HistoryPlan("before", "item", "item"), HistoryPlan("texts", "text", "text"))
READY = (HistoryPlan("list", "ready", "item", True), HistoryPlan("texts", "ready_text", "tag", True))


def ctr(**parts) -> TablePlan:
    return TablePlan(**{"task": "ctr", "fields": FIELDS, "label": "label", "vocabularies": VOCABULARIES, **parts})


PLANS = {
    "no time": ctr(split=SplitPlan("random", seed=3)),
    "time, no history": ctr(time="time"),
    "user alone": ctr(user="user", split=SplitPlan("random", (0.5, 0.25, 0.25))),
    "built history": ctr(time="time", user="user", history=BUILT, max_history=4, min_history=1,
                         target=("item", "same")),
    "leave one out": ctr(time="time", user="user", split=SplitPlan("leave_one_out")),
    "by column": ctr(split=SplitPlan("column", column="part"), time="time"),
    "ready lists": ctr(history=READY, max_history=3, min_history=2, split=SplitPlan("random"), target=("item", "kind")),
    "retrieval": TablePlan(task="retrieval", fields=(FIELDS[6], FIELDS[7]), user="user", time="time", item="item",
                           item_vocabulary="item", history=BUILT[:1], max_history=6, min_history=1,
                           vocabularies={k: VOCABULARIES[k] for k in ("item", "slot")},
                           split=SplitPlan("leave_one_out")),
    "retrieval, no user": TablePlan(task="retrieval", fields=(), item="item", item_vocabulary="item",
                                    history=READY[:1], max_history=6, split=SplitPlan("random", seed=1)),
    "one field": ctr(fields=FIELDS[3:4], vocabularies={}, time="time", split=SplitPlan("time", (0.34, 0.33, 0.33))),
}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def same(found: Path, wanted: Path) -> None:
    found, wanted = contents(found), contents(wanted)
    assert sorted(found) == sorted(wanted)
    for name, data in wanted.items():
        assert found[name] == data, name


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize(("size", "piece"), [(1, 1 << 20), (7, 33), (ROWS, 50)])
def test_the_same_bytes_as_in_memory(tmp_path: Path, monkeypatch, name: str, size: int, piece: int) -> None:
    plan, frame = PLANS[name], make_frame()
    statistics = oracle.build(frame, plan, tmp_path / "wanted", kind="k", options={"o": 1}, dropped={"missing user": 3},
                              named_split=oracle_split(frame) if plan.split.by == "column" else None)
    monkeypatch.setattr(pieces, "ROWS", piece)
    assert build(Chunks(frame, size), plan, tmp_path / "found", kind="k", options={"o": 1}) == statistics
    same(tmp_path / "found", tmp_path / "wanted")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["found", "wanted"]
    Dataset.open(tmp_path / "found")


def oracle_split(frame: pl.DataFrame) -> np.ndarray:
    return np.array([("train", "valid", "test").index(p) for p in frame["part"]], np.int8)
