"""Reading data: raw files into a prepared directory (``prepare_*``), and that as batches (``Dataset``)."""

from .alimama import prepare_alimama
from .alimama_dmr import prepare_alimama_dmr
from .amazon import prepare_amazon
from .avazu import prepare_avazu
from .criteo import prepare_criteo
from .dataset import Dataset
from .fetch import fetch_movielens
from .fuxictr import prepare_fuxictr
from .movielens import prepare_movielens
from .recbole import prepare_recbole
from .sequences import prepare_sequences
from .steam import prepare_steam
from .table import prepare_table

__all__ = [
    "Dataset",
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
    "prepare_table",
]
