"""Run directories in the documented format, written by hand: what the report and the command line are
tested on."""

from __future__ import annotations

import json
import random
from pathlib import Path

SCHEMA = {
    "version": 1,
    "task": "ctr",
    "max_history": 20,
    "vocabularies": [
        {"name": "item", "size": 1683},
        {"name": "genre", "size": 20},
        {"name": "age", "size": 8},
        {"name": "gender", "size": 3},
        {"name": "occupation", "size": 22},
        {"name": "zip", "size": 100},
        {"name": "year", "size": 73},
        {"name": "hour", "size": 25},
        {"name": "weekday", "size": 8},
        {"name": "rating", "size": 6},
    ],
    "fields": [
        {"name": "item", "kind": "categorical", "vocabulary": "item"},
        {"name": "genre", "kind": "categorical", "vocabulary": "genre"},
        {"name": "age", "kind": "categorical", "vocabulary": "age"},
        {"name": "gender", "kind": "categorical", "vocabulary": "gender"},
        {"name": "occupation", "kind": "categorical", "vocabulary": "occupation"},
        {"name": "zip", "kind": "categorical", "vocabulary": "zip"},
        {"name": "year", "kind": "categorical", "vocabulary": "year"},
        {"name": "genres", "kind": "multi_categorical", "vocabulary": "genre"},
        {"name": "hour", "kind": "categorical", "vocabulary": "hour"},
        {"name": "weekday", "kind": "categorical", "vocabulary": "weekday"},
    ],
    "behavior": [{"name": "item", "vocabulary": "item"}, {"name": "rating", "vocabulary": "rating"}],
    "target": ["item", "genre"],
}
ARCHITECTURE = {
    "version": 1,
    "behavior": [
        {"norm": "layer_norm", "layer": "self_attn2", "activation": "gelu"},
        {"norm": "none", "layer": "zero", "activation": "identity"},
        {"norm": "none", "layer": "max_pool3", "activation": "swish"},
    ],
    "interactions": [[0, 2], [1, 3], [0, 2, 6], [4, 8, 9], [0, 1, 2, 5]],
    "mlp": [{"ratio": 0.6, "activation": "relu"}, {"ratio": 0.3, "activation": "dice"}],
    "shortcut": "se",
}
LAYERS = ("conv1", "conv3", "bi_gru", "self_attn2", "max_pool3", "zero", "target_attn")
VARIANTS = {
    "AMEIR-A": 0.7585,
    "AMEIR-B": 0.7592,
    "AMEIR-C": 0.7604,
    "DNN": 0.7310,
    "DNN-pool": 0.7546,
    "Wide&Deep": 0.7555,
    "DIN": 0.7553,
    "AMEIR-B no interactions": 0.7581,
    "random children": 0.7588,
}


def block(rng: random.Random) -> dict:
    return {
        "norm": rng.choice(["none", "layer_norm"]),
        "layer": rng.choice(LAYERS),
        "activation": rng.choice(["relu", "gelu", "swish"]),
    }


def metrics(repeats: int = 5, seed: int = 0, variants: dict[str, float] = VARIANTS) -> dict:
    rng = random.Random(seed)
    luck = [rng.gauss(0, 0.001) for _ in range(repeats)]
    table = {}
    for name, mean in variants.items():
        runs = [mean + one + rng.gauss(0, 0.0007) for one in luck]
        losses = [0.59 + (0.75 - one) for one in runs]
        table[name] = {
            "auc": statistics(runs),
            "log_loss": statistics(losses),
            "parameters": 60_000 + rng.randrange(9000),
            "parameters_outside_embedding": 20_000 + rng.randrange(30_000),
            "samples_per_s": 80_000.0 + rng.random() * 90_000,
            "train_seconds": 12.5,
            "device_seconds": 12.0,
            "run_seeds": list(range(repeats)),
        }
    return {
        "version": 1,
        "data": {
            "kind": "movielens",
            "rows": 100_000,
            "splits": {"train": [0, 80_000], "valid": [80_000, 90_000], "test": [90_000, 100_000]},
            "checksum": "0123456789abcdef",
            "label_rate": 0.5537,
        },
        "variants": table,
        "found": [{"AMEIR-C": ARCHITECTURE}] * repeats,
        "architecture": ARCHITECTURE,
        "standard_error": {"auc": 0.0049},
        "steps": {
            "behavior": {
                "seconds": 61.2,
                "device_seconds": 60.0,
                "children_ranked": 300,
                "train_steps": 780,
                "best_score": 0.7561,
            },
            "interactions": {"seconds": 30.5, "device_seconds": 30.0, "candidates_ranked": 120, "cycles": 3},
            "mlp": {"seconds": 44.0, "device_seconds": 43.0, "children_ranked": 880},
            "race": {"seconds": 38.0, "device_seconds": 37.0},
            "retrain": {"seconds": 95.0, "device_seconds": 90.0},
        },
        "environment": {
            "device": "cpu",
            "threads": 2,
            "torch": "2.13.0",
            "triton": "3.7.1",
            "python": "3.11.7",
            "platform": "Linux",
            "cpu": "a processor",
            "git": "0000000",
            "date": "2026-01-02T03:04:05",
            "backend": "reference",
            "version": "0.1.0",
        },
        "seconds": 268.7,
    }


def statistics(runs: list[float]) -> dict:
    mean = sum(runs) / len(runs)
    deviation = (sum((one - mean) ** 2 for one in runs) / max(1, len(runs) - 1)) ** 0.5
    return {"mean": mean, "std": deviation, "runs": runs}


def rankings(seed: int = 0) -> dict:
    rng = random.Random(seed)
    names = [field["name"] for field in SCHEMA["fields"]]

    def scores(count: int) -> list[float]:
        return sorted((rng.gauss(0.752, 0.002) for _ in range(count)), reverse=True)

    interactions = []
    for score in scores(120):
        order = rng.choice([1, 2, 2, 3, 4])
        fields = sorted(rng.sample(range(len(names)), order))
        interactions.append(
            {
                "score": score,
                "fields": fields,
                "names": [names[i] for i in fields],
                "order": order,
                "cycle": max(1, order - 1),
                **({"found_by": 7.5} if order == 3 else {}),
            }
        )

    def race(kind: str, count: int) -> list[dict]:
        finalists = []
        for index in range(count):
            architecture = json.loads(json.dumps(ARCHITECTURE))
            if kind == "behavior":
                architecture["behavior"] = [block(rng) for _ in range(3)]
            else:
                architecture["mlp"] = [
                    {"ratio": rng.randint(4, 10) / 10, "activation": "relu"},
                    {"ratio": 0.3, "activation": rng.choice(["dice", "swish"])},
                ]
            level = 0.752 + 0.001 * (count - index)
            rounds = [
                {"steps": 100 * 2**r, "auc": level + 0.001 * r + rng.gauss(0, 3e-4)}
                for r in range(3 if index == 0 else 2 if index < count // 2 else 1)
            ]
            finalists.append({"finalist": architecture, "rounds": rounds, "kept": index == 0})
        return finalists

    return {
        "version": 1,
        "behavior": [{"score": s, "auc": s, "behavior": [block(rng) for _ in range(3)]} for s in scores(300)],
        "interactions": interactions,
        "mlp": [
            {
                "score": s,
                "mlp": [
                    {"ratio": rng.randint(4, 10) / 10, "activation": "relu"},
                    {"ratio": rng.randint(1, 4) / 10, "activation": "dice"},
                ],
            }
            for s in scores(880)
        ],
        "race": {"behavior": race("behavior", 8), "mlp": race("mlp", 8)},
    }


def history(repeats: int = 2, seed: int = 0) -> list[dict]:
    rng = random.Random(seed)
    records = []
    stages = [
        "behavior.train",
        *(f"behavior.race.{i}.{length}" for i in range(4) for length in ("0.5", "full")),
        "interactions.train.c1",
        "interactions.train.c2",
        "mlp.train",
        *(f"retrain.{name}.0" for name in VARIANTS),
    ]
    for repeat in range(repeats):
        for stage in stages:
            top = VARIANTS.get(stage.split(".")[1], 0.752)
            for point in range(1, 11):
                records.append(
                    {
                        "time": "2026-01-02T03:04:05",
                        "repeat": repeat,
                        "stage": stage,
                        "step": point * 78,
                        "total": 780,
                        "loss": 0.6 - 0.01 * point + rng.gauss(0, 0.002),
                        "valid_auc": top - 0.04 * 2.0**-point + rng.gauss(0, 0.0006),
                        "valid_log_loss": 0.58 + 0.03 * 2.0**-point,
                        "seconds": point * 1.5,
                    }
                )
        records.append({"repeat": repeat, "stage": "behavior.rank", "step": 300, "best": 0.756})
    return records


def write(
    directory: Path,
    parts: tuple[str, ...] = ("config", "architecture", "metrics", "rankings", "history", "model"),
    schema: dict = SCHEMA,
    architecture: dict = ARCHITECTURE,
    **metrics_options,
) -> Path:
    """A run directory with the named parts; without ``metrics`` it is one that has not finished."""
    directory.mkdir(parents=True, exist_ok=True)

    def dump(name: str, value: object) -> None:
        (directory / name).parent.mkdir(exist_ok=True)
        (directory / name).write_text(json.dumps(value), encoding="utf-8")

    if "config" in parts:
        settings = {
            "version": 1,
            "seed": 0,
            "embedding_dim": 16,
            "learning_rate": 1e-3,
            "race_epochs": [0.5, 1.0],
        }
        dump("config.json", {"version": 1, "config": settings, "repeats": 5, "strategy": "RandomStrategy"})
    if "architecture" in parts:
        dump("architecture.json", architecture)
    if "metrics" in parts:
        dump("metrics.json", metrics(**metrics_options))
    if "rankings" in parts:
        dump("rankings.json", rankings())
    if "model" in parts:
        dump(
            "model/model.json",
            {"version": 1, "schema": schema, "architecture": architecture, "embedding_dim": 16},
        )
    if "history" in parts:
        lines = "".join(json.dumps(record) + "\n" for record in history())
        (directory / "history.jsonl").write_text(lines, encoding="utf-8")
    return directory
