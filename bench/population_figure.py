"""The figure of docs/population.md: what evaluating n children of step 3 costs, from the stored rows.

``python -m ameir_fast.bench.population_figure`` reads ``bench/results/population-3.jsonl`` and writes
``docs/population.svg``. Costs are in children that eager PyTorch evaluates one after the other in the same time.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

ROWS = Path("bench") / "results" / "population-3.jsonl"
FIGURE = Path("docs") / "population.svg"
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 640, 400, 70, 150, 20, 50
X, Y = (1, 20_000), (0.03, 20_000)
COLOURS = {"eager": "#555555", "plan": "#d97706", 2: "#2563eb", 3: "#16a34a"}


def figure(rows: list[dict]) -> str:
    """SVG with logarithmic axes: a line for each method that goes one by one, points for children together."""
    def place(n: float, cost: float) -> tuple[float, float]:
        along = lambda value, ends: (math.log(value) - math.log(ends[0])) / (math.log(ends[1]) - math.log(ends[0]))
        return (LEFT + along(n, X) * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - along(cost, Y) * (HEIGHT - TOP - BOTTOM))

    def line(points: list[tuple[float, float]], colour: str, name: str, dots: bool) -> list[str]:
        at = [place(*point) for point in points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in at)
        parts = [f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>']
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in at if dots]
        return [*parts, f'<text x="{at[-1][0] + 8:.1f}" y="{at[-1][1] + 4:.1f}" fill="{colour}">{name}</text>']

    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" font-size="12">',
           f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>']
    for exponent in range(5):
        x, y = place(10**exponent, Y[0])[0], place(X[0], 10**exponent)[1]
        out += [f'<path d="M{x:.1f} {TOP}V{HEIGHT - BOTTOM}M{LEFT} {y:.1f}H{WIDTH - RIGHT}" stroke="#dddddd"/>',
                f'<text x="{x:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{10**exponent:,}</text>',
                f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{10**exponent:,}</text>']
    middle = (TOP + HEIGHT - BOTTOM) / 2
    out += [f'<text x="{(LEFT + WIDTH - RIGHT) / 2}" y="{HEIGHT - 10}" text-anchor="middle">children</text>',
            f'<text transform="translate(18 {middle}) rotate(-90)" text-anchor="middle">cost, in children of eager PyTorch</text>']
    plan = next(row["ratio"] for row in rows if row["layers"] == 2 and row["method"] == "plan")
    out += line([(1, 1), (14_080, 14_080)], COLOURS["eager"], "eager, one by one", False)
    out += line([(1, 1 / plan), (14_080, 14_080 / plan)], COLOURS["plan"], "plans, one by one", False)
    for layers in (2, 3):
        out += line(sorted((row["children"], row["children"] / row["ratio"]) for row in rows
                           if row["layers"] == layers and row["method"] == "shared"), COLOURS[layers],
                    f"together, {layers} layers", True)
    return "\n".join([*out, "</svg>"]) + "\n"


def main() -> None:
    from ..atomic import write_text

    write_text(FIGURE, figure([json.loads(text) for text in ROWS.read_text(encoding="utf-8").splitlines()]))


if __name__ == "__main__":
    main()
