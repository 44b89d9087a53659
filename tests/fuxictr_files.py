"""A small data set in the style of FuxiCTR's own tiny example."""

from __future__ import annotations

import random
from pathlib import Path

from tests import data_helpers as helpers

COLUMNS = ("clk", "userid", "adgroup_id", "cate_id", "level", "price", "tags", "click_sequence", "cate_sequence")
CONFIG = """\
### a comment
tiny:
    data_root: ../data/
    data_format: csv
    train_data: data/train.csv
    valid_data: data/valid.csv
    test_data: data/test.csv
    min_categr_count: 2
    feature_cols:
        [{name: ["userid", "adgroup_id", "cate_id"], active: True, dtype: str, type: categorical},
         {name: level, active: True, dtype: int, type: categorical, min_categr_count: 1},
         {name: price, active: True, dtype: float, type: numeric, normalizer: StandardScaler},
         {name: group, active: True, dtype: str, type: meta},
         {name: unused, active: False, dtype: str, type: categorical},
         {name: tags, active: True, dtype: str, type: sequence, splitter: " ", max_len: 2, padding: pre},
         {name: click_sequence, active: True, dtype: str, type: sequence, splitter: "^", max_len: 5,
          feature_encoder: null, share_embedding: adgroup_id},
         {name: cate_sequence, active: True, dtype: str, type: sequence, max_len: 5, share_embedding: cate_id}]
    label_col: {name: clk, dtype: float}
other: {data_format: h5}
"""


def make_rows(count: int, seed: int) -> list[dict]:
    rng = random.Random(seed)
    rows = []
    for _ in range(count):
        length = rng.choice([0, 0, 1, 3, 7])
        rows.append(
            {
                "clk": rng.randint(0, 1),
                "userid": f"u{rng.randint(1, 40)}",
                "adgroup_id": rng.randint(100, 160),
                "cate_id": rng.choice(["a,b", 'say "x"', "c", ""]),
                "level": rng.choice(["", "0", "3", "4"]),
                "price": rng.choice(["1.5", "", "20"]),
                "tags": " ".join(rng.sample(["x", "y", "z", "w"], rng.randint(0, 4))),
                "click_sequence": "^".join(str(rng.randint(100, 160)) for _ in range(length)),
                "cate_sequence": "^".join(rng.choice(["a,b", "c", "d"]) for _ in range(length)),
            }
        )
    return rows


def write(folder: Path) -> dict[str, list[dict]]:
    (folder / "data").mkdir(parents=True)
    (folder / "dataset_config.yaml").write_text(CONFIG)
    parts = {"train": make_rows(200, 1), "valid": make_rows(30, 2), "test": make_rows(40, 3)}
    for name, rows in parts.items():
        helpers.write_csv(folder / "data" / f"{name}.csv", rows, COLUMNS)
    return parts
