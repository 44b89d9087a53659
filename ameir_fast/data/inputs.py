"""Text files as they are published: which of a folder to read, how they name and write columns."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ..errors import InputError
from ..schema import read_json
from .blocks import each_once, first_line
from .columns import check_about
from .delimited import Rows, shown, shown_number

_ARCHIVES = (".zip", ".7z", ".tar", ".tgz", ".tar.gz")
_NAME = re.compile(r"(?!readme)([^.]+)(\.txt|\.tsv|\.csv)?(\.gz|\.zst)?", re.IGNORECASE)


def text_files(paths: str | Path | Sequence[str | Path], prefer: str) -> tuple[Path, ...]:
    """The files named by ``paths``, in this order.

    Of a folder: its file ``{prefer}.*`` where there is one, as in what Kaggle and Criteo publish, and otherwise every
    text file, ordered by name with numbers by value (``day_2`` before ``day_10``).

    Raises ``InputError`` for what does not exist, a folder without such files, archives, and a file given twice.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, str | Path) else paths):
        if path.is_dir():
            found += _of_folder(path, prefer)
        elif not path.exists():
            raise InputError(f"{path}: no such file or directory")
        elif path.name.lower().endswith(_ARCHIVES):
            raise InputError(f"{path}: is an archive; unpack it and name the files inside")
        else:
            found.append(path)
    if not found:
        raise InputError("no input file")
    return each_once(found)


def _of_folder(folder: Path, prefer: str) -> list[Path]:
    files = [path for path in folder.iterdir() if _NAME.fullmatch(path.name) and path.is_file()]
    if not files:
        raise InputError(f"{folder}: holds no text file (.txt, .tsv, .csv, also with .gz or .zst)")
    preferred = [path for path in files if path.name.split(".")[0].lower() == prefer]
    if len(preferred) > 1:
        raise InputError(f"{folder}: holds {' and '.join(sorted(p.name for p in preferred))}; name the one to read")
    return preferred or sorted(files, key=_natural)


def _natural(path: Path) -> list[str | int]:
    return [int(part) if part.isdigit() else part for part in re.split("([0-9]+)", path.name)]


def header(path: Path) -> tuple[str, list[str]]:
    """The separator of a file (a tab where its first line has one, otherwise a comma) and that line's cells."""
    text = first_line(path)
    separator = "\t" if "\t" in text else ","
    return separator, [cell.strip('"') for cell in text.split(separator)]


@dataclass(frozen=True)
class Form:
    """How a file writes its rows. ``header``: the names of its columns where the first line doesn't give them;
    ``names``: our names of the columns to read → the file's."""

    separator: str
    header: list[str] | None
    names: dict[str, str]


def named(path: Path, cells: Sequence[str], wanted: Sequence[str]) -> dict[str, str]:
    """Which of ``cells``, a file's header, stand for the columns ``wanted``, in whatever case: wanted name → cell."""
    found: dict[str, str] = {}
    for name in wanted:
        same = [cell for cell in cells if cell.lower() == name.lower()]
        if len(same) > 1:
            raise InputError(f"{path}: line 1 names the column {name!r} twice")
        if same:
            found[name] = same[0]
    return found


def forms_of(files: Sequence[Path], form: Callable[[Path], Form], label: str, like: str | Path | None) -> dict[Path, Form]:
    """The form of each file. Files without labels are refused unless they are prepared ``like`` others."""
    forms = {path: form(path) for path in files}
    for path, found in forms.items():
        if like is None and label not in found.names:
            raise InputError(f"{path}: has no labels; rows to learn from need them, others are prepared with --like")
        if (label in found.names) != (label in forms[files[0]].names):
            raise InputError(f"{path}: of this file and {files[0]} only one has labels")
    return forms


def options_like(like: str | Path, kind: str, given: dict) -> dict:
    """The options with which the prepared directory ``like`` was made; those ``given`` (not ``None``) must be the same.

    Raises ``InputError`` for a directory of another kind, and for other options.
    """
    path = Path(like) / "dataset.json"
    about = read_json(path)
    check_about(path, about)
    if about["kind"] != kind:
        raise InputError(f"{like}: was prepared from {about['kind']}, not from {kind}")
    made = about.get("options")
    for name, value in given.items():
        if not isinstance(made, dict):
            raise InputError(f"{path}: 'options' is missing or malformed")
        if value is not None and value != made.get(name):
            raise InputError(f"{like}: was prepared with {name} {made.get(name)}, not {value}")
    return made


def label(rows: Rows, column: str, missing: bool) -> pl.Series:
    """A column of zeros and ones, UInt8; with ``missing`` a cell may be empty."""
    found = rows.number(column, missing)
    wrong = ((found != 0) & (found != 1)).fill_null(False)
    rows.refuse(wrong, column, lambda v: f"is {shown_number(v)}, a label that is neither 0 nor 1")
    return found.cast(pl.UInt8)


def as_it_is(rows: Rows, column: str) -> pl.Series:
    """A column whose cells are categories as they stand, text."""
    return rows.frame[column]


def whole_numbers(rows: Rows, column: str) -> pl.Series:
    """A column as Int64, missing where empty. ``3.0`` is 3: what a missing value makes of integers in many tools."""
    values = rows.frame[column]
    if values.dtype.is_integer():
        return values.cast(pl.Int64)
    found = rows.number(column, missing=True)
    rows.refuse((found.floor() != found).fill_null(False), column, lambda v: f"is {shown(v)}, not a whole number")
    return values.cast(pl.Int64, strict=False).fill_null(found.cast(pl.Int64, strict=False))
