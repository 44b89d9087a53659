"""Coding cells natively against plain Python; and the two ways of reading text against each other."""

from __future__ import annotations

import random
import threading
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from ameir_fast import InputError, native
from ameir_fast.data import cells, text_source
from ameir_fast.data.blocks import Block, blocks
from ameir_fast.data.inputs import Form, as_it_is, whole_numbers
from ameir_fast.data.text_source import Derived, TextSource
from tests import data_helpers as helpers

needs_native = pytest.mark.skipif(native.driver() is None, reason=native.why_not("_driver") or "")
CELL = st.text(st.characters(blacklist_categories=("Cs",), blacklist_characters="\n\t\0\r"), max_size=20)


def coded(rows: list[list[str]], wanted: list[int] | None = None, separator: str = "\t"):
    text = "".join(separator.join(row) + "\n" for row in rows).encode()
    width = len(rows[0])
    return cells.code_cells([Block(Path("x"), 1, text)], separator.encode(), width, wanted or list(range(width)))


def check(rows: list[list[str]], found, wanted: list[int]) -> None:
    for column, (got, first) in zip(wanted, found, strict=True):
        values = [row[column] or None for row in rows]
        distinct = list(dict.fromkeys(values))
        assert got.values.to_list() == distinct
        assert got.codes.tolist() == [distinct.index(v) for v in values]
        assert first.tolist() == [values.index(v) for v in distinct]
        assert got.rows().to_list() == values
        assert got.codes.dtype == (np.uint8 if len(distinct) <= 256 else np.uint16)


@needs_native
@settings(max_examples=200, deadline=None)
@given(st.integers(2, 5).flatmap(lambda width: st.lists(st.lists(CELL, min_size=width, max_size=width), min_size=1,
                                                        max_size=40)))
def test_any_cells(rows):
    check(rows, coded(rows), list(range(len(rows[0]))))


@needs_native
@pytest.mark.parametrize("length", [1, 7, 8, 9, 15, 16, 17, 64, 300])
def test_cells_that_differ_in_one_byte(length):
    """Keys of eight bytes and hashes: no two cells are taken for the same, prefixes and paddings among them."""
    rng = random.Random(length)
    base = "a" * length
    kinds = [base[:k] + other + base[k + 1:] for k in range(length) for other in "ab\x01\x7f"] + [base[:-1], base + "a"]
    rows = [[rng.choice(kinds), rng.choice(["", "x", base])] for _ in range(3000)]
    check(rows, coded(rows), [0, 1])


@needs_native
def test_more_values_than_16_bits_number():
    rows = [[f"{(i * 7919) % 70_000:x}", str(i % 3)] for i in range(140_000)]
    (got, first), (few, _) = coded(rows)
    assert (got.codes.dtype, few.codes.dtype) == (np.uint32, np.uint8)
    assert got.rows().to_list() == [row[0] for row in rows]
    assert first.tolist() == list(range(70_000))


@needs_native
def test_columns_in_any_order_and_twice():
    rows = [[str(i % 3), str(i % 7), str(i)] for i in range(100)]
    check(rows, coded(rows, [2, 0, 0]), [2, 0, 0])


@needs_native
@pytest.mark.parametrize("text", [b"a\tb\nc\n", b"a\tb\nc\td\te\n", b"a\tb\n\n", b"a\nb\tc\td\n", b"a\tb\n" * 999 + b"a\n"])
def test_lines_of_another_width(text):
    assert cells.code_cells([Block(Path("x"), 1, text)], b"\t", 2, [0, 1]) is None


@needs_native
def test_blocks_one_after_another():
    """Long and short cells of earlier blocks, which may be gone by then, are known in later ones."""
    rows = [[("long " * (i % 5)) + str(i % 900), str(i % 7)] for i in range(5000)]
    texts = ["".join("\t".join(row) + "\n" for row in rows[k:k + 700]).encode() for k in range(0, 5000, 700)]
    found = cells.code_cells([Block(Path("x"), 1, text) for text in texts], b"\t", 2, [0, 1])
    check(rows, found, [0, 1])


@needs_native
@pytest.mark.parametrize(("data", "separator", "width", "wanted"), [
    (b"a\tb", "\t", 2, [0]), (b"", "\t", 2, [0]), (b"a\n", "\n", 1, [0]), (b"a\n", "\0", 1, [0]), (b"a\n", "\t", 0, []), (b"a\n", "\t", 1, [1]),
    (b"a\n", "\t", 1, [-1])])
def test_what_cannot_be_coded(data, separator, width, wanted):
    with pytest.raises(ValueError, match="separator|newline|column"):
        native.driver().CellCoder(separator, width, wanted).add(data)


# ---- as a source -----------------------------------------------------------------------------------

def source(path: Path, header: list[str] | None = None) -> TextSource:
    names = {"a": "a", "n": "n"}
    return TextSource({path: Form("\t", header, names)}, ("n",), [
        Derived("a", "a", lambda rows: as_it_is(rows, "a")), Derived("n", "n", lambda rows: whole_numbers(rows, "n")),
        Derived("half", "n", lambda rows: whole_numbers(rows, "n") // 2)])


@pytest.fixture(params=["native", "polars"])
def way(request, monkeypatch):
    if request.param == "polars":
        monkeypatch.setattr(cells, "available", lambda: False)
    elif native.driver() is None:
        pytest.skip(native.why_not("_driver"))
    monkeypatch.setattr(text_source, "BLOCK", 200)
    return request.param


def test_both_ways_give_the_same(tmp_path, way):
    rng = random.Random(0)
    rows = [(rng.choice(["", "x", "yy"]), rng.choice([None, 1, -7, 3000])) for _ in range(2000)]
    path = tmp_path / "rows.tsv"
    lines = ["a\tn", *(f"{a}\t{'' if n is None else n}" for a, n in rows)]
    lines.insert(1000, "")  # a blank line is skipped
    path.write_text("\n".join(lines))
    found = helpers.rows_of(source(path))
    assert found["a"].to_list() == [a or None for a, _ in rows]
    assert found["n"].to_list() == [n for _, n in rows]
    assert found["half"].to_list() == [n if n is None else n // 2 for _, n in rows]
    assert found.dtypes == [pl.String, pl.Int64, pl.Int64]


@pytest.mark.parametrize(("wrong", "message"), [
    ({700: "x\tseven"}, "line 702: column 'n' is 'seven', not a number"),
    ({700: "x\tseven", 100: "x\teight"}, "line 102: .*'eight'"),
    ({700: "x\tseven", 900: "x"}, "line 702: .*'seven'"),   # the first one, whatever later lines are like
    ({700: "x", 900: "x\tseven"}, "line 702 has 1 columns"),
    ({700: "x\t1.5"}, "line 702: column 'n' is '?1.5'?, not a whole number"),
    ({700: "x\tseven", 1400: "x\0\t1"}, "line 702: .*'seven'"),
])
def test_the_first_error_of_a_column_is_named(tmp_path, way, wrong, message):
    lines = [f"x\t{i}" for i in range(1500)]
    for row, line in wrong.items():
        lines[row] = line
    path = tmp_path / "rows.tsv"
    path.write_text("\n".join(["a\tn", *lines, ""]))
    with pytest.raises(InputError, match=f"rows.tsv: {message}"):
        list(source(path).chunks())


def test_no_rows(tmp_path, way):
    path = tmp_path / "rows.tsv"
    path.write_text("a\tn\n\n\n")
    with pytest.raises(InputError, match="rows.tsv: there are no rows"):
        list(source(path).chunks())


def test_reading_that_is_given_up_leaves_no_thread(tmp_path, way):
    path = tmp_path / "rows.tsv"
    path.write_text("a\tn\n" + "x\t1\n" * 5000)
    before = set(threading.enumerate())
    chunks = source(path).chunks()
    next(chunks)
    assert set(threading.enumerate()) > before
    chunks.close()
    assert set(threading.enumerate()) <= before


@pytest.mark.parametrize("line", ["\n", "\r\n", "\n \n\n"])
def test_blank_lines_before_the_header(tmp_path, way, line):
    path = tmp_path / "rows.tsv"
    path.write_bytes(f"{line}a\tn\nx\t1\ny\tseven\n".encode())
    with pytest.raises(InputError, match=f"rows.tsv: line {3 + line.count(chr(10))}: column 'n' is 'seven'"):
        list(source(path).chunks())
    path.write_bytes(f"{line}a\tn\nx\t1\n".encode())
    assert helpers.rows_of(source(path)).rows() == [("x", 1, 0)]


def test_a_header_without_a_column(tmp_path, way):
    path = tmp_path / "rows.tsv"
    path.write_text('a\t"n\nx\t1\n')
    with pytest.raises(InputError, match="rows.tsv: its header does not name the column 'n'; it has a, \"n"):
        list(source(path).chunks())


def test_spaces_around_numbers_and_carriage_returns(tmp_path, way):
    path = tmp_path / "rows.tsv"
    path.write_bytes(b"a\tn\r\r\n x\t 5\r\ny\t-3 \r\r\n\t7\r")
    assert helpers.rows_of(source(path)).rows() == [(" x", 5, 2), ("y", -3, -2), (None, 7, 3)]


def test_many_small_files_make_few_pieces(tmp_path, monkeypatch):
    paths = [tmp_path / f"{k}.tsv" for k in range(3)]
    for k, path in enumerate(paths):
        path.write_text(f"a\tn\nx\t{k}\n")
    monkeypatch.setattr(text_source, "MANY", 2)
    one = source(paths[0])
    many = TextSource({path: Form("\t", None, {"a": "a", "n": "n"}) for path in paths}, ("n",), one._columns)
    assert all(isinstance(chunk, pl.DataFrame) for chunk in many.chunks())
    assert helpers.rows_of(many)["n"].to_list() == [0, 1, 2]


def test_packed_text_comes_in_blocks_of_bounded_size(tmp_path):
    """Much text in few bytes, and few bytes of text in each of many frames."""
    text = b"".join(b"%d\tx\n" % (i % 9) for i in range(200_000))
    packer = zstandard.ZstdCompressor()
    path = tmp_path / "rows.zst"
    for packed in (packer.compress(text), b"".join(packer.compress(text[k:k + 100]) for k in range(0, len(text), 100))):
        path.write_bytes(packed)
        found = [block.data for block in blocks([path], size=10_000)]
        assert b"".join(found) == text
        assert max(map(len, found)) < 20_100 and min(map(len, found[:-1])) > 9_900
