"""The page of a comparison: its claims, its tables, and the fronts of measure against cost."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from .. import __version__
from ..files import write_text
from ..lab.compare import page as words
from ..lab.compare import table
from ..lab.compare.claims import CLAIMS, verdicts
from ..lab.compare.groups import Group, Outcome, outcome_of, pareto
from ..lab.compare.runs import lines_of
from .figures import COLOURS, SYMBOLS, Chart, blank, curve, safe
from .page import Drawing, _templates

COSTS: tuple[tuple[str, str, Callable[[Group], float]], ...] = (
    ("training FLOPs", "training FLOPs (dense = 1, log scale)", lambda g: g.training),
    ("inference FLOPs", "inference FLOPs (dense = 1, log scale)", lambda g: g.inference),
    ("CPU seconds", "CPU seconds of training (log scale)", lambda g: g.cpu_seconds),
)
SHOWN = 0.9  # part of the points that a front's chart shows: the worst would press all others flat


@dataclass(frozen=True)
class Named:
    """What the page's key of colours asks of an entry."""

    name: str


def write_comparison(folders: Sequence[Path], out: Path) -> Path:
    """Write one HTML page about the runs in folders of comparisons; it needs no network.

    ConfigError if there is no run in them.
    """
    lines = lines_of(folders)
    suites = dict.fromkeys(line["suite"] for line in lines)
    out.parent.mkdir(parents=True, exist_ok=True)
    write_text(out, render([outcome_of(lines, suite) for suite in suites]))
    return out


def render(outcomes: Sequence[Outcome]) -> str:
    """Outcomes of suites as one HTML page."""
    drawing = Drawing()
    return (
        _templates()
        .get_template("comparison.html")
        .render(
            title=f"Every method compared on {', '.join(o.name for o in outcomes)}",
            suites=[_suite(outcome, drawing) for outcome in outcomes],
            figures=drawing.json(),
            plotly=Markup(get_plotlyjs()),
            version=__version__,
        )
    )


def _suite(outcome: Outcome, drawing: Drawing) -> dict[str, Any]:
    """What the template asks of a suite."""
    kinds = kinds_of(outcome)
    return {
        "name": outcome.name,
        "about": words.about(outcome),
        "kinds": [(index, Named(kind)) for index, kind in enumerate(kinds)],
        "claims": [
            (v, [words.finding_text(outcome, finding) for finding in v.findings])
            for v in verdicts(outcome)
        ],
        "fronts": [
            (number, chart, front_text(outcome, cost))
            for (number, chart), (_, _, cost) in zip(
                drawing.add([front(outcome, *cost) for cost in COSTS]), COSTS, strict=True
            )
        ],
        "named": [(index, Named(name)) for index, name in enumerate(named(outcome))],
        "curves": drawing.add([by_sparsity(outcome)]),
        "headings": table.columns(outcome),
        "tables": [(s, table.rows(outcome, s)) for s in outcome.sparsities],
        "failures": table.failures(outcome),
    }


def kinds_of(outcome: Outcome) -> list[str]:
    return sorted({group.kind for group in outcome.groups})


def measured(outcome: Outcome) -> list[Group]:
    """All groups with a result."""
    return [group for group in outcome.groups if group.is_whole]


def front(outcome: Outcome, title: str, axis: str, cost: Callable[[Group], float]) -> Chart:
    """All groups by cost and measure, in the colour of their kind, and the front of the best."""
    groups, factor = measured(outcome), outcome.suite.factor
    figure = blank(axis, f"{outcome.suite.measure} ({outcome.suite.unit})")
    best = [groups[i] for i in front_of(outcome, groups, cost)]
    figure.add_trace(
        go.Scatter(
            x=[cost(group) for group in best],
            y=[factor * group.mean for group in best],
            mode="lines",
            line={"width": 1.5, "shape": "hv"},
            hoverinfo="skip",
            meta={"dense": True},
        )
    )
    for index, kind in enumerate(kinds_of(outcome)):
        own = [group for group in groups if group.kind == kind]
        figure.add_trace(
            go.Scatter(
                x=[cost(group) for group in own],
                y=[factor * group.mean for group in own],
                customdata=[[safe(group.recipe), f"{group.sparsity:g}"] for group in own],
                mode="markers",
                marker={"size": 7, "symbol": SYMBOLS[index % len(SYMBOLS)]},
                hovertemplate="%{customdata[0]} at %{customdata[1]}: %{y:.2f} "
                f"{outcome.suite.unit}, %{{x:.3g}}<extra></extra>",
                meta={"run": index % COLOURS},
            )
        )
    figure.update_xaxes(type="log", exponentformat="power", nticks=8)
    figure.update_yaxes(range=shown_range(outcome, groups))
    names = ", ".join(f"{g.recipe} at {g.sparsity:g}" for g in best)
    alt = f"{outcome.suite.measure} against {title}. On the front: {names}."
    return Chart(f"{outcome.suite.measure} against {title}", alt, figure, "26rem")


def front_of(
    outcome: Outcome, groups: Sequence[Group], cost: Callable[[Group], float]
) -> list[int]:
    return pareto([(cost(group), group.mean) for group in groups], outcome.suite.higher)


def front_text(outcome: Outcome, cost: Callable[[Group], float]) -> str:
    """Who is on a front, by ascending cost, and how many the chart has no room for."""
    groups = measured(outcome)
    best = [groups[i] for i in front_of(outcome, groups, cost)]
    low, high = shown_range(outcome, groups)
    values = [outcome.suite.factor * group.mean for group in groups]
    outside = sum(not low <= value <= high for value in values)
    names = ", ".join(f"{g.recipe} ({g.sparsity:g})" for g in best)
    more = f" {outside} worse ones lie outside of the chart." if outside else ""
    return f"On the front, by rising cost: {names}.{more}"


def shown_range(outcome: Outcome, groups: Sequence[Group]) -> list[float]:
    """The axis of the measure: the best nine tenths, with some room."""
    values = sorted((outcome.suite.factor * g.mean for g in groups), reverse=outcome.suite.higher)
    if not values:
        return [0.0, 1.0]
    worst, best = values[min(len(values) - 1, math.ceil(SHOWN * len(values)) - 1)], values[0]
    room = 0.06 * abs(best - worst) or 1.0
    return [min(worst, best) - room, max(worst, best) + room]


def named(outcome: Outcome) -> list[str]:
    """The recipes of the claims that were run, in the claims' order."""
    pairs = [pair for claim in CLAIMS for pair in claim.pairs]
    names = dict.fromkeys(name for pair in pairs for name in (pair.better, pair.worse))
    known = {group.recipe for group in measured(outcome)}
    return [name for name in names if name in known]


def by_sparsity(outcome: Outcome) -> Chart:
    """The measure of the claims' recipes by sparsity."""
    figure = blank("sparsity", f"{outcome.suite.measure} ({outcome.suite.unit})")
    factor, says = outcome.suite.factor, []
    for index, name in enumerate(named(outcome)):
        found = [(s, outcome.group(name, s)) for s in outcome.sparsities]
        points = [(s, factor * group.mean) for s, group in found if group is not None]
        xs, ys = [x for x, _ in points], [y for _, y in points]
        unit = outcome.suite.unit
        figure.add_trace(curve(xs, ys, index, name, False, unit, at="sparsity %{x}"))
        says.append(f"{name}: " + ", ".join(f"{y:.2f} at {x:g}" for x, y in points))
    figure.update_xaxes(tickmode="array", tickvals=outcome.sparsities)
    figure.update_yaxes(range=shown_range(outcome, measured(outcome)))
    title = "The recipes that the claims name, by sparsity"
    return Chart(title, f"{title}. {'; '.join(says)}.", figure, "26rem")
