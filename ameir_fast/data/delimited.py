"""Delimited text (csv, tsv and their relatives) as frames of text columns, errors naming file and line."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl

from ..errors import InputError
from .blocks import BLOCK, LONGEST_LINE, Block, Reading, blocks
from .quoted import layout

_START = 1 << 16
# The default of 131,072 characters is one of the process; how long a row may be is what is said here.
csv.field_size_limit(2**31 - 1)
_BLANK = re.compile(rb"(?:\s*\n)?")  # lines
_TOO_LONG = f"begins a row of more than {LONGEST_LINE:,} bytes"


@dataclass(frozen=True)
class Rows:
    """Some rows of a file: columns of text or numbers (an empty cell is null) and the number of each one's line, or of
    what ``unit`` names.
    """

    path: Path
    frame: pl.DataFrame
    lines: range | list[int] | np.ndarray
    unit: str = "line"

    def where(self, row: int) -> str:
        return f"{self.path}: {self.unit} {self.lines[row]}"

    def refuse(self, wrong: pl.Series, column: str, what: Callable[[object], str]) -> None:
        """Raises ``InputError`` for the first row where ``wrong`` holds; ``what(value)`` says what its value is."""
        rows = wrong.fill_null(True).arg_true()
        if len(rows):
            raise InputError(f"{self.where(rows[0])}: column {column!r} {what(self.frame[column][rows[0]])}")

    def need(self, *columns: str) -> None:
        """Raises ``InputError`` where a column is missing."""
        for column in columns:
            if column not in self.frame.columns:
                raise InputError(f"{self.path}: column {column!r} is missing; it has {', '.join(self.frame.columns)}")

    def present(self, *columns: str) -> None:
        """Raises ``InputError`` for an empty cell in one of ``columns``."""
        for column in columns:
            self.refuse(self.frame[column].is_null(), column, lambda v: "is missing")

    def distinct(self, column: str) -> None:
        """Raises ``InputError`` for a value that comes a second time."""
        self.refuse(~self.frame[column].is_first_distinct(), column, lambda v: f"has {shown(v)} a second time")

    def number(self, column: str, missing: bool = False) -> pl.Series:
        """A column as finite Float64; with ``missing`` an empty cell is null, otherwise an error."""
        values = self.frame[column]
        found = _bare(values).cast(pl.Float64, strict=False)
        wrong = ~found.is_finite().fill_null(False)
        self.refuse(wrong & values.is_not_null() if missing else wrong, column,
                    lambda v: "is missing" if v is None else f"is {shown(v)}, not a number")
        return found

    def integer(self, column: str, missing: bool = False) -> pl.Series:
        """A column as Int64; with ``missing`` an empty cell is null, otherwise an error."""
        values = self.frame[column]
        found = _bare(values).cast(pl.Int64, strict=False)
        if values.dtype.is_integer() and (missing or not values.null_count()):
            return found  # read as numbers, there is nothing to look for
        wrong = found.is_null()
        self.refuse(wrong & values.is_not_null() if missing else wrong, column,
                    lambda v: "is missing" if v is None else f"is {shown(v)}, not a whole number")
        return found


def _bare(values: pl.Series) -> pl.Series:
    """Numbers as text without spaces around them, which are ignored where a whole column is read as numbers too."""
    return values.str.strip_chars(" ") if values.dtype == pl.String else values


def shown(value: object) -> str:
    """A value for an error message, cut where it is long."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def shown_number(value: object) -> str:
    """The same of a number, which may be given as text."""
    return shown(value).strip("'")


def read_delimited(paths: Sequence[Path], separator: str, columns: Sequence[str] | None = None, *,
                   quoted: bool = False, whole: Sequence[str] = (), encoding: str = "utf-8",
                   empty: bool = False, reading: Reading | None = None, size: int = BLOCK) -> Iterator[Rows]:
    """The rows of ``paths`` in pieces, never more than ``size`` bytes of text at a time. Blank lines are skipped.

    Without ``columns`` each file's first line names them, and all files must agree; ``columns`` names those of files
    without such a line. ``separator`` is one character, or two that stand for one (``::``). ``quoted``: values may
    stand in double quotes. Columns named in ``whole`` come as Int32 in pieces where each of their cells is a whole
    number (or empty), which is twice as fast as turning text into numbers later; in other pieces they are text too.
    ``encoding``: ``"utf-8"`` or ``"latin-1"``. ``empty``: there may be no row at all.

    Raises ``InputError`` naming the file (and line) for another number of columns than the first line's or
    ``columns``', a repeated column name, a header that comes again, files without any row, a row of several lines that
    is longer than ``LONGEST_LINE``, and what ``blocks`` refuses.
    """
    sep, some = separator.encode(), False
    for block, names in named_blocks(paths, separator, columns, quoted=quoted, encoding=encoding, reading=reading,
                                     size=size):
        if (rows := parse(block, sep, names, quoted, whole)).frame.height:
            some = True
            yield rows
    if not some and not empty:
        raise no_rows(paths)


def no_rows(paths: Sequence[Path]) -> InputError:
    return InputError(f"{', '.join(map(str, paths))}: there are no rows")


def named_blocks(paths: Sequence[Path], separator: str, columns: Sequence[str] | None = None, *, quoted: bool = False,
                 encoding: str = "utf-8", reading: Reading | None = None,
                 size: int = BLOCK) -> Iterator[tuple[Block, list[str]]]:
    """Blocks of lines without their header, none of them empty, and the names of their columns; otherwise like
    ``read_delimited``.
    """
    first: tuple[Path, list[str]] | None = None
    for path in paths:
        names, header = (list(columns) if columns is not None else None), None
        for block in blocks([path], quoted, size, reading, encoding):
            line, data = block.line, block.data
            if names is None:
                line, header, data = _header(block)
                if not header:
                    continue
                line, names = line + 1, _names(path, line, header, separator, quoted)
                if first is None:
                    first = path, names
                elif names != first[1]:
                    raise InputError(f"{path}: its columns {', '.join(names)} are not those of {first[0]}: "
                                     f"{', '.join(first[1])}")
            if header is not None and (data.startswith(header) or b"\n" + header in data):
                at = 0 if data.startswith(header) else data.index(b"\n" + header) + 1
                Block(path, line, data).refuse(data.count(b"\n", 0, at), "repeats the header")
            if data:
                yield Block(path, line, data), names


def read_header(path: Path, separator: str, *, quoted: bool = False) -> list[str]:
    """The names in the first line that is not blank; otherwise like ``read_delimited``."""
    for block in blocks([path], quoted, _START):
        line, header, _ = _header(block)
        if header:
            return _names(path, line, header, separator, quoted)
    raise no_rows([path])


def read_small(path: Path, separator: str, columns: Sequence[str] | None = None, **options: object) -> Rows:
    """All rows of a file that fits into memory; otherwise like ``read_delimited``."""
    pieces = list(read_delimited([path], separator, columns, **options))
    return Rows(path, pl.concat([p.frame for p in pieces]), [n for p in pieces for n in p.lines])


def _header(block: Block) -> tuple[int, bytes, bytes]:
    """The first line that is not blank, after its number and before what follows; empty where there is none."""
    blank = _BLANK.match(block.data).end()
    end = block.data.find(b"\n", blank) + 1
    return block.line + block.data.count(b"\n", 0, blank), block.data[blank:end], block.data[end:] if end else b""


def _names(path: Path, line: int, header: bytes, separator: str, quoted: bool) -> list[str]:
    text = header.decode().rstrip("\n")
    try:
        names = next(csv.reader([text], delimiter=separator)) if quoted and len(separator) == 1 else text.split(separator)
    except csv.Error as error:
        raise InputError(f"{path}: line {line} is no line of column names ({error})") from None
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{path}: line {line} names the column {name!r} twice")
    return names


def parse(block: Block, sep: bytes, names: list[str], quoted: bool, whole: Sequence[str]) -> Rows:
    """The rows of a block that ``named_blocks`` gave."""
    data, count = block.data, block.data.count(b"\n")
    lines: range | list[int] = range(block.line, block.line + count)
    if quoted and b'"' in data:
        return _parse_quoted(block, sep, names)
    # With several columns a blank line shows in the number of separators.
    blank = len(names) == 1 and (data.startswith(b"\n") or b"\n\n" in data)
    if blank or _occurrences(data, sep) != (len(names) - 1) * count:
        kept = []
        data = data.split(b"\n")[:-1]
        for index, line in enumerate(data):
            if line and line.count(sep) + 1 != len(names):
                block.refuse(index, f"has {line.count(sep) + 1} columns, not {len(names)}")
            if line:
                kept.append(index)
        lines = [block.line + index for index in kept]
        data = b"".join(data[index] + b"\n" for index in kept)
    single = sep
    if len(sep) > 1:
        single = b"\x1f"
        if single in data:
            block.refuse(data.count(b"\n", 0, data.index(single)), "holds the control character 0x1f")
        data = data.replace(sep, single)
    if not data:
        return Rows(block.path, pl.DataFrame(schema=dict.fromkeys(names, pl.String)), lines)
    schema = dict.fromkeys(names, pl.String)
    try:
        try:
            frame = _read(data, single, {name: pl.Int32 if name in whole else pl.String for name in names})
        except pl.exceptions.PolarsError:
            frame = _read(data, single, schema)
    except pl.exceptions.PolarsError:
        # Every line has so many separators on average but not each: say which.
        for index, line in enumerate(block.data.split(b"\n")[:-1]):
            if line and line.count(sep) + 1 != len(names):
                block.refuse(index, f"has {line.count(sep) + 1} columns, not {len(names)}")
        raise
    return Rows(block.path, frame, lines)


def _occurrences(data: bytes, part: bytes) -> int:
    """``data.count(part)``, faster where there are many."""
    return int(np.count_nonzero(np.frombuffer(data, np.uint8) == part[0])) if len(part) == 1 else data.count(part)


def _read(data: bytes, separator: bytes, schema: dict) -> pl.DataFrame:
    return pl.read_csv(io.BytesIO(data), has_header=False, schema=schema, separator=separator.decode(), quote_char=None)


def _parse_quoted(block: Block, sep: bytes, names: list[str]) -> Rows:
    found = layout(block.data, sep) if len(sep) == 1 else None
    if found is None:
        return _parse_anyhow(block, sep, names)
    lines, columns, lengths = found
    for at in np.flatnonzero(lengths > LONGEST_LINE)[:1]:
        block.refuse(int(lines[at]), _TOO_LONG)
    for at in np.flatnonzero(columns != len(names))[:1]:
        block.refuse(int(lines[at]), f"has {columns[at]} columns, not {len(names)}")
    frame = pl.read_csv(io.BytesIO(block.data), has_header=False, schema=dict.fromkeys(names, pl.String),
                        separator=sep.decode())
    if frame.height != len(lines):
        return _parse_anyhow(block, sep, names)
    lines += block.line
    return Rows(block.path, frame.with_columns(pl.all().replace("", None)), lines.tolist())


def _parse_anyhow(block: Block, sep: bytes, names: list[str]) -> Rows:
    """The slow way, for quotes in unusual places."""
    reader = csv.reader(io.StringIO(block.data.decode(), newline=""), delimiter=sep.decode(), strict=True)
    values: list[list[str]] = []
    lines: list[int] = []
    start = 0
    try:
        for row in reader:
            if row:
                # A single line is no longer than that already.
                if reader.line_num - start > 1 and len(sep.decode().join(row).encode()) > LONGEST_LINE:
                    block.refuse(start, _TOO_LONG)
                if len(row) != len(names):
                    block.refuse(start, f"has {len(row)} columns, not {len(names)}")
                values.append(row)
                lines.append(block.line + start)
            start = reader.line_num
    except csv.Error as error:
        block.refuse(start, f"cannot be read ({error})")
    frame = pl.DataFrame(values, schema=dict.fromkeys(names, pl.String), orient="row")
    return Rows(block.path, frame.with_columns(pl.all().replace("", None)), lines)
