"""The benchmark shapes: schema, architecture and history lengths of every suite and case."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .. import Architecture, FeatureSchema, InputError

#: Standard deviation of the embeddings in the benchmarks: products of several embeddings then reach the
#: logits, so that the comparison with the fp64 reference tests every part.
EMBEDDING_DEVIATION = 0.1
MEAN_RAGGED = 15
MAX_HISTORY = 50


@dataclass(frozen=True)
class Case:
    """One model on one kind of input."""

    suite: str
    name: str
    schema: FeatureSchema
    architecture: Architecture
    embedding_dim: int
    batch: int  # the default batch size


def _block(layer: str, activation: str = "relu") -> dict:
    return {"norm": "layer_norm", "layer": layer, "activation": activation}


def _zero() -> dict:
    return {"norm": "none", "layer": "zero", "activation": "identity"}


def _architecture(
    blocks: list[dict], interactions: list[list[int]], ratios: tuple[float, float]
) -> Architecture:
    mlp = [{"ratio": ratio, "activation": "relu"} for ratio in ratios]
    data = {"version": 1, "behavior": blocks, "interactions": interactions, "mlp": mlp, "shortcut": "se"}
    return Architecture.from_dict(data)


def _categorical(names: list[str]) -> list[dict]:
    return [{"name": name, "kind": "categorical", "vocabulary": name} for name in names]


ALIMAMA_BLOCKS = {
    "din": [_zero(), _zero(), _zero()],
    "conv": [_block("conv3"), _block("dconv5"), _block("conv1")],
    "pool": [_block("avg_pool3"), _block("max_pool3"), _block("conv3")],
    "gru": [_block("bi_gru"), _block("bi_gru"), _zero()],
    "attn": [_block("self_attn2", "swish"), _block("self_attn4", "swish"), _block("conv1", "swish")],
    "mixed": [_block("bi_gru"), _block("self_attn4"), _block("target_attn")],
}


def alimama() -> list[Case]:
    """Display advertising: two behaviour fields, twelve fields, a million embedding rows of width 4."""
    others = [f"c{index}" for index in range(9)]
    sizes = {
        "item": 500_000,
        "cate": 100_000,
        "user": 300_000,
        "c0": 11_112,
        **dict.fromkeys(others[1:], 11_111),
    }
    schema = FeatureSchema.from_dict(
        {
            "version": 1,
            "task": "ctr",
            "max_history": MAX_HISTORY,
            "vocabularies": [{"name": name, "size": size} for name, size in sizes.items()],
            "fields": _categorical(["item", "cate", "user", *others]),
            "behavior": [{"name": "item", "vocabulary": "item"}, {"name": "cate", "vocabulary": "cate"}],
            "target": ["item", "cate"],
        }
    )
    products = [[0, 1], [0, 2], [1, 2, 3], [2, 4, 5], [0, 3, 6, 7]]
    return [
        Case("alimama", name, schema, _architecture(blocks, products, (0.6, 0.3)), 4, 1024)
        for name, blocks in ALIMAMA_BLOCKS.items()
    ]


def criteo() -> list[Case]:
    """Click logs without history: 39 fields, a million embedding rows of width 16."""
    names = [f"i{index}" for index in range(13)] + [f"c{index}" for index in range(26)]
    sizes = [50] * 13 + [38_450] + [38_436] * 25
    schema = FeatureSchema.from_dict(
        {
            "version": 1,
            "task": "ctr",
            "max_history": 0,
            "vocabularies": [{"name": n, "size": s} for n, s in zip(names, sizes, strict=True)],
            "fields": _categorical(names),
            "behavior": [],
            "target": [],
        }
    )
    products = [[0, 13], [5, 20], [2, 17, 25], [13, 14, 30], [8, 19, 26, 33]]
    return [Case("criteo", "criteo", schema, _architecture([], products, (0.6, 0.3)), 16, 1024)]


def beauty() -> list[Case]:
    """Retrieval: histories of items only, the score of every item."""
    schema = FeatureSchema.from_dict(
        {
            "version": 1,
            "task": "retrieval",
            "max_history": MAX_HISTORY,
            "vocabularies": [{"name": "item", "size": 54_543}],
            "fields": [],
            "behavior": [{"name": "item", "vocabulary": "item"}],
            "target": [],
        }
    )
    blocks = [_block("self_attn2", "gelu"), _block("self_attn4", "gelu"), _block("conv1", "gelu")]
    return [Case("beauty", "beauty", schema, _architecture(blocks, [], (1.0, 0.5)), 64, 128)]


SUITES = {"alimama": alimama, "criteo": criteo, "beauty": beauty}


def cases(suites: list[str] | None = None, names: list[str] | None = None) -> list[Case]:
    """The chosen cases, all by default.

    Raises:
        InputError: an unknown suite or case, naming it and those that exist.
    """
    for suite in suites or []:
        if suite not in SUITES:
            raise InputError(f"unknown suite {suite!r}; known: {', '.join(SUITES)}")
    chosen = [case for name in suites or SUITES for case in SUITES[name]()]
    known = [case.name for case in chosen]
    for name in names or []:
        if name not in known:
            raise InputError(f"unknown case {name!r}; known: {', '.join(known)}")
    return [case for case in chosen if not names or case.name in names]


def lengths(kind: str, rows: int, max_history: int, seed: int = 0) -> np.ndarray:
    """int64 [rows]: all ``max_history`` (``full``), or geometric with mean 15, at least 1 and capped
    (``ragged``)."""
    if kind == "full":
        return np.full(rows, max_history, np.int64)
    drawn = np.random.default_rng(seed).geometric(1 / MEAN_RAGGED, rows)
    return np.minimum(drawn, max_history).astype(np.int64)
