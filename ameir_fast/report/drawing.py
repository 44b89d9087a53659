"""The found architecture as one SVG: history lane, field lane, and the MLP where they meet.

Interactions are drawn as an incidence matrix (a column an interaction, a dot for each of its fields), which
stays readable for dozens of fields where edges between boxes would not.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..space.choices import width as units_of_ratio
from .html import Html, node

MOST_FIELDS = 18
ROW = 19


@dataclass(frozen=True)
class Widths:
    """Sizes of the parts of h_0, for the labels and the proportions of the drawing."""

    history: int
    fields: int
    interactions: int

    @property
    def total(self) -> int:
        """K0."""
        return self.history + self.fields + self.interactions


def widths(architecture: dict, schema: dict, embedding_dim: int) -> Widths:
    """Widths of h_a, e_b and p_b: 3·D with a target and 2·D without (0 without behaviour), N·K, m·K."""
    parts = 3 if schema["target"] else 2
    return Widths(
        history=parts * len(schema["behavior"]) * embedding_dim,
        fields=len(schema["fields"]) * embedding_dim,
        interactions=len(architecture["interactions"]) * embedding_dim,
    )


def draw(architecture: dict, schema: dict, embedding_dim: int | None) -> Html:
    """The drawing of ``architecture`` (JSON form) over ``schema`` (JSON form); widths are shown where K is
    known."""
    behavior = architecture.get("behavior") or []
    has_history = bool(schema["behavior"])
    shown, hidden = _shown_fields(architecture, schema)
    lane = 34 + max(2, len(shown) + (1 if hidden else 0)) * ROW + 56
    sizes = widths(architecture, schema, embedding_dim) if embedding_dim else None

    y_fields = 214 if has_history else 16
    bottom = y_fields + lane if schema["fields"] else 200
    # Where both lanes end; the bar of h_0 starts behind it.
    x_meet = max(
        700 if has_history else 420,
        60 + 150 + 44 + 40 * len(architecture.get("interactions") or []) + 90,
        190 + 146 * len(behavior) + 150 if has_history else 0,
    )
    shapes: list[object] = []
    ports: list[tuple[str, float]] = []
    if has_history:
        shapes += _history_lane(behavior, schema, x_meet)
        ports.append(("h_a", 101.0))
    if schema["fields"]:
        shapes += _field_lane(architecture, schema, shown, hidden, y_fields, x_meet)
        ports.append(("e_b", y_fields + 34 + ROW * 0.5))
        if architecture.get("interactions"):
            ports.append(("p_b", y_fields + 34 + ROW * (max(2, len(shown)) - 0.5)))
    tail, width = _aggregation(architecture, schema, sizes, ports, x_meet, bottom)
    shapes += tail
    height = bottom + 16
    arrow = node(
        "defs",
        node(
            "marker",
            node("path", d="M0 0L8 4L0 8z", class_="arrow-head"),
            id="arrow",
            viewBox="0 0 8 8",
            refX="7",
            refY="4",
            markerWidth="7",
            markerHeight="7",
            orient="auto-start-reverse",
        ),
    )
    return node(
        "div",
        node(
            "svg",
            arrow,
            shapes,
            viewBox=f"0 0 {width:g} {height:g}",
            style=f"min-width:{min(width, 900):g}px",
            role="img",
            aria_label="The found architecture",
            class_="chart architecture",
        ),
        class_="scroll",
    )


def _shown_fields(architecture: dict, schema: dict) -> tuple[list[int], int]:
    """Positions of the fields to draw, and how many are left out: with many fields, those that interact."""
    count = len(schema["fields"])
    if count <= MOST_FIELDS:
        return list(range(count)), 0
    used = sorted({i for fields in architecture.get("interactions") or [] for i in fields})
    shown = used or list(range(4))
    return shown, count - len(shown)


def _arrow(x1: float, y1: float, x2: float, y2: float, dashed: bool = False) -> Html:
    """A right-angled connector from left to right, straight where both ends are level."""
    if abs(y1 - y2) < 0.5:
        path = f"M{x1:g} {y1:g}H{x2:g}"
    else:
        middle = (x1 + x2) / 2
        path = f"M{x1:g} {y1:g}H{middle:g}V{y2:g}H{x2:g}"
    return node("path", d=path, class_="edge dashed" if dashed else "edge", marker_end="url(#arrow)")


def _box(
    x: float, y: float, width: float, height: float, lines: list[tuple[str, str]], kind: str = "box"
) -> list[Html]:
    """A rounded box with centred lines of (text, class)."""
    parts = [node("rect", x=x, y=y, width=width, height=height, rx=7, class_=kind)]
    start = y + height / 2 - (len(lines) - 1) * 8 + 4
    for index, (text, style) in enumerate(lines):
        parts.append(node("text", text, x=x + width / 2, y=start + 16 * index, class_=f"{style} mid"))
    return parts


def _history_lane(behavior: list[dict], schema: dict, x_meet: float) -> list[Html]:
    names = " · ".join(field["name"] for field in schema["behavior"])
    shapes: list[Html] = [node("text", "BEHAVIOUR", x=16, y=22, class_="lane")]
    y, height, middle = 62, 78, 101
    shapes += _box(
        16,
        y,
        140,
        height,
        [("history", "strong"), (names, "small"), (f"newest ≤ {schema['max_history']}", "small")],
    )
    x = 156.0
    for index, block in enumerate(behavior):
        left = x + 26
        zero = block["layer"] == "zero"
        shapes.append(_arrow(x, middle, left, middle))
        lines = (
            [("zero", "strong"), ("passes through", "small")]
            if zero
            else [(block["norm"], "small"), (block["layer"], "strong"), (block["activation"], "small")]
        )
        shapes += _box(left, y, 112, height, lines, "box dashed" if zero else "box found")
        shapes.append(node("text", f"block {index}", x=left + 4, y=y + height + 14, class_="small"))
        if not zero:
            shapes.append(
                node(
                    "path",
                    node("title", "residual connection"),
                    d=f"M{left - 10:g} {middle}V{y - 14}H{left + 118:g}V{middle - 4}",
                    class_="edge residual",
                )
            )
            shapes.append(node("circle", cx=left + 118, cy=middle, r=3, class_="joint"))
        x = left + 112
    pools = [("sum", "strong"), ("last element", "strong")]
    if schema["target"]:
        pools.append(("target attention", "strong"))
    left = x_meet - 162
    shapes.append(_arrow(x, middle, left, middle))
    shapes += _box(left, y, 130, height, pools)
    targets = ", ".join(schema["target"])
    said = f"pooling for {targets}" if targets and len(targets) <= 14 else "pooling"
    tip = node("title", f"target: {targets}") if targets else None
    shapes.append(node("text", tip, said, x=left + 4, y=y + height + 14, class_="small"))
    return shapes


def _field_lane(
    architecture: dict, schema: dict, shown: list[int], hidden: int, y0: float, x_meet: float
) -> list[Html]:
    interactions = architecture.get("interactions") or []
    shapes: list[Html] = [node("text", "FIELDS", x=16, y=y0 + 14, class_="lane")]
    if interactions:
        shapes.append(node("text", "INTERACTIONS", x=238, y=y0 + 14, class_="lane"))
    top = y0 + 34
    x_first = 256
    x_last = x_first + 40 * max(0, len(interactions) - 1)
    targets = set(schema["target"])
    row_of = {}
    for row, position in enumerate(shown):
        field = schema["fields"][position]
        y = top + ROW * row
        row_of[position] = y + ROW / 2
        if interactions and row % 2 == 0:
            shapes.append(node("rect", x=222, y=y, width=x_last - 222 + 34, height=ROW, class_="stripe"))
        shapes.append(node("text", field["name"], x=204, y=y + ROW / 2 + 4, class_="field end"))
        mark = "target" if field["name"] in targets else "bag" if field["kind"] == "multi_categorical" else ""
        if mark:
            shapes.append(node("text", mark, x=16, y=y + ROW / 2 + 4, class_="small"))
    end = top + ROW * len(shown)
    if hidden:
        shapes.append(
            node("text", f"and {hidden} more fields", x=204, y=end + ROW / 2 + 4, class_="small end")
        )
    for column, fields in enumerate(interactions):
        x = x_first + 40 * column
        names = [schema["fields"][i]["name"] for i in fields if i < len(schema["fields"])]
        ys = sorted(row_of[i] for i in fields if i in row_of)
        dots = [
            node("circle", cx=x, cy=y, r=3, class_="dot-off") for i, y in row_of.items() if i not in fields
        ]
        link = [node("path", d=f"M{x} {ys[0]:g}V{ys[-1]:g}", class_="link")] if ys else []
        on = [node("circle", cx=x, cy=y, r=5.5, class_="dot-on") for y in ys]
        shapes.append(node("g", node("title", " × ".join(names)), dots, link, on))
        shapes.append(node("text", f"p{column}", x=x, y=end + 22, class_="small mid"))
        shapes.append(node("text", len(fields), x=x, y=end + 37, class_="small mid"))
    if interactions:
        shapes.append(node("text", "order", x=204, y=end + 37, class_="small end"))
    return shapes


def _aggregation(
    architecture: dict,
    schema: dict,
    sizes: Widths | None,
    ports: list[tuple[str, float]],
    x_meet: float,
    bottom: float,
) -> tuple[list[Html], float]:
    """h_0, the MLP, the squeeze-and-excitation shortcut and the head; returns the shapes and the drawing's
    width."""
    mlp = architecture.get("mlp") or []
    se = architecture.get("shortcut", "se") == "se" and bool(schema["fields"])
    top, base = 44.0, bottom - 8
    tall = base - top - (96 if se else 0)
    shapes: list[Html] = [node("text", "AGGREGATION", x=x_meet + 24, y=22, class_="lane")]
    x0 = x_meet + 24
    parts = {"h_a": sizes.history, "e_b": sizes.fields, "p_b": sizes.interactions} if sizes else {}
    amounts = [max(parts.get(name, 1), 0) for name, _ in ports] or [1]
    # A part never gets thinner than its label.
    least = 24.0
    free = max(0.0, tall - least * len(ports))
    y = top
    centre = {}
    for (name, y_port), amount in zip(ports, amounts, strict=True):
        height = least + free * amount / max(1, sum(amounts))
        shapes.append(node("rect", x=x0, y=y, width=34, height=height, rx=4, class_=f"part {name}"))
        label = {"h_a": "hₐ", "e_b": "e", "p_b": "p"}[name]
        shapes.append(
            node(
                "text",
                node("title", f"{name}: {parts[name]} units" if name in parts else name),
                label,
                x=x0 + 17,
                y=y + height / 2 + 4,
                class_="part-name mid",
            )
        )
        centre[name] = y + height / 2
        x_from = x_meet - 32 if name == "h_a" else _lane_end(architecture, name)
        # The three connectors turn at different x, so that none runs over another.
        turn = x0 - {"h_a": 16, "e_b": 26, "p_b": 18}[name]
        aim = min(max(y_port, y + 10), y + height - 10)
        path = f"M{x_from:g} {y_port:g}H{turn:g}V{aim:g}H{x0 - 2:g}"
        shapes.append(node("path", d=path, class_="edge", marker_end="url(#arrow)"))
        y += height
    if sizes:
        shapes.append(node("text", f"K₀ = {sizes.total}", x=x0 + 17, y=y + 16, class_="small mid"))
    middle = top + tall / 2
    x = x0 + 34
    k0 = sizes.total if sizes else None
    for index, layer in enumerate(mlp):
        ratio = layer.get("ratio")
        units = layer.get("width") or (units_of_ratio(ratio, k0) if k0 else None)
        share = (units / k0 if units and k0 else ratio) or 0.5
        height = max(26.0, min(1.0, share) * tall)
        left = x + 56
        shapes.append(_arrow(x + 3, middle, left - 2, middle))
        shapes.append(
            node(
                "rect",
                node("title", f"layer {index}: {units or '?'} units, {layer['activation']}"),
                x=left,
                y=middle - height / 2,
                width=30,
                height=height,
                rx=4,
                class_="box found",
            )
        )
        below = middle + height / 2 + 15
        said = f"{units} units" if units else "layer"
        shapes.append(node("text", said, x=left + 15, y=below, class_="small mid"))
        if ratio is not None:
            shapes.append(node("text", f"ratio {ratio:g}", x=left + 15, y=below + 13, class_="tiny mid"))
        shapes.append(
            node("text", layer["activation"], x=left + 15, y=middle - height / 2 - 7, class_="strong mid")
        )
        x = left + 30
    head = x + 62
    shapes.append(_arrow(x + 3, middle, head - 20, middle))
    retrieval = schema["task"] == "retrieval"
    shapes.append(node("circle", cx=head, cy=middle, r=18, class_="head"))
    shapes.append(node("text", "W h" if retrieval else "w·h", x=head, y=middle + 4, class_="part-name mid"))
    shapes.append(_arrow(head + 18, middle, head + 52, middle))
    shapes.append(
        node("text", "item scores" if retrieval else "logit", x=head + 57, y=middle + 4, class_="strong")
    )
    if se:
        y_se = base - 56
        left = x0 + 90
        shapes += _box(
            left, y_se, 150, 44, [("squeeze-excite", "strong"), ("shortcut over e and p", "small")]
        )
        shapes.append(_arrow(x0 + 34, min(centre.get("p_b", centre["e_b"]), y - 12), left - 2, y_se + 22))
        path = f"M{left + 150:g} {y_se + 22:g}H{head:g}V{middle + 20:g}"
        shapes.append(node("path", d=path, class_="edge", marker_end="url(#arrow)"))
    return shapes, head + 57 + (84 if retrieval else 44)


def _lane_end(architecture: dict, part: str) -> float:
    """Where the connector of e or p leaves the field lane."""
    count = len(architecture.get("interactions") or [])
    return 256 + 40 * (count - 1) + 34 if count else 212
