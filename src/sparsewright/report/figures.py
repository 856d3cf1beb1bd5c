"""What all charts of the report are made of: a blank figure, curves, bars, labels.

Colours are named, not set: the page paints them from its style sheet, so that one figure serves
light and dark.

A trace's `meta` says how to paint it: {"run": i} in the colour of run i, {"part": i} in that of a
part of a whole, {"dense": true} as a baseline, {"faint": true} paler, {"heat": true} in the heat
map's scale.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

COLOURS = 6  # in page.css, --run-0 and on; further runs start again, in another dash
DASHES = ("solid", "dash", "dashdot", "longdash")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star")


@dataclass(frozen=True)
class Chart:
    """A figure, its height in CSS, and what it shows in words for who cannot see it."""

    title: str
    alt: str
    figure: go.Figure
    height: str

    def to_dict(self) -> dict[str, Any]:
        return json.loads(self.figure.to_json())


def blank(x: str | None, y: str | None) -> go.Figure:
    """An empty figure that leaves touch to the page: no zoom, no drag, no plotly legend."""
    layout = {
        "template": "none",
        "showlegend": False,
        "dragmode": False,
        "margin": {"l": 8, "r": 12, "t": 10, "b": 8},
        "font": {"size": 12},
        "hovermode": "closest",
        "paper_bgcolor": "rgba(0,0,0,0)",
        "plot_bgcolor": "rgba(0,0,0,0)",
    }
    axis = {"fixedrange": True, "automargin": True, "zeroline": False, "ticks": "outside"}
    figure = go.Figure(layout=layout)
    figure.update_xaxes(**axis, title={"text": x, "standoff": 10})
    figure.update_yaxes(**axis, title={"text": y, "standoff": 8})
    return figure


def curve(
    xs: Sequence[float],
    ys: Sequence[float],
    index: int,
    name: str,
    faint: bool,
    unit: str,
    at: str = "epoch %{x}",
) -> go.Scatter:
    """The curve of run `index`; at: what its labels say of x."""
    dash = "dot" if faint else DASHES[(index // COLOURS) % len(DASHES)]
    few = len(xs) <= 30 and not faint
    return go.Scatter(
        x=list(xs),
        y=list(ys),
        mode="lines+markers" if few or len(xs) == 1 else "lines",
        line={"width": 1.5 if faint else 2.5, "dash": dash},
        marker={"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
        name=safe(name),
        hovertemplate=at
        + ": %{y:.4g}"
        + (" %" if unit == "%" else "")
        + "<extra>%{fullData.name}</extra>",
        meta={"run": index % COLOURS, "faint": faint},
    )


def bars(figure: go.Figure) -> None:
    """Horizontal bars, the first at the top, without an axis line beside the names."""
    figure.update_yaxes(autorange="reversed", ticks="", showgrid=False, type="category")
    figure.update_layout(barmode="group", bargap=0.3, bargroupgap=0.08)


def whole_epochs(figure: go.Figure, epochs: Sequence[int]) -> None:
    """Ticks at whole epochs alone."""
    if len(set(epochs)) <= 8:
        figure.update_xaxes(tickmode="array", tickvals=sorted(set(epochs)))
    else:
        figure.update_xaxes(tickformat="d", nticks=8)


def gap(low: float | None, high: float | None) -> float:
    return max(0.0, high - low) if low is not None and high is not None else 0.0


def safe(text: str) -> str:
    """Text for plotly, which reads a few HTML tags in labels: angle brackets as entities."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def short(name: str, names: Sequence[str], limit: int = 20) -> str:
    """A long dotted name by its end, where that still tells it from the others."""
    if len(name) <= limit:
        return safe(name)
    end = name[-(limit - 1) :]
    alone = sum(other.endswith(end) for other in names) == 1
    return safe(f"…{end}" if alone else name)
