"""Which events of users with items are kept: repeats, and the k-core of the two."""

from __future__ import annotations

import numpy as np


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
    """
    order = np.lexsort((time, item, user))
    columns = (user, item) if any_time else (user, item, time)
    new = np.ones(order.shape[0], bool)
    new[1:] = np.any([column[order[1:]] != column[order[:-1]] for column in columns], axis=0)
    kept = np.zeros(order.shape[0], bool)
    kept[order[new]] = True
    return kept
