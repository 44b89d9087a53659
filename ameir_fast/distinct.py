"""The distinct ones of many keys, in ``_driver`` (C++, the interpreter lock released) or in NumPy."""

from __future__ import annotations

import numpy as np

from . import native


def distinct(keys: np.ndarray, missing: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Numbers keys by first appearance.

    Args:
        keys: uint64 [n], n below 2^32.
        missing: bool [n]; elements where it holds are equal to each other and to nothing else, whatever their key.

    Returns:
        ``codes`` uint32 [n]: equal keys have the same one, from 0 in order of first appearance; and ``first`` int64:
        where each code appears first.

    Raises:
        TypeError: an array of another type, length or number of dimensions, or not contiguous.
    """
    _check("keys", keys, np.uint64, None)
    if missing is not None:
        _check("missing", missing, np.bool_, keys.shape[0])
    driver = native.driver()
    return _distinct_numpy(keys, missing) if driver is None else driver.distinct(keys, missing)


def _check(name: str, values: np.ndarray, dtype: type, length: int | None) -> None:
    wanted = f"a contiguous one-dimensional {np.dtype(dtype)} array" + (f" of length {length}" if length else "")
    if not isinstance(values, np.ndarray) or values.dtype != dtype or values.ndim != 1:
        raise TypeError(f"{name} must be {wanted}")
    if not values.flags.c_contiguous or values.shape[0] >= 2**32 or length not in (None, values.shape[0]):
        raise TypeError(f"{name} must be {wanted}, shorter than 2^32")


def _distinct_numpy(keys: np.ndarray, missing: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    if missing is None or not missing.any():
        _, first, numbers = np.unique(keys, return_index=True, return_inverse=True)
    else:
        there = np.flatnonzero(~missing)
        _, first, own = np.unique(keys[there], return_index=True, return_inverse=True)
        numbers = np.full(keys.shape[0], first.shape[0])
        numbers[there] = own
        first = np.append(there[first], np.argmax(missing))
    order = np.argsort(first)
    rank = np.empty(first.shape[0], np.uint32)
    rank[order] = np.arange(first.shape[0])
    return rank[numbers], first[order].astype(np.int64)
