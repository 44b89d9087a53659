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
    marked = [name for page in pages.pages(pages.ROOT) for _, name, _ in pages.BLOCK.findall(page.read_text(encoding="utf-8"))]
    assert sorted(marked) == sorted(pages.TABLES)


def test_a_changed_table_is_found_and_made_again(tmp_path, capsys):
    shutil.copytree(pages.ROOT / "docs", tmp_path / "docs")
    shutil.copy(pages.ROOT / "README.md", tmp_path)
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


@pytest.mark.parametrize("text", ["<!-- table: prepare -->\nprose <!-- table: cpu -->\n<!-- end -->",
                                  "<!-- table:prepare -->\n<!-- end -->", "<!-- table: prepare -->\n", "<!-- end -->"])
def test_markers_that_do_not_pair_are_refused(tmp_path, text):
    with pytest.raises(InputError, match="docs/x.md: a table lacks"):
        pages.with_tables(text, tmp_path, "docs/x.md")


def test_a_missing_result_is_named(tmp_path):
    with pytest.raises(InputError, match="docs/x.md: table 'prepare': .*prepare.jsonl is missing"):
        pages.with_tables("<!-- table: prepare -->\n<!-- end -->", tmp_path, "docs/x.md")


def test_an_unknown_table_is_named(tmp_path):
    with pytest.raises(InputError, match="docs/x.md: unknown table 'nonsense'; known: movielens-100k"):
        pages.with_tables("<!-- table: nonsense -->\n<!-- end -->", tmp_path, "docs/x.md")
