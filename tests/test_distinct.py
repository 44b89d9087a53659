"""distinct, native and in NumPy, against a dictionary; columns of every type coded and put together again."""

from __future__ import annotations

import random
from datetime import date

import numpy as np
import polars as pl
import pytest

from ameir_fast import native
from ameir_fast.data import coding
from ameir_fast.distinct import distinct

NEEDS_DRIVER = pytest.mark.skipif(native.why_not("_driver") is not None, reason=str(native.why_not("_driver")))


@pytest.fixture(params=[pytest.param("native", marks=NEEDS_DRIVER), "numpy"], autouse=True)
def engine(request, monkeypatch):
    if request.param == "numpy":
        monkeypatch.setenv("AMEIR_FAST_NATIVE", "0")
    assert (native.driver() is None) == (request.param == "numpy")
    return request.param


def by_hand(keys, missing):
    numbers: dict = {}
    codes = [numbers.setdefault(None if gone else key, len(numbers)) for key, gone in zip(keys, missing, strict=True)]
    return codes, [codes.index(code) for code in range(len(numbers))]


@pytest.mark.parametrize("count", [0, 1, 2, 17, 5000])
@pytest.mark.parametrize("kinds", [1, 3, 100, 2**63])
@pytest.mark.parametrize("gone", [0.0, 0.3, 1.0])
def test_keys_are_numbered_by_first_appearance(count, kinds, gone):
    rng = random.Random(count)
    # Multiples of a power of two would share a slot, were their bits not mixed.
    keys = [rng.randrange(kinds) * 2**40 % 2**64 for _ in range(count)]
    missing = [rng.random() < gone for _ in range(count)]
    codes, first = distinct(np.array(keys, np.uint64), np.array(missing, bool))
    assert (codes.dtype, first.dtype) == (np.uint32, np.int64)
    assert (codes.tolist(), first.tolist()) == by_hand(keys, missing)
    codes, first = distinct(np.array(keys, np.uint64))
    assert (codes.tolist(), first.tolist()) == by_hand(keys, [False] * count)


def test_extreme_keys_and_many():
    keys = np.array([0, 2**64 - 1, 2**32 - 1, 0, 2**64 - 1], np.uint64)
    assert distinct(keys)[0].tolist() == [0, 1, 2, 0, 1]
    keys = np.random.default_rng(0).permutation(np.repeat(np.arange(200_000, dtype=np.uint64), 2))
    codes, first = distinct(keys)
    assert len(first) == 200_000 and np.array_equal(keys[first][codes], keys)


@pytest.mark.parametrize(
    ("keys", "missing"),
    [(np.zeros(3, np.int64), None), (np.zeros((2, 2), np.uint64), None), (np.zeros(8, np.uint64)[::2], None),
     ([1, 2], None), (np.zeros(3, np.uint64), np.zeros(2, bool)), (np.zeros(3, np.uint64), np.zeros(3, np.uint8))],
)
def test_other_arrays_are_refused(keys, missing):
    with pytest.raises(TypeError, match="must be a contiguous one-dimensional"):
        distinct(keys, missing)


COLUMNS = {
    "text": pl.Series(["a", "", None, "a", "a longer text than twelve bytes", "é", None, "a"]),
    "integers": pl.Series([5, None, -1, 5, 2**63 - 1, -(2**63)]),
    "bytes": pl.Series([255, 0, None, 255], dtype=pl.UInt8),
    "unsigned": pl.Series([2**64 - 1, 2**63, 0, 2**64 - 1, None], dtype=pl.UInt64),
    "wide": pl.Series([2**64, 2**64 + 1, None, 2**64], dtype=pl.Int128),
    "floats": pl.Series([1.5, None, float("inf"), 1.5, -2.0]),
    "small floats": pl.Series([1.5, None, 0.25, 1.5], dtype=pl.Float32),
    "truths": pl.Series([True, None, False, True]),
    "dates": pl.Series([date(2020, 1, 1), None, date(1960, 1, 1), date(2020, 1, 1)]),
    "categories": pl.Series(["x", None, "y", "x"], dtype=pl.Categorical),
    "one value": pl.Series(["x"] * 300),
    "many": pl.Series(range(70_000)),
    "some": pl.Series([k % 300 for k in range(1000)]),
    "nothing": pl.Series([], dtype=pl.String),
    "all missing": pl.Series([None, None], dtype=pl.Int64),
    "decimals": pl.Series(["1.10", "1.20", None, "1.10"]).cast(pl.Decimal(10, 2)),
}


def check(column: pl.Series, coded: coding.Coded) -> None:
    values = coded.values.to_list()
    assert [values[c] for c in coded.codes.tolist()] == column.to_list()
    assert values == list(dict.fromkeys(column.to_list()))
    assert coded.codes.dtype == (np.uint8 if len(values) <= 256 else np.uint16 if len(values) <= 65536 else np.uint32)


@pytest.mark.parametrize("name", COLUMNS)
def test_columns_are_coded_and_put_together_again(name):
    check(COLUMNS[name], coding.code(COLUMNS[name]))


def test_lists():
    column = pl.Series([["a", None, "b"], [], None, ["b"], [None]], dtype=pl.List(pl.String))
    coded = coding.code(column)
    assert coded.lengths.tolist() == [3, 0, 0, 1, 1] and coded.codes.tolist() == [0, 1, 2, 2, 1]
    less = coded.without_missing()
    assert less.lengths.tolist() == [2, 0, 0, 1, 0] and less.codes.tolist() == [0, 2, 2]
    empty = coding.code(pl.Series([[], []], dtype=pl.List(pl.Int64))).without_missing()
    assert empty.lengths.tolist() == [0, 0] and len(empty.codes) == 0


@pytest.mark.parametrize("name", ["text", "one value"])
def test_texts_whose_hashes_collide_stay_apart(name, monkeypatch):
    monkeypatch.setattr(pl.Series, "hash", lambda self: pl.Series(np.zeros(len(self), np.uint64)))
    check(COLUMNS[name], coding.code(COLUMNS[name]))
