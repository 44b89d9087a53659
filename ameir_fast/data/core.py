"""Which events of users with items are kept: repeats, and the k-core of the two."""

from __future__ import annotations

import numpy as np
import polars as pl


def k_core(user: np.ndarray, item: np.ndarray, k: int) -> np.ndarray:
    """bool [R]: the events left when users and items with fewer than ``k`` events are taken away, again and again
    until none is left (the k-core; once over, as some published preprocessing does it, leaves users with fewer).

    Args: ``user``, ``item`` integers [R] from 0.
    """
    left = np.arange(user.shape[0])
    while left.size:
        stays = (np.bincount(user[left])[user[left]] >= k) & (np.bincount(item[left])[item[left]] >= k)
        if stays.all():
            break
        left = left[stays]
    kept = np.zeros(user.shape[0], bool)
    kept[left] = True
    return kept


def first_of_each(user: np.ndarray, item: np.ndarray, time: np.ndarray, any_time: bool) -> np.ndarray:
    """bool [R]: the first of the events with the same user, item and time, or with ``any_time`` the earliest of those
    with the same user and item; of equal times the first in the order given.

    Events are compared by 64-bit hashes, for the sake of memory: among forty million the probability that any two
    different ones are taken for the same is 5·10^-5.
    """
    columns = {"user": user, "item": item} if any_time else {"user": user, "item": item, "time": time}
    order = np.argsort(time, kind="stable") if any_time else slice(None)
    events = pl.DataFrame({name: column[order] for name, column in columns.items()})
    kept = np.empty(user.shape[0], bool)
    kept[order] = events.hash_rows().is_first_distinct().to_numpy()
    return kept
