"""parse_literal against Python's own reading, on generated values and texts."""

from __future__ import annotations

import ast
import warnings

import pytest

from ameir_fast.data.literal import LiteralError, parse_literal

hypothesis = pytest.importorskip("hypothesis")
given, settings, st = hypothesis.given, hypothesis.settings, hypothesis.strategies

SETTINGS = settings(max_examples=300, deadline=None)
scalars = (st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
           | st.text(st.characters(exclude_categories=())))
keys = st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=()))
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.lists(inner, max_size=4).map(tuple)
    | st.dictionaries(keys, inner, max_size=4),
    max_leaves=20,
)


@SETTINGS
@given(values)
def test_what_repr_writes_is_read(value):
    found = parse_literal(repr(value))
    assert found == value and repr(found) == repr(value)


def python_2(value) -> str:
    """As Python 2 wrote it: texts with a u, and all that is not ASCII escaped."""
    if isinstance(value, str):
        inside = "".join(f"\\u{ord(c):04x}" if 255 < ord(c) < 65536 else f"\\U{ord(c):08x}" if ord(c) > 65535
                         else f"\\x{ord(c):02x}" if not 32 <= ord(c) < 127 else "\\" + c if c in "'\\" else c
                         for c in value)
        return f"u'{inside}'"
    if isinstance(value, list):
        return "[" + ", ".join(map(python_2, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(python_2, value)) + (",)" if len(value) == 1 else ")")
    if isinstance(value, dict):
        return "{" + ", ".join(f"{python_2(k)}: {python_2(v)}" for k, v in value.items()) + "}"
    return repr(value)


@SETTINGS
@given(values)
def test_what_python_2_wrote_is_read(value):
    assert repr(parse_literal(python_2(value))) == repr(value)


PIECES = ["'", '"', "\\", "u", "[", "]", "(", ")", "{", "}", ",", ":", " ", "\t", "1", "0", "-", ".", "e", "_", "x",
          "True", "None", "'a'", "1.5", "\n", "\r", "\0", "é", "#", "+", "\\x41", "\\u0041", "\\101", "\f", "j"]


@settings(max_examples=2000, deadline=None)
@given(st.lists(st.sampled_from(PIECES), max_size=12).map("".join) | st.text(max_size=12)
       | values.map(repr).flatmap(lambda text: st.tuples(
           st.just(text), st.integers(0, len(text)), st.sampled_from(["", *PIECES])).map(
               lambda t: t[0][:t[1]] + t[2] + t[0][t[1] + 1:])))
def test_nothing_is_read_that_python_reads_otherwise(text):
    try:
        found = parse_literal(text)
    except LiteralError:
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        assert repr(found) == repr(ast.literal_eval(text.strip(" \t")))
