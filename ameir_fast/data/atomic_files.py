"""RecBole's atomic files: tab-separated, the header says each column's name and type (``rating:float``).

Format: RecBole's user guide, "Atomic Files".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ..errors import InputError
from .blocks import Reading, bare_name, first_numbered_line, matching
from .delimited import Rows, read_delimited, read_small
from .files import SPLITS

TYPES = ("token", "token_seq", "float", "float_seq")
#: Between the values of a sequence.
SEQUENCE = " "


@dataclass(frozen=True, eq=False)
class AtomicFile:
    """One file and the types of its columns by name, in order."""

    path: Path
    types: dict[str, str]

    @classmethod
    def open(cls, path: Path) -> AtomicFile:
        """Reads the header. Raises ``InputError`` naming the file for a column without a known type."""
        number, header = first_numbered_line(path)
        types = {}
        for cell in header.split("\t"):
            name, colon, kind = cell.rpartition(":")
            if not colon or not name or kind not in TYPES:
                raise InputError(f"{path}: line {number}: {cell!r} is not name:type with a type of {', '.join(TYPES)}")
            if name in types:
                raise InputError(f"{path}: line {number} names the column {name!r} twice")
            types[name] = kind
        return cls(path, types)

    def need(self, name: str, what: str, kinds: Sequence[str] = TYPES) -> None:
        """Raises ``InputError`` unless there is a column ``name`` of one of ``kinds``."""
        if name not in self.types:
            raise InputError(f"{self.path}: there is no column {name!r} for {what}; it has {', '.join(self.types)}")
        if self.types[name] not in kinds:
            raise InputError(f"{self.path}: column {name!r} for {what} is {self.types[name]}, not {' or '.join(kinds)}")

    def rows(self, reading: Reading | None = None) -> Iterator[Rows]:
        """All rows, columns under their names without types."""
        for rows in read_delimited([self.path], "\t", reading=reading):
            yield self._named(rows)

    def small(self) -> Rows:
        """All rows at once."""
        return self._named(read_small(self.path, "\t"))

    def _named(self, rows: Rows) -> Rows:
        return Rows(rows.path, rows.frame.rename(dict(zip(rows.frame.columns, self.types, strict=True))), rows.lines)

    def values(self, rows: Rows, names: Sequence[str]) -> pl.DataFrame:
        """Columns as they are used: tokens as text, sequences of tokens as lists, numbers as Float64 (empty: null)."""
        return pl.DataFrame({name: self._column(rows, name) for name in names})

    def _column(self, rows: Rows, name: str) -> pl.Series:
        if self.types[name] == "float":
            return rows.number(name, missing=True)
        if self.types[name] == "token":
            return rows.frame[name]
        # Blanks at the ends or doubled stand between nothing.
        element = pl.element()
        return rows.frame.select(
            pl.col(name).fill_null("").str.split(SEQUENCE).list.eval(element.filter(element != "")).alias(name)
        )[name]


def interactions(folder: Path) -> tuple[list[str] | None, list[AtomicFile]]:
    """The split that each file is for (``None``: one file for all) and the files."""
    found = matching(folder, "*.inter")
    if len(found) == 1:
        return None, [AtomicFile.open(found[0])]
    by_part = {name.split(".")[-2]: path for path in found if (name := bare_name(path)).count(".") >= 2}
    if len(found) != len(SPLITS) or set(by_part) != set(SPLITS):
        raise InputError(f"{folder}: holds {len(found)} files *.inter, neither one nor .train.inter, .valid.inter and "
                         ".test.inter")
    files = [AtomicFile.open(by_part[part]) for part in SPLITS]
    for file in files[1:]:
        if file.types != files[0].types:
            raise InputError(f"{file.path}: its columns are not those of {files[0].path}")
    return list(SPLITS), files


def optional(folder: Path, kind: str) -> AtomicFile | None:
    """The file ``*.kind`` of a folder, if there is one."""
    found = matching(folder, f"*.{kind}")
    if len(found) > 1:
        raise InputError(f"{folder}: holds {len(found)} files *.{kind}, not one")
    return AtomicFile.open(found[0]) if found else None
