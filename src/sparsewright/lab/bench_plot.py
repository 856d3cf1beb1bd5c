"""A plot with two logarithmic axes, as SVG written by hand: pages show it as it is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 72, 20, 48, 56
COLOURS = ("#1f6feb", "#d1570a", "#2a8a3e")
Point = tuple[float, float, float, float]
"""x, y, and the low and high end of y."""


def loglog_svg(
    title: str,
    x_label: str,
    y_label: str,
    series: Mapping[str, Sequence[Point]],
    levels: Mapping[str, float] | None = None,
) -> str:
    """Series of points joined by lines, with their spread, and named horizontal levels.

    All numbers must be above 0.

    >>> loglog_svg("t", "x", "y", {"a": [(1, 1, 1, 1), (10, 5, 4, 6)]}).count("<circle")
    2
    """
    levels = levels or {}
    points = [point for some in series.values() for point in some]
    xs = Axis([p[0] for p in points], LEFT, WIDTH - RIGHT)
    ys = Axis([v for p in points for v in p[1:]] + [*levels.values()], HEIGHT - BOTTOM, TOP)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12" fill="#24292f">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(WIDTH / 2, 20, title, "middle", 'font-size="14"'),
        _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, x_label, "middle"),
        f'<g transform="rotate(-90 16 {HEIGHT / 2:g})">'
        f"{_text(16, HEIGHT / 2, y_label, 'middle')}</g>",
    ]
    for power in xs.powers():
        x = xs.at(10.0**power)
        parts += [_line(x, TOP, x, HEIGHT - BOTTOM, "#d8dee4")]
        parts += [_text(x, HEIGHT - BOTTOM + 18, _power(power), "middle")]
    for power in ys.powers():
        y = ys.at(10.0**power)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#d8dee4")]
        parts += [_text(LEFT - 8, y + 4, _power(power), "end")]
    for name, level in levels.items():
        y = ys.at(level)
        parts += [_line(LEFT, y, WIDTH - RIGHT, y, "#57606a", 'stroke-dasharray="6 4"')]
        parts += [_text(WIDTH - RIGHT - 4, y - 6, name, "end")]
    for place, (name, some) in enumerate(series.items()):
        colour = COLOURS[place % len(COLOURS)]
        at = " ".join(f"{xs.at(p[0]):.1f},{ys.at(p[1]):.1f}" for p in some)
        parts += [f'<polyline points="{at}" fill="none" stroke="{colour}" stroke-width="2"/>']
        for x, y, low, high in some:
            parts += [_line(xs.at(x), ys.at(low), xs.at(x), ys.at(high), colour)]
            parts += [f'<circle cx="{xs.at(x):.1f}" cy="{ys.at(y):.1f}" r="3.5" fill="{colour}"/>']
        x = LEFT + 8 + place * (WIDTH - LEFT - RIGHT) / len(series)
        parts += [_text(x, TOP - 8, name, "start", f'fill="{colour}"')]
    return "\n".join([*parts, "</svg>"]) + "\n"


class Axis:
    """Numbers above 0 -> pixels between `begin` and `end`, by their logarithms, with some room."""

    def __init__(self, values: Sequence[float], begin: float, end: float):
        low, high = math.log10(min(values)), math.log10(max(values))
        room = max(0.05 * (high - low), 0.15)
        self.low, self.high = low - room, high + room
        self.begin, self.end = begin, end

    def at(self, value: float) -> float:
        part = (math.log10(value) - self.low) / (self.high - self.low)
        return self.begin + part * (self.end - self.begin)

    def powers(self) -> range:
        """The powers of ten on the axis."""
        return range(math.ceil(self.low), math.floor(self.high) + 1)


def _power(power: int) -> str:
    """
    >>> [_power(p) for p in (-2, 0, 3, 6)]
    ['0.01', '1', '1000', '10⁶']
    """
    if -3 <= power <= 3:
        return f"{10.0**power:g}"
    return "10" + "".join("⁰¹²³⁴⁵⁶⁷⁸⁹"[int(d)] if d != "-" else "⁻" for d in str(power))


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, more: str = "") -> str:
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>'
    ).replace(" />", "/>")


def _text(x: float, y: float, text: str, anchor: str, more: str = "") -> str:
    words = f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {more}>{escape(text)}</text>'
    return words.replace(" >", ">")
