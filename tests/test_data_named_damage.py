"""The same damage to every text file of every form: each is one error that names the file and, where there is one, the line."""

from __future__ import annotations

import gzip
import re
from pathlib import Path

import pytest

from ameir_fast.data.blocks import LONGEST_LINE
from ameir_fast.errors import InputError

from .test_data_fuzz import CASES

FORMS = [name for name in CASES if "parquet" not in name]
DESCRIBED = (".json", ".yaml")  # files that describe the others, where a form has such
UNREAD = ("u.genre",)
LATIN = {"movielens 100k", "movielens 1m"}  # where any byte is a letter


def files_of(name: str, folder: Path) -> list[Path]:
    """The files of rows that a form writes."""
    CASES[name][0](folder)
    found = sorted(p for p in folder.rglob("*") if p.is_file() and p.name not in UNREAD)
    return [p for p in found if p.suffix not in DESCRIBED] or found


def middle(content: bytes) -> tuple[int, list[bytes]]:
    """The number of a line in the middle, and all lines."""
    lines = content.splitlines(keepends=True)
    return len(lines) // 2 + 1, lines


def long_line(content: bytes) -> tuple[bytes, str]:
    number, lines = middle(content)
    lines[number - 1] = b"7" * 10 * LONGEST_LINE + b"\n"
    return b"".join(lines), f"line {number} "


def broken_text(content: bytes) -> tuple[bytes, str]:
    number, lines = middle(content)
    lines[number - 1] = lines[number - 1][:2] + b"\xff\xfe" + lines[number - 1][2:]
    return b"".join(lines), f"line {number} "


def empty(content: bytes) -> tuple[bytes, str]:
    return b"", "empty"


def cut_off(content: bytes) -> tuple[bytes, str]:
    packed = gzip.compress(content)
    return packed[:len(packed) // 2], "damaged or cut off "


def repeated_header(content: bytes) -> tuple[bytes, str]:
    number, lines = middle(content)
    lines.insert(number - 1, lines[0])
    return b"".join(lines), f"line {number} "


#: Files whose first line names the columns.
HEADED = {"criteo csv", "avazu", "alimama", "amazon csv 2023", "amazon csv 2023 with history", "recbole", "fuxictr", "table", "movielens recbole", "movielens 20m"}


assert HEADED | LATIN <= set(FORMS)
PAIRS = [(name, damage) for name in FORMS for damage in (long_line, broken_text, empty, cut_off, repeated_header)
         if not (damage is repeated_header and name not in HEADED) and not (damage is broken_text and name in LATIN)]


@pytest.mark.parametrize("name, damage", PAIRS, ids=[f"{name}-{damage.__name__}" for name, damage in PAIRS])
def test_damage_names_file_and_line(name, damage, tmp_path):
    for number, file in enumerate(files_of(name, tmp_path / "0")):
        folder = tmp_path / f"of-{number}"
        files_of(name, folder)
        hit = folder / file.relative_to(tmp_path / "0")
        content, line = damage(hit.read_bytes())
        hit.write_bytes(content)
        out = tmp_path / "place" / "out"
        out.parent.mkdir(exist_ok=True)
        with pytest.raises(InputError) as error:
            CASES[name][1](folder, out)
        assert re.search(f"{re.escape(hit.name)}: .*{line}", str(error.value)), f"{hit.name}: {error.value}"
        assert not list(out.parent.iterdir())
