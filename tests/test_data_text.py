"""Blocks of text files and delimited rows: compression, line numbers, what is refused."""

from __future__ import annotations

import csv
import gzip
import io
import random
import re
from pathlib import Path

import pytest
import zstandard

import ameir_fast as af
from ameir_fast.data import delimited
from ameir_fast.data.blocks import Reading, blocks
from ameir_fast.data.delimited import read_delimited

PACKERS = {"plain": bytes, "gz": gzip.compress, "zst": lambda d: zstandard.ZstdCompressor().compress(d),
           "two gz": lambda d: gzip.compress(d[:7]) + gzip.compress(d[7:]),
           "two zst": lambda d: zstandard.ZstdCompressor().compress(d[:7]) + zstandard.ZstdCompressor().compress(d[7:])}


def written(tmp_path, data: bytes, name: str = "file"):
    path = tmp_path / name
    path.write_bytes(data)
    return path


@pytest.mark.parametrize("pack", PACKERS.values(), ids=PACKERS)
@pytest.mark.parametrize("size", [1, 5, 64, 1 << 20])
@pytest.mark.parametrize("text", [b"one\ntwo\r\n\nlast", b"\xef\xbb\xbfa\n", "é,ü\n".encode() * 40, b"no newline", b"\n\n"])
def test_blocks_hold_all_lines(tmp_path, pack, size, text):
    path = written(tmp_path, pack(text))
    reading = Reading([path])
    found = list(blocks([path], size=size, reading=reading))
    clean = text.removeprefix(b"\xef\xbb\xbf").replace(b"\r\n", b"\n")
    assert b"".join(b.data for b in found) == clean + (b"" if clean.endswith(b"\n") else b"\n")
    line = 1
    for block in found:
        assert block.line == line and block.data.endswith(b"\n")
        line += block.data.count(b"\n")
    assert reading.done == reading.total == path.stat().st_size


@pytest.mark.parametrize(("data", "message"), [
    (b"", "the file is empty"),
    (gzip.compress(b"", mtime=0), "the file is empty"),
    (gzip.compress(b"abc\n" * 999, mtime=0)[:-9], "damaged or cut off"),
    (gzip.compress(b"abc\n" * 999, mtime=0)[:20] + b"x" * 20, "damaged or cut off"),
    (zstandard.ZstdCompressor().compress(b"abc\n" * 999)[:-2], "damaged or cut off"),
    (b"good\nbad \xff here\n", "line 2 is not UTF-8"),
    (b"good\n\nzero \0 here\n", "line 3 holds a NUL byte"),
    (b"good\n" + b"x" * (10 << 20) + b"\n", r"line 2 has more than 1,048,576 bytes"),
    (b"good\n" + b"x" * (10 << 20), r"line 2 has more than 1,048,576 bytes"),
])
@pytest.mark.parametrize("size", [1 << 12, 16 << 20])
def test_what_blocks_refuse(tmp_path, data, message, size):
    path = written(tmp_path, data)
    with pytest.raises(af.InputError, match=f"{re.escape(str(path))}: .*{message}"):
        list(blocks([path], size=size))


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(af.InputError, match="no such file"):
        list(blocks([tmp_path / "none"]))
    with pytest.raises(af.InputError, match="is a directory"):
        list(blocks([tmp_path]))


def test_quoted_values_over_blocks(tmp_path):
    rng = random.Random(0)
    rows = [["".join(rng.choice('ab,"\n é') for _ in range(rng.randrange(6))) or "x" for _ in range(3)]
            for _ in range(300)]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([["p", "q", "r"], *rows])
    path = written(tmp_path, text.getvalue().encode())
    for size in (1, 50, 1 << 20):
        pieces = list(read_delimited([path], ",", quoted=True, size=size))
        assert [list(r) for p in pieces for r in p.frame.iter_rows()] == rows
        for piece in pieces:
            for number, row in zip(piece.lines, piece.frame.iter_rows(), strict=True):
                at = text.getvalue().split("\n")[number - 1]
                assert at.startswith(row[0].split("\n")[0].replace('"', '""')) or at.startswith('"')
    path.write_bytes(b'a,b\n1,"never closed\n' + b"2,3\n" * (3 << 20))
    with pytest.raises(af.InputError, match="quote that is not closed|cannot be read"):
        list(read_delimited([path], ",", quoted=True))


@pytest.mark.parametrize("size", [1, 16, 1 << 20])
def test_rows_and_their_lines(tmp_path, size):
    path = written(tmp_path, b"u::i::t\n1::2::3\n\n4::::6\n7::8::9")
    pieces = list(read_delimited([path], "::", size=size))
    assert [r for p in pieces for r in p.frame.iter_rows()] == [("1", "2", "3"), ("4", None, "6"), ("7", "8", "9")]
    assert [n for p in pieces for n in p.lines] == [2, 4, 5]
    other = written(tmp_path, b"5\t6\n", "other")
    assert [p.frame.rows() for p in read_delimited([other, other], "\t", ["x", "y"])] == [[("5", "6")]] * 2


@pytest.mark.parametrize("size", [1, 8, 1 << 20])
@pytest.mark.parametrize(("text", "message"), [
    (b"a,b\n1,2\n3\n", "line 3 has 1 columns, not 2"),
    (b"a,b\n1,2\n3,4,5\n", "line 3 has 3 columns, not 2"),
    (b"a,b\n1\n3,4,5\n", "line [23] has [13] columns, not 2"),
    (b"a,b\n1,2\na,b\n", "line 3 repeats the header"),
    (b"a,b\na,b\n", "line 2 repeats the header"),
    (b"a,a\n1,2\n", "line 1 names the column 'a' twice"),
    (b'a,b\n1,"2\n2,3\n', "a quote that is not closed|cannot be read"),
    (b'a,b\n"1",2,3\n', "line 2 has 3 columns, not 2"),
])
def test_what_rows_refuse(tmp_path, size, text, message):
    path = written(tmp_path, text)
    with pytest.raises(af.InputError, match=f"{re.escape(str(path))}: .*({message})"):
        list(read_delimited([path], ",", quoted=True, size=size))


def test_files_with_other_columns(tmp_path):
    one, two = written(tmp_path, b"a,b\n1,2\n", "one"), written(tmp_path, b"a,c\n1,2\n", "two")
    with pytest.raises(af.InputError, match="its columns a, c are not those of .*one: a, b"):
        list(read_delimited([one, two], ","))


def test_numbers(tmp_path):
    path = written(tmp_path, b"x,y\n1,1\n2.5,7\n,\nnan,9\n")
    rows = next(read_delimited([path], ","))
    with pytest.raises(af.InputError, match="line 4: column 'x' is missing"):
        rows.number("x")
    with pytest.raises(af.InputError, match="line 5: column 'x' is 'nan', not a number"):
        rows.number("x", missing=True)
    with pytest.raises(af.InputError, match="line 3: column 'x' is '2.5', not a whole number"):
        rows.integer("x", missing=True)
    assert rows.integer("y", missing=True).to_list() == [1, 7, None, 9]


@pytest.mark.parametrize("size", [1, 1 << 20])
def test_whole_numbers_come_as_numbers_where_all_are(tmp_path, size):
    cells = ["1", "", "-7", "2147483647", "2147483648", "0.5", "x", "12"]
    path = written(tmp_path, "".join(f"{cell},{cell}\n" for cell in cells).encode())
    pieces = list(read_delimited([path], ",", ["a", "b"], whole=["a", "none"], size=size))
    found = [value for piece in pieces for value in piece.frame["a"]]
    if size > 1:
        assert found == [cell or None for cell in cells]  # one is no number: all stay text
    else:
        assert found == [1, None, -7, 2147483647, "2147483648", "0.5", "x", 12]
    assert [value for piece in pieces for value in piece.frame["b"]] == [cell or None for cell in cells]
    with pytest.raises(af.InputError, match="line 2: column 'a' is missing"):
        for piece in pieces:
            piece.integer("a")


@pytest.mark.parametrize("odd", ["", 'q"r"s'], ids=["usual", "unusual"])
def test_rows_of_many_lines_are_no_longer_than_a_line_may_be(tmp_path, odd):
    def text(bytes_more: int) -> bytes:
        cells = [f'"{"x" * 99}\n{"y" * 99_900}"'] * 10
        long = ",".join([*cells, "z" * ((1 << 20) - 10 * len(cells[0]) - 10 + bytes_more)])
        return f"{odd}{',' * 10}\n{long}\n{',' * 10}\n".encode()

    names = [f"c{k}" for k in range(11)]
    # Quotes around values count as they stand where all are in usual places.
    (rows,) = read_delimited([written(tmp_path, text(0))], ",", names, quoted=True)
    assert rows.frame.height == 3 and list(rows.lines) == [1, 2, 13]
    with pytest.raises(af.InputError, match="file: line 2 begins a row of more than 1,048,576 bytes"):
        list(read_delimited([written(tmp_path, text(30))], ",", names, quoted=True))


def test_quotes_in_usual_and_unusual_places(tmp_path):
    """Both ways of parsing quotes against Python's csv, with the line of every row."""
    rng = random.Random(8)
    usual = unusual = 0
    for _ in range(900):
        cells = ["", "a", '""', '"a"', '"a,b"', '"x\ny"', '"say ""so"""', "b c", '"é"', 'q"r', '""""'][: rng.choice([10, 11])]
        rows = [",".join(rng.choice(cells) for _ in range(3)) for _ in range(rng.randint(1, 12))]
        if rng.random() < 0.1:
            rows.insert(rng.randint(0, len(rows)), "")
        text = "".join(row + "\n" for row in rows)
        if text.count('"') % 2:  # which quote is then open is anybody's guess
            continue
        path = written(tmp_path, text.encode())
        usual, unusual = usual + ('q"r' not in text and "\n\n" not in text), unusual + ('q"r' in text)
        wanted, lines, reader, start = [], [], csv.reader(io.StringIO(text, newline=""), strict=True), 0
        for row in reader:
            if row:
                wanted.append(tuple(v or None for v in row))
                lines.append(start + 1)
            start = reader.line_num
        pieces = list(read_delimited([path], ",", ["p", "q", "r"], quoted=True,
                                     size=1 << 20 if 'q"r' in text else rng.choice([20, 1 << 20])))
        assert [r for p in pieces for r in p.frame.rows()] == wanted
        assert [n for p in pieces for n in p.lines] == lines
    assert usual > 50 and unusual > 50


def test_a_header_that_csv_cannot_read_is_named():
    with pytest.raises(af.InputError, match=r"^x\.csv: line 3 is no line of column names \("):
        delimited._names(Path("x.csv"), 3, b"a\rb,c\n", ",", True)
