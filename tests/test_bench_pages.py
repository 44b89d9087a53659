"""The tables of README and docs are those of the stored rows."""

from __future__ import annotations

import re
import shutil

import pytest

from ameir_fast.bench import pages
from ameir_fast.errors import InputError

pytestmark = pytest.mark.skipif(not (pages.ROOT / "README.md").exists(), reason="the pages lie in the checkout, not in the package")


def test_the_pages_are_made_from_the_stored_rows(capsys):
    assert pages.main(["--check"]) == 0
    assert capsys.readouterr().out == "differ from the stored rows: none\n"


def test_every_table_stands_on_a_page():
    marked = [name for page in pages.PAGES for _, name, _ in pages.BLOCK.findall((pages.ROOT / page).read_text(encoding="utf-8"))]
    assert sorted(marked) == sorted(pages.TABLES)


def test_a_changed_table_is_found_and_made_again(tmp_path, capsys):
    for page in pages.PAGES:
        (tmp_path / page).parent.mkdir(exist_ok=True)
        shutil.copy(pages.ROOT / page, tmp_path / page)
    shutil.copytree(pages.ROOT / "bench" / "results", tmp_path / "bench" / "results")
    page = tmp_path / "docs" / "data.md"
    right = page.read_text(encoding="utf-8")
    wrong = re.sub(r"\d+ rows/s", "999 rows/s", right)
    assert wrong != right
    page.write_text(wrong, encoding="utf-8")
    assert pages.main(["--check", "--root", str(tmp_path)]) == 1
    assert page.read_text(encoding="utf-8") == wrong
    assert pages.main(["--root", str(tmp_path)]) == 0
    assert "docs/data.md" in capsys.readouterr().out
    table = pages.BLOCK.search(right)[0]
    assert table in page.read_text(encoding="utf-8") and pages.main(["--check", "--root", str(tmp_path)]) == 0


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(InputError, match="docs/x.md: unknown table 'nonsense'; known: movielens-100k"):
        pages.with_tables("<!-- table: nonsense -->\n<!-- end -->", tmp_path, "docs/x.md")
