"""Python literals as data: dictionaries, lists, tuples, texts, numbers, True, False and None, and nothing else.

Some data sets are lines that Python's ``repr`` wrote (``{u'username': u'Chaos Syren', u'early_access': False}``).
Nothing of such a line is compiled or evaluated here, nesting is limited, and time and memory are linear in its length.
"""

from __future__ import annotations

import re

#: Deeper nesting than this is refused.
DEEPEST = 32

# Possessive quantifiers (*+): nothing is ever tried twice, however long a text is.
_TEXT = r"""[uU]?(?:'[^'\\\n\r\0]*+(?:\\.[^'\\\n\r\0]*+)*+'|"[^"\\\n\r\0]*+(?:\\.[^"\\\n\r\0]*+)*+")"""
_NUMBER = r"-?(?:0|[1-9][0-9]*+)(?:\.[0-9]++)?+(?:[eE][+-]?[0-9]++)?+(?![\w.])"
_SCALAR = rf"{_TEXT}|{_NUMBER}|(?:True|False|None)(?!\w)"
_TOKEN = re.compile(rf"[ \t]*+(?:(?P<scalar>{_SCALAR})|(?P<mark>[][{{}}(),:])|(?P<end>\Z))")
# What most of a line consists of, in one step: a value of a sequence, and a key with its value, and what follows.
_ELEMENT = re.compile(rf"[ \t]*+({_SCALAR})[ \t]*+([],)])")
_PAIR = re.compile(rf"[ \t]*+({_TEXT})[ \t]*+:[ \t]*+({_SCALAR})[ \t]*+([,}}])")
_ESCAPE = re.compile(r"\\(?:([0-7]{1,3})|x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|(.))")
_SINGLE = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", "'": "'", '"': '"', "a": "\a", "b": "\b", "f": "\f", "v": "\v"}
_NAMES = {"True": True, "False": False, "None": None}

Literal = dict | list | tuple | str | int | float | bool | None


class LiteralError(ValueError):
    """The text is no literal of the kinds above; the message says what is wrong, and at which character, from 1."""


def parse_literal(text: str) -> Literal:
    """The value of a literal as ``repr`` writes it: what ``ast.literal_eval`` gives, for fewer texts.

    Besides ``repr``'s own forms a text may begin with ``u``, as Python 2 wrote it. Keys of dictionaries are texts,
    numbers, True, False or None. Raises ``LiteralError`` for everything else, code above all.
    """
    value, at = _value(text, 0, 0)
    token = _token(text, at)
    if token.lastgroup != "end":
        raise _unexpected(text, at)
    return value


def _token(text: str, at: int) -> re.Match:
    token = _TOKEN.match(text, at)
    if token is None:
        raise _unexpected(text, at)
    return token


def _unexpected(text: str, at: int) -> LiteralError:
    rest = text[at:].lstrip(" \t")
    if not rest:
        return LiteralError("ends too early")
    return LiteralError(f"has {rest[:20]!r} at character {len(text) - len(rest) + 1}, where no such thing may stand")


def _value(text: str, at: int, depth: int) -> tuple[Literal, int]:
    """The value that begins at ``at``, and where it ends."""
    token = _token(text, at)
    found, end = token[token.lastgroup], token.end()
    if token.lastgroup == "scalar":
        return _scalar(found), end
    if not found or found not in "[({":
        raise _unexpected(text, at)
    if depth == DEEPEST:
        raise LiteralError(f"is nested more than {DEEPEST} deep")
    if found == "{":
        return _dictionary(text, end, depth + 1)
    return _sequence(text, end, depth + 1, found)


def _scalar(found: str) -> Literal:
    if found[-1] in "'\"":
        inside = found[found.index(found[-1]) + 1 : -1]
        return _ESCAPE.sub(_unescaped, inside) if "\\" in inside else inside
    if found in _NAMES:
        return _NAMES[found]
    if "." in found or "e" in found or "E" in found:
        return float(found)
    try:
        return int(found)
    except ValueError:  # Python's own limit on the digits of a whole number
        raise LiteralError(f"has a number of {len(found)} digits") from None


def _mark(text: str, at: int) -> tuple[str, int]:
    """The next token where it is a mark, otherwise an empty text; and where it ends."""
    token = _token(text, at)
    return (token["mark"], token.end()) if token.lastgroup == "mark" else ("", at)


def _sequence(text: str, at: int, depth: int, opened: str) -> tuple[list | tuple, int]:
    closes = "]" if opened == "[" else ")"
    values: list[Literal] = []
    mark, end = _mark(text, at)
    while mark != closes:
        if element := _ELEMENT.match(text, at):
            value, mark, at, end = _scalar(element[1]), element[2], element.start(2), element.end()
        else:
            value, at = _value(text, at, depth)
            mark, end = _mark(text, at)
        values.append(value)
        if mark == ",":
            at = end
            if closes == ")" and len(values) == 1:  # a tuple of one is written (value,)
                mark, end = _mark(text, at)
        elif mark != closes or (closes == ")" and len(values) == 1):
            raise _unexpected(text, at)
    return (values if closes == "]" else tuple(values)), end


def _dictionary(text: str, at: int, depth: int) -> tuple[dict, int]:
    values: dict = {}
    mark, end = _mark(text, at)
    while mark != "}":
        if pair := _PAIR.match(text, at):
            values[_scalar(pair[1])] = _scalar(pair[2])
            mark, at, end = pair[3], pair.start(3), pair.end()
        else:
            key, colon = _value(text, at, depth)
            if isinstance(key, dict | list | tuple):
                raise _unexpected(text, at)
            mark, end = _mark(text, colon)
            if mark != ":":
                raise _unexpected(text, colon)
            values[key], at = _value(text, end, depth)
            mark, end = _mark(text, at)
        if mark == ",":
            at = end
        elif mark != "}":
            raise _unexpected(text, at)
    return values, end


def _unescaped(escape: re.Match) -> str:
    octal, two, four, eight, single = escape.groups()
    code = int(octal, 8) if octal else int(two or four or eight or "0", 16)
    if single in _SINGLE:
        return _SINGLE[single]
    if single is not None or code > 0x10FFFF or (octal and code > 0xFF):
        raise LiteralError(f"has the unknown escape {escape[0]!r}")
    return chr(code)
