"""parse_literal: what it reads, and that it reads nothing else."""

from __future__ import annotations

import ast
import time

import pytest

from ameir_fast.data.literal import DEEPEST, LiteralError, parse_literal

REVIEW = ("{u'username': u'Chaos Syren', u'hours': 0.1, u'products': 41, u'product_id': u'725280', u'page_order': 0, "
          "u'date': u'2017-12-17', u'text': u'It\\'s \\u00e9.\\nNo \\\\ \"more\"', u'early_access': False, u'page': 1}")


@pytest.mark.parametrize("text", [
    REVIEW, "()", "(1,)", "(1, -2)", "[]", "{}", "[[], {}, ()]", "{1: 2, None: [True], 'a': {'b': (1.5, -1e-07)}}",
    "''", '""', "u'x'", 'U"x"', "'\\x41\\101\\0\\u20ac\\U0001f600\\a\\b\\f\\v\\r\\t'", '"it\'s"', "'a\"b'", "'é,[}'",
    "-0", "0.5", "1e5", "1E+30", "-12.25e-3", "123456789012345678901234567890", " [ 1 ,\t2 ] ", "True", "None",
    "'\ud7ff\U0010ffff'", "{'a': 1, 'a': 2}",
])
def test_what_is_read(text):
    found = parse_literal(text)
    assert found == ast.literal_eval(text.strip()) and type(found) is type(ast.literal_eval(text.strip()))


@pytest.mark.parametrize("text", [
    "", " ", "a", "1+2", "-x", "- 1", "+1", "01", "1_0", "0x1", "1j", "1.", ".5", "1..2", "1.5.5", "inf", "1L",
    "(1)", "[1,]", "(1, 2,)", "{1, 2}", "{1}", "{'a': 1,}", "{[]: 1}", "{(1,): 2}", "{'a'}", "{'a' 1}", "[1 2]", "[,]",
    "'a' 'b'", "b'a'", "r'a'", "f'{1}'", "f'a'", "ur'a'", "'''a'''", "'a", '"a', "'a\n'", "'a\\\n'", "'\\q'", "'\\x4'",
    "'\\400'", "'\\U00110000'", "'\\N{DASH}'", "'a\0b'", "True.x", "Trues", "true", "print", "__import__('os')",
    "[x for x in ()]", "lambda: 0", "(", "[1", "{'a':", "[1)", "1 #", "...", "1" * 5000, "[1] [2]", "'a'.upper()",
    "{'a': open('x')}", "\x0c1", "[1]\n",
])
def test_what_is_refused(text):
    with pytest.raises(LiteralError) as refused:
        parse_literal(text)
    assert len(str(refused.value)) < 120


def test_depth():
    assert parse_literal("[" * DEEPEST + "]" * DEEPEST)
    for opened in ("[", "(", "{'a':", "{'a': ["):
        with pytest.raises(LiteralError, match="nested more than"):
            parse_literal(opened * (DEEPEST + 1))


def test_a_place_is_said():
    with pytest.raises(LiteralError, match="has 'oops' at character 8"):
        parse_literal("['a',  oops")


@pytest.mark.parametrize("piece", ["\\'", "\\\\", "x", '"', "[", "0,", "'", "'a',", "{'a':", "-", "9", "u'", "(1,", " "])
def test_time_is_linear_in_the_length(piece):
    """A million characters of anything, in every place, within a second or two even on a slow machine."""
    text = piece * (1_000_000 // len(piece))
    begin = time.perf_counter()
    for before, after in (("", ""), ("{'a': '", ""), ("{'a': '", "'}"), ("[", "]"), ("{'a': [", "x")):
        try:
            parse_literal(before + text + after)
        except LiteralError:
            pass
    assert time.perf_counter() - begin < 10
