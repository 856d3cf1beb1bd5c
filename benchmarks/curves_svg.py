"""Curves over two linear axes as a small SVG that reads in light and dark, without a library."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

LIGHT = ("#59616b", "#0072b2", "#d55e00", "#00855f", "#b0508a", "#8a6d00")
DARK = ("#b4bac2", "#56b4e9", "#f08a4b", "#2fbf93", "#e39ac6", "#e3c94f")
"""After Okabe and Ito (2008): told apart with any colour vision."""
WIDTH, HEIGHT = 860, 430
LEFT, RIGHT, TOP, BOTTOM = 62, 230, 16, 52


@dataclass(frozen=True)
class Curve:
    """points: (x, y), x ascending. colour: index into LIGHT and DARK, which are gone round."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: int
    dashed: bool = False


def draw(curves: Sequence[Curve], x: str, y: str) -> str:
    """The SVG's text; x, y: titles of the axes. x begins at 0, y where the curves do.

    >>> draw([Curve("a", [(0, 1), (2, 3)], 0)], "s", "%").startswith("<svg")
    True
    """
    xs = [point[0] for curve in curves for point in curve.points]
    ys = [point[1] for curve in curves for point in curve.points]
    across, up = ticks(0.0, max(xs)), ticks(min(ys), max(ys))

    def at(px: float, py: float) -> tuple[float, float]:
        wide, high = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
        right = (px - across[0]) / (across[-1] - across[0])
        above = (py - up[0]) / (up[-1] - up[0])
        return LEFT + wide * right, HEIGHT - BOTTOM - high * above

    parts = [*_grid(across, up, at), *_titles(x, y)]
    for row, curve in enumerate(curves):
        parts += _curve(curve, [at(*point) for point in curve.points], TOP + 14 + 22 * row)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    alt = f"{y} against {x}: {', '.join(curve.name for curve in curves)}"
    return "\n".join([f'{head} aria-label="{escape(alt)}">', _style(), *parts, "</svg>", ""])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers from at or below `low` to at or above `high`.

    >>> ticks(0, 9.3), ticks(84.2, 90.1)
    ([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], [84.0, 85.0, 86.0, 87.0, 88.0, 89.0, 90.0, 91.0])
    """
    rough = max(high - low, 1e-9) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - rough))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, max(last, first + 1) + 1)]


def _style() -> str:
    def colours(palette: Sequence[str]) -> str:
        return "".join(f".c{i}{{stroke:{c};fill:{c}}}" for i, c in enumerate(palette))

    text = "text{font:13px system-ui,sans-serif;fill:%s}.grid{stroke:%s;fill:none}"
    fixed = "polyline{fill:none!important;stroke-width:2.2}.mark{stroke:none}"
    dark = text % ("#b4bac2", "#333a42") + colours(DARK)
    light = text % ("#4a4f57", "#dfe2e6") + colours(LIGHT)
    return f"<style>{light}{fixed}@media (prefers-color-scheme: dark){{{dark}}}</style>"


def _grid(across: Sequence[float], up: Sequence[float], at: object) -> list[str]:
    assert callable(at)
    out = []
    for value in across:
        px, py = at(value, up[0])
        out.append(f'<path class="grid" d="M{px:.1f} {py:.1f}V{TOP}"/>')
        out.append(f'<text x="{px:.1f}" y="{py + 19:.1f}" text-anchor="middle">{value:g}</text>')
    for value in up:
        px, py = at(across[0], value)
        out.append(f'<path class="grid" d="M{px:.1f} {py:.1f}H{WIDTH - RIGHT}"/>')
        out.append(f'<text x="{px - 8:.1f}" y="{py + 4:.1f}" text-anchor="end">{value:g}</text>')
    return out


def _titles(x: str, y: str) -> list[str]:
    middle = (LEFT + WIDTH - RIGHT) / 2
    high = (TOP + HEIGHT - BOTTOM) / 2
    return [
        f'<text x="{middle:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{escape(x)}</text>',
        f'<text transform="translate(15 {high:.1f}) rotate(-90)" text-anchor="middle">'
        f"{escape(y)}</text>",
    ]


def _curve(curve: Curve, points: Sequence[tuple[float, float]], row: float) -> list[str]:
    """The line with its marks, and its entry in the list at the right."""
    number = curve.colour % len(LIGHT)
    dash = ' stroke-dasharray="6 4"' if curve.dashed else ""
    line = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    left = WIDTH - RIGHT + 18
    return [
        f'<polyline class="c{number}" points="{line}"{dash}/>',
        *(f'<circle class="c{number} mark" cx="{x:.1f}" cy="{y:.1f}" r="3"/>' for x, y in points),
        f'<polyline class="c{number}" points="{left},{row} {left + 28},{row}"{dash}/>',
        f'<text x="{left + 36}" y="{row + 4}">{escape(curve.name)}</text>',
    ]
