"""What a training step costs, drawn: bytes of state and milliseconds by layer, accuracy by time."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import plotly.graph_objects as go

from . import words
from .figures import Chart, bars, blank, curve, safe, short
from .run import Cost, LayerCost, Run

PARTS = ("values", "gradients", "optimizer", "places")
PASSES = ("forward", "backward")
SHOWN = 12
"""Layers with a bar of their own; the smaller ones share one."""
Stack = Sequence[tuple[str, Sequence[float], int]]
"""(name, a length for every bar, the colour's number in page.css: --part-0 and on)."""


def accuracy_by_time(runs: Sequence[Run]) -> list[Chart]:
    """Test accuracy against seconds of training since the start; nothing for a single run."""
    shown = [(index, run) for index, run in enumerate(runs) if run.epochs]
    if len(shown) < 2:
        return []
    figure, says = blank("seconds of training", "accuracy (%)"), []
    for index, run in shown:
        xs = list(itertools.accumulate(epoch.seconds for epoch in run.epochs))
        ys = [100 * epoch.test_accuracy for epoch in run.epochs]
        figure.add_trace(curve(xs, ys, index, run.name, False, "%", at="%{x:.3g} s"))
        says.append(f"{run.name} reaches {words.percent(ys[-1] / 100)} in {words.seconds(xs[-1])}")
    figure.update_xaxes(rangemode="tozero")
    alt = f"Test accuracy by seconds of training: {'; '.join(says)}."
    return [Chart("Accuracy for time", alt, figure, "22rem")]


def cost_charts(runs: Sequence[Run]) -> list[tuple[int, Run, list[Chart]]]:
    """(index, run, [bytes by layer, milliseconds by layer]), alike in layers and scale."""
    known = [(index, run, run.cost) for index, run in enumerate(runs) if run.cost]
    heavy = _heaviest([cost for _, _, cost in known])
    bytes_drawn = [_bytes(run, cost, heavy) for _, run, cost in known]
    times_drawn = [_times(run, cost, heavy) for _, run, cost in known]
    for charts in (bytes_drawn, times_drawn):
        top = max((_longest(chart.figure) for chart in charts), default=1.0)
        for chart in charts:
            chart.figure.update_xaxes(range=[0, 1.04 * top or 1])
    return [
        (index, run, [a, b])
        for (index, run, _), a, b in zip(known, bytes_drawn, times_drawn, strict=True)
    ]


def _heaviest(costs: Sequence[Cost]) -> list[str]:
    """The layers with the largest share of bytes or time in any run, in the model's order."""
    share: dict[str, float] = {}
    for cost in costs:
        size = max(1, max(cost.bytes("total"), cost.dense_bytes))
        time = max(1e-9, cost.forward_ms + cost.backward_ms)
        for layer in cost.layers:
            own = (layer.forward_ms + layer.backward_ms) / time
            own = max(own, layer.bytes.total / size, layer.dense.total / size)
            share[layer.name] = max(own, share.get(layer.name, 0.0))
    few = sorted(share, key=lambda name: -share[name])[:SHOWN]
    return [name for name in share if name in few]


def _bytes(run: Run, cost: Cost, heavy: Sequence[str]) -> Chart:
    names, groups = _grouped(cost, heavy)
    stack = [
        (part, [sum(getattr(m.bytes, part) for m in group) / 1e6 for group in groups], number)
        for number, part in enumerate(PARTS)
    ]
    figure = _stacked(names, stack, "bytes of training state (MB)", "%{x:.3g} MB")
    dense = [sum(m.dense.total for m in group) / 1e6 for group in groups]
    figure.add_trace(
        go.Scatter(
            mode="markers",
            y=[short(name, names) for name in names],
            x=dense,
            marker={"size": 16, "symbol": "line-ns", "line": {"width": 2.5}},
            hovertemplate="if dense: %{x:.3g} MB<extra></extra>",
            meta={"dense": True},
        )
    )
    says = f"{words.size(cost.bytes('total'))}, {words.size(cost.dense_bytes)} if dense"
    title = f"{run.name}: bytes"
    return Chart(title, f"{title} of training state by layer. In all {says}.", figure, _tall(names))


def _times(run: Run, cost: Cost, heavy: Sequence[str]) -> Chart:
    names, groups = _grouped(cost, heavy)
    stack: list[tuple[str, list[float], int]] = [
        (name, [*(sum(getattr(m, f"{name}_ms") for m in group) for group in groups), 0, 0], number)
        for number, name in enumerate(PASSES)
    ]
    none = [0.0] * len(groups)
    stack.append(("both", [*none, cost.optimizer_ms, cost.other_ms], 2))
    names = [*names, "(optimizer)", "(other)"]
    figure = _stacked(names, stack, "time in a step (ms)", "%{x:.3g} ms")
    title = f"{run.name}: time"
    says = ", ".join(f"{label} {text(cost)}" for label, text in TIMES.items())
    return Chart(title, f"{title} of a step by layer: {says}.", figure, _tall(names))


def _grouped(cost: Cost, heavy: Sequence[str]) -> tuple[list[str], list[list[LayerCost]]]:
    """The heavy layers one by one, then all others as one: names, and the layers of each."""
    groups = [[layer for layer in cost.layers if layer.name == name] for name in heavy]
    rest = [layer for layer in cost.layers if layer.name not in heavy]
    names = [*heavy, *([f"({len(rest)} smaller)"] if rest else [])]
    return names, [*groups, *([rest] if rest else [])]


def _stacked(names: Sequence[str], stack: Stack, unit: str, hover: str) -> go.Figure:
    figure = blank(unit, None)
    labels = [short(name, names) for name in names]
    for part, lengths, number in stack:
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=labels,
                x=list(lengths),
                name=safe(part),
                hovertemplate=f"{'' if part == 'both' else part + ': '}{hover}<extra></extra>",
                meta={"part": number},
            )
        )
    bars(figure)
    figure.update_layout(barmode="stack", bargap=0.35)
    return figure


def _longest(figure: go.Figure) -> float:
    """The end of the longest bar or marker."""
    stacks = zip(*(trace.x for trace in figure.data if trace.type == "bar"), strict=True)
    single = [x for trace in figure.data if trace.type != "bar" for x in trace.x]
    return max([*map(sum, stacks), *single], default=1.0)


def _tall(names: Sequence[str]) -> str:
    return f"{80 + 30 * len(names)}px"


def cost_rows(runs: Sequence[Run]) -> list[tuple[str, list[tuple[str, list[str]]]]]:
    """(heading, [(what, a text per run)]) of the table of totals; none without a cost.json."""
    if not any(run.cost for run in runs):
        return []
    parts = {"bytes": BYTES, "time": TIMES}
    return [
        (
            heading,
            [
                (what, [text(run.cost) if run.cost else words.NOTHING for run in runs])
                for what, text in rows.items()
            ],
        )
        for heading, rows in parts.items()
    ]


def _smaller(cost: Cost) -> str:
    return words.times(cost.dense_bytes / max(1, cost.bytes("total")))


def _part(name: str) -> Callable[[Cost], str]:
    return lambda cost: words.size(cost.bytes(name))


def _ms(name: str) -> Callable[[Cost], str]:
    return lambda cost: f"{words.milliseconds(getattr(cost, f'{name}_ms'))}{words.THIN}ms"


def _range(cost: Cost) -> str:
    low, high = words.milliseconds(cost.low_ms), words.milliseconds(cost.high_ms)
    return f"{low}{words.NOTHING}{high}{words.THIN}ms"


BYTES: dict[str, Callable[[Cost], str]] = {
    "training state": _part("total"),
    "values": _part("values"),
    "gradients": _part("gradients"),
    "optimizer state": _part("optimizer"),
    "places or masks": _part("places"),
    "training state if dense": lambda cost: words.size(cost.dense_bytes),
    "smaller than dense": _smaller,
}
TIMES: dict[str, Callable[[Cost], str]] = {
    "a step": _ms("step"),
    "range": _range,
    "forward": _ms("forward"),
    "backward": _ms("backward"),
    "optimizer": _ms("optimizer"),
    "other": _ms("other"),
    "images in a step": lambda cost: words.count(cost.batch),
    "threads": lambda cost: str(cost.threads),
}
