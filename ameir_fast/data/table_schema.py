"""The schema JSON of ``prepare table`` (format: docs/data.md) as a :class:`TablePlan`."""

from __future__ import annotations

from pathlib import Path

from ..errors import InputError
from ..schema import read_json
from .plan import FieldPlan, HistoryPlan, SplitPlan, TablePlan, VocabularyPlan, split_plan

VERSION = 1


def load_plan(path: str | Path) -> tuple[TablePlan, str | None]:
    """The plan, and the separator of text files where the schema names one.

    Raises ``InputError`` naming the file and the part that is missing, unknown or malformed.
    """
    data = read_json(path)
    try:
        return _plan(data)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None


class _Object:
    """A JSON object whose keys are taken one by one; ``done`` refuses what is left."""

    def __init__(self, what: str, data: object):
        if not isinstance(data, dict):
            raise InputError(f"{what} is not a JSON object")
        self.what, self.data = what, dict(data)

    def take(self, key: str, kind: type, default: object = ...):
        if key not in self.data:
            if default is ...:
                raise InputError(f"{self.what}: {key!r} is missing")
            return default
        value = self.data.pop(key)
        if (
            not isinstance(value, kind)
            or (kind is int and isinstance(value, bool))
            or (kind is str and not value)
        ):
            raise InputError(f"{self.what}: {key!r} is {value!r}, not {_KINDS[kind]}")
        return value

    def done(self) -> None:
        for key in self.data:
            raise InputError(f"{self.what}: unknown key {key!r}")


_KINDS = {str: "a text", int: "an integer", bool: "true or false", list: "a list", dict: "an object"}


def _plan(data: object) -> tuple[TablePlan, str | None]:
    top = _Object("schema", data)
    version = top.take("version", int)
    if version != VERSION:
        raise InputError(f"version {version} of a table schema is not supported (this is version {VERSION})")
    item = top.take("item", dict, None)
    item = None if item is None else _Object("item", item)
    item_column = None if item is None else item.take("column", str)
    item_vocabulary = None if item is None else item.take("vocabulary", str, item_column)
    history = top.take("history", dict, None)
    history = None if history is None else _Object("history", history)
    task = top.take("task", str, "ctr")
    separator = top.take("separator", str, None)
    if separator is not None and len(separator.encode()) != 1:
        raise InputError(f"schema: separator {separator!r} is not one ASCII character")
    plan = TablePlan(
        task=task,
        label=top.take("label", str, None),
        user=top.take("user", str, None),
        time=top.take("time", str, None),
        item=item_column,
        item_vocabulary=item_vocabulary,
        fields=tuple(map(_field, top.take("fields", list, []))),
        history=() if history is None else tuple(map(_history, history.take("fields", list))),
        max_history=0 if history is None else history.take("max_history", int, 50),
        # A row without history tells a retrieval model without fields nothing.
        min_history=0
        if history is None
        else history.take("min_history", int, 1 if task == "retrieval" else 0),
        target=_names("target", top.take("target", list, [])),
        vocabularies={name: _vocabulary(name, v) for name, v in top.take("vocabularies", dict, {}).items()},
        split=_split(top.take("split", dict, {})),
    )
    for part in (top, item, history):
        if part is not None:
            part.done()
    return plan, separator


def _names(what: str, data: list) -> tuple[str, ...]:
    if not all(isinstance(name, str) for name in data):
        raise InputError(f"schema: {what!r} is {data!r}, not a list of names")
    return tuple(data)


def _field(data: object) -> FieldPlan:
    entry = _Object("a field", data)
    name = entry.take("name", str)
    entry.what = f"field {name!r}"
    plan = FieldPlan(
        name,
        entry.take("column", str, name),
        entry.take("vocabulary", str, name),
        entry.take("kind", str, "categorical"),
        entry.take("separator", str, None),
        entry.take("default", bool, True),
    )
    entry.done()
    return plan


def _history(data: object) -> HistoryPlan:
    entry = _Object("a history field", data)
    name = entry.take("name", str)
    entry.what = f"history field {name!r}"
    ready = "list" in entry.data
    plan = HistoryPlan(
        name,
        entry.take("list" if ready else "column", str),
        entry.take("vocabulary", str, name),
        ready,
        entry.take("separator", str, None) if ready else None,
    )
    entry.done()
    return plan


def _vocabulary(name: str, data: object) -> VocabularyPlan:
    entry = _Object(f"vocabulary {name!r}", data)
    values = entry.take("values", list, None)
    if values is not None:
        if not values or not all(isinstance(v, int | str) and not isinstance(v, bool) for v in values):
            raise InputError(f'{entry.what}: "values" are not integers and texts')
        if len({str(v) for v in values}) != len(values):
            raise InputError(f'{entry.what}: "values" has a value twice')
    plan = VocabularyPlan(
        entry.take("min_count", int, 1),
        None if values is None else tuple(values),
        entry.take("size", int, None),
        entry.take("on_unknown", str, "raise"),
        bins=entry.take("bins", int, None),
    )
    if plan.min_count < 1 or (plan.size is not None and not 1 <= plan.size < 2**31):
        raise InputError(f'{entry.what}: "min_count" and "size" must be at least 1, and ids fit into 32 bits')
    if plan.on_unknown not in ("raise", "map"):
        raise InputError(f"{entry.what}: \"on_unknown\" is {plan.on_unknown!r}, neither 'raise' nor 'map'")
    entry.done()
    return plan


def _split(data: object) -> SplitPlan:
    entry = _Object("split", data)
    parts = entry.take("parts", list, None)
    if parts is not None and not all(isinstance(p, int | float) and not isinstance(p, bool) for p in parts):
        raise InputError(f'split: "parts" is {parts!r}, not three numbers')
    column = entry.take("column", str, None)
    by = entry.take("by", str, "column" if column else "time")
    plan = split_plan(by, parts, entry.take("seed", int, None), column=column)
    entry.done()
    return plan
