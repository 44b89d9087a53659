"""Reading data: raw files into a prepared directory (``prepare_*``), and that as batches (``Dataset``).

Names are loaded at first use (PEP 562): preparing needs no torch, which takes seconds to import.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .alimama import prepare_alimama
    from .alimama_dmr import prepare_alimama_dmr
    from .amazon import prepare_amazon
    from .avazu import prepare_avazu
    from .criteo import prepare_criteo
    from .dataset import Dataset
    from .fetch import fetch_movielens
    from .fuxictr import prepare_fuxictr
    from .movielens import prepare_movielens
    from .planted import Interaction, SyntheticOptions
    from .recbole import prepare_recbole
    from .sequences import prepare_sequences
    from .steam import prepare_steam
    from .synthetic import prepare_synthetic
    from .table import prepare_table

__all__ = [
    "Dataset",
    "Interaction",
    "SyntheticOptions",
    "fetch_movielens",
    "prepare_alimama",
    "prepare_alimama_dmr",
    "prepare_amazon",
    "prepare_avazu",
    "prepare_criteo",
    "prepare_fuxictr",
    "prepare_movielens",
    "prepare_recbole",
    "prepare_sequences",
    "prepare_steam",
    "prepare_synthetic",
    "prepare_table",
]
#: Where names lie that are not ``prepare_`` and their module's name.
_ELSEWHERE = {
    "Dataset": ".dataset",
    "Interaction": ".planted",
    "SyntheticOptions": ".planted",
    "fetch_movielens": ".fetch",
}


def __getattr__(name: str):
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = _ELSEWHERE.get(name, f".{name.removeprefix('prepare_')}")
    value = getattr(importlib.import_module(module, __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
