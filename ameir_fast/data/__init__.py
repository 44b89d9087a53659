"""Reading data: raw files into a prepared directory (``prepare_*``), and that as batches (``Dataset``)."""

from .dataset import Dataset
from .fetch import fetch_movielens
from .movielens import prepare_movielens
from .table import prepare_table

__all__ = ["Dataset", "fetch_movielens", "prepare_movielens", "prepare_table"]
