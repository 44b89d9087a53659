"""The few plots of the report, as SVG without any script. Values are shown by native tooltips
(``<title>``)."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .html import Html, node


@dataclass(frozen=True)
class Series:
    """One line of a chart: ``points`` are (x, y), ``color`` is a slot of the page's palette (0 = muted)."""

    name: str
    points: tuple[tuple[float, float], ...]
    color: int = 1
    thin: bool = False
    label: str = ""


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About ``count`` round numbers that lie inside [low, high]."""
    if not high > low:
        return [low]
    raw = (high - low) / max(1, count)
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(power * factor for factor in (1, 2, 2.5, 5, 10) if power * factor >= raw * 0.999)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [index * step for index in range(first, last + 1)]


def short(value: float) -> str:
    """An axis number: ``0.752``, ``1.5k``, ``12``."""
    if abs(value) >= 1e6:
        return f"{value / 1e6:g}M"
    if abs(value) >= 1000:
        return f"{value / 1000:g}k"
    return f"{value:.6g}"


def padded(values: Sequence[float], share: float = 0.06) -> tuple[float, float]:
    """The range of ``values`` with a margin, never empty."""
    low, high = min(values), max(values)
    margin = (high - low) * share or abs(high) * 0.01 or 1.0
    return low - margin, high + margin


def scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    """The linear map of [low, high] on [start, end]."""
    return lambda value: start + (value - low) / ((high - low) or 1.0) * (end - start)


def _svg(width: float, height: float, *children: object, label: str) -> Html:
    return node(
        "svg", *children, viewBox=f"0 0 {width:g} {height:g}", role="img", aria_label=label, class_="chart"
    )


def _legend(series: Sequence[Series]) -> Html | None:
    named: dict[str, Series] = {}
    for line in series:
        if line.label:
            named.setdefault(line.label, line)
    if len(named) < 2:
        return None
    return node(
        "ul",
        [
            node("li", node("i", class_=f"swatch c{line.color}" + (" thin" if line.thin else "")), label)
            for label, line in named.items()
        ],
        class_="legend",
    )


def line_chart(
    series: Sequence[Series], x_name: str, y_name: str, width: int = 480, height: int = 250
) -> Html | None:
    """Lines over a common x axis; None without a point to draw. Series with the same label share a legend
    entry."""
    series = [line for line in series if line.points]
    if not series:
        return None
    xs = [x for line in series for x, _ in line.points]
    ys = [y for line in series for _, y in line.points]
    y_low, y_high = padded(ys)
    x_low, x_high = min(xs), max(xs)
    if x_low == x_high:
        x_low, x_high = padded(xs)
    left, right, top, bottom = 56, 14, 24, 34
    to_x = scale(x_low, x_high, left, width - right)
    to_y = scale(y_low, y_high, height - bottom, top)
    axis = [node("text", y_name, x=left, y=13, class_="axis-name")]
    for value in ticks(y_low, y_high):
        y = to_y(value)
        axis.append(node("line", x1=left, x2=width - right, y1=y, y2=y, class_="rule"))
        axis.append(node("text", short(value), x=left - 7, y=y + 4, class_="tick end"))
    for value in ticks(x_low, x_high, width // 90):
        axis.append(node("text", short(value), x=to_x(value), y=height - bottom + 15, class_="tick mid"))
    axis.append(node("text", x_name, x=(left + width - right) / 2, y=height - 4, class_="axis-name mid"))
    lines = []
    for line in sorted(series, key=lambda one: one.color == 1):
        path = "M" + "L".join(f"{to_x(x):.1f} {to_y(y):.1f}" for x, y in line.points)
        style = f"line s{line.color}" + (" thin" if line.thin else "")
        parts = [node("path", d=path, class_=style)]
        # A dot for each point keeps short lines visible and carries the tooltip; long lines get invisible
        # ones.
        visible = len(line.points) <= 30
        for x, y in line.points if len(line.points) <= 200 else line.points[-1:]:
            parts.append(
                node(
                    "circle",
                    node("title", f"{line.name}: {y_name} {y:.4f} at {x_name} {x:,.0f}"),
                    cx=to_x(x),
                    cy=to_y(y),
                    r=2.4 if visible else 5,
                    class_=f"dot c{line.color}" if visible else "hover",
                )
            )
        lines.append(node("g", parts))
    chart = _svg(width, height, axis, lines, label=f"{y_name} over {x_name}")
    return node("div", chart, _legend(series))


def distribution(
    scores: Sequence[float], name: str, marks: int = 10, width: int = 480, height: int = 116
) -> Html | None:
    """Histogram of scores above a strip with one tick a score; the best ``marks`` (first in order) are
    emphasised."""
    if not scores:
        return None
    low, high = padded(scores, 0.02)
    left, right, base = 8, 8, height - 52
    to_x = scale(low, high, left, width - right)
    bins = max(8, min(48, len(scores) // 3 or 1))
    counts = [0] * bins
    for score in scores:
        counts[min(bins - 1, int((score - low) / (high - low) * bins))] += 1
    step = (width - left - right) / bins
    tallest = max(counts)
    bars = [
        node(
            "rect",
            node("title", f"{amount} with {name} near {low + (index + 0.5) * (high - low) / bins:.4f}"),
            x=left + index * step + 0.5,
            y=base - (base - 8) * amount / tallest,
            width=max(0.5, step - 1),
            height=(base - 8) * amount / tallest,
            class_="bar",
        )
        for index, amount in enumerate(counts)
        if amount
    ]
    strip = node("path", d="".join(f"M{to_x(score):.1f} {base + 4}v12" for score in scores), class_="strip")
    best = node(
        "path",
        d="".join(f"M{to_x(score):.1f} {base + 2}v16" for score in scores[:marks]),
        class_="strip best",
    )
    axis = [
        node("text", short(value), x=to_x(value), y=height - 20, class_="tick mid")
        for value in ticks(low, high, width // 80)
        if to_x(value) > left + 12 and to_x(value) < width - right - 12
    ]
    axis.append(node("text", name, x=width / 2, y=height - 4, class_="axis-name mid"))
    return _svg(width, height, bars, strip, best, axis, label=f"distribution of {name}")


@dataclass(frozen=True)
class DotRow:
    """One row of a dot plot: the runs of a variant and their mean."""

    name: str
    runs: tuple[float, ...]
    mean: float
    color: int = 1


def dot_chart(
    rows: Sequence[DotRow], name: str, half_width: float | None = None, width: int = 980
) -> Html | None:
    """A row a variant: one dot a run, a bar at the mean, and whiskers of ``half_width`` (the test's
    standard error)."""
    if not rows:
        return None
    values = [value for row in rows for value in (*row.runs, row.mean)]
    if half_width:
        values += [row.mean + sign * half_width for row in rows for sign in (-1, 1)]
    low, high = padded(values)
    left = min(320, 24 + max(len(row.name) for row in rows) * 8)
    row_height, top, bottom = 26, 8, 40
    height = top + row_height * len(rows) + bottom
    to_x = scale(low, high, left, width - 86)
    shapes = []
    for value in ticks(low, high, 7):
        x = to_x(value)
        shapes.append(node("line", x1=x, x2=x, y1=top, y2=height - bottom + 4, class_="rule"))
        shapes.append(node("text", short(value), x=x, y=height - bottom + 18, class_="tick mid"))
    shapes.append(node("text", name, x=(left + width - 86) / 2, y=height - 5, class_="axis-name mid"))
    for index, row in enumerate(rows):
        y = top + row_height * (index + 0.5)
        shapes.append(node("text", row.name, x=left - 12, y=y + 4, class_="row-name end"))
        if half_width:
            shapes.append(
                node(
                    "line",
                    node("title", f"mean ± the test's standard error {half_width:.4f}"),
                    x1=to_x(row.mean - half_width),
                    x2=to_x(row.mean + half_width),
                    y1=y,
                    y2=y,
                    class_="whisker",
                )
            )
        for run, value in enumerate(row.runs):
            shapes.append(
                node(
                    "circle",
                    node("title", f"{row.name}, run {run}: {value:.4f}"),
                    cx=to_x(value),
                    cy=y,
                    r=4,
                    class_=f"dot open c{row.color} s{row.color}",
                )
            )
        x = to_x(row.mean)
        shapes.append(
            node(
                "line",
                node("title", f"{row.name}, mean {row.mean:.4f}"),
                x1=x,
                x2=x,
                y1=y - 9,
                y2=y + 9,
                class_=f"mean s{row.color}",
            )
        )
        shapes.append(node("text", f"{row.mean:.4f}", x=width - 76, y=y + 4, class_="value"))
    return _svg(width, height, shapes, label=f"{name} of each variant")


def bar_chart(rows: Sequence[tuple[str, float, str]], width: int = 480) -> Html | None:
    """Horizontal bars of (name, value, text beside the bar)."""
    if not rows or max(value for _, value, _ in rows) <= 0:
        return None
    left = 16 + max(len(name) for name, _, _ in rows) * 7.4
    room = 16 + max(len(text) for _, _, text in rows) * 6.8
    to_x = scale(0, max(value for _, value, _ in rows), left, width - room)
    shapes = []
    for index, (name, value, text) in enumerate(rows):
        y = 26 * index + 6
        shapes += [
            node("text", name, x=left - 10, y=y + 13, class_="row-name end"),
            node("rect", x=left, y=y, width=max(1.0, to_x(value) - left), height=17, rx=3, class_="bar"),
            node("text", text, x=to_x(value) + 8, y=y + 13, class_="tick"),
        ]
    return _svg(width, 26 * len(rows) + 8, shapes, label="seconds of each step")
