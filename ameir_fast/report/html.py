"""HTML and SVG as text, escaped by construction."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Html(str):
    """Text that is markup already. Everything else that reaches :func:`node` is escaped."""

    __slots__ = ()


def node(name: str, /, *children: object, **attributes: object) -> Html:
    """``<name attributes>children</name>``.

    Children that are not :class:`Html` are escaped; lists are flattened; None is skipped. In attribute
    names a trailing underscore is dropped (``class_``) and others become hyphens (``stroke_width``); an
    attribute that is None is left out.
    """
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(number(value), quote=True)}"'
        for key, value in attributes.items()
        if value is not None
    )
    if name in ("meta", "br", "img"):
        return Html(f"<{name}{written}>")
    return Html(f"<{name}{written}>{join(children)}</{name}>")


def join(children: Iterable[object], separator: str = "") -> Html:
    """Children one after another, those that are not markup escaped."""
    parts = []
    for child in children:
        if child is None:
            continue
        if isinstance(child, Html):
            parts.append(child)
        elif isinstance(child, (list, tuple)):
            parts.append(join(child))
        else:
            parts.append(html.escape(str(child), quote=True))
    return Html(separator.join(parts))


def number(value: object) -> str:
    """Coordinates with two decimals at most, so that a page of plots stays small."""
    if isinstance(value, float):
        return f"{value:.2f}".rstrip("0").rstrip(".")
    return str(value)


def table(
    header: Sequence[object],
    rows: Iterable[Sequence[object]],
    text_columns: Sequence[int] = (0,),
    row_classes: Sequence[str | None] = (),
    class_: str | None = None,
) -> Html:
    """A table whose columns are right-aligned numbers except ``text_columns``; an empty header is left
    out."""

    def cells(kind: str, values: Sequence[object]) -> list[Html]:
        return [
            node(kind, value, class_=None if column in text_columns else "n")
            for column, value in enumerate(values)
        ]

    body = [
        node("tr", cells("td", row), class_=row_classes[index] if index < len(row_classes) else None)
        for index, row in enumerate(rows)
    ]
    head = node("thead", node("tr", cells("th", header))) if header else None
    return node("div", node("table", head, node("tbody", body), class_=class_), class_="scroll")


def section(title: str, *children: object, note: object = None) -> Html:
    """A titled part of the page with an optional line that says how to read it."""
    return node(
        "section", node("h2", title), node("p", note, class_="note") if note is not None else None, *children
    )


def figure(title: object, *children: object) -> Html:
    """One card of a grid."""
    return node("figure", node("figcaption", title), *children)


def grid(*children: object, small: bool = False) -> Html:
    """Cards side by side where the window is wide enough: two columns, or three when they are ``small``."""
    return node("div", *children, class_="grid small" if small else "grid")
