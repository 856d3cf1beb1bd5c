"""The report's charts of accuracy, layers, masks, speed and disk as plotly figures."""

from __future__ import annotations

import math
from collections.abc import Sequence

import plotly.graph_objects as go

from .figures import COLOURS, Chart, bars, blank, curve, gap, safe, short, whole_epochs
from .run import Batch, MaskEpoch, Run
from .words import count, milliseconds, percent, size

WIDE = 20  # slowest over fastest from which on times stand on a logarithmic axis


def curves(runs: Sequence[Run]) -> list[Chart]:
    """Accuracy and loss by epoch: test as drawn lines, training paler and dotted."""
    runs_with = [run for run in runs if run.epochs]
    if not runs_with:
        return []
    finals = "; ".join(f"{r.name} ends at {percent(r.epochs[-1].test_accuracy)}" for r in runs_with)
    losses = "; ".join(f"{r.name} ends at {r.epochs[-1].test_loss:.3g}" for r in runs_with)
    return [
        _lines("Accuracy", f"Test accuracy by epoch: {finals}.", runs, "accuracy", 100.0, "%"),
        _lines("Loss", f"Test loss by epoch: {losses}.", runs, "loss", 1.0, "mean per example"),
    ]


def _lines(title: str, alt: str, runs: Sequence[Run], what: str, factor: float, unit: str) -> Chart:
    figure = blank("epoch", f"{what} ({unit})")
    for split in ("train", "test"):
        for index, run in enumerate(runs):
            ys = [factor * getattr(epoch, f"{split}_{what}") for epoch in run.epochs]
            xs = [epoch.epoch for epoch in run.epochs]
            faint = split == "train"
            figure.add_trace(curve(xs, ys, index, f"{run.name}, {split}", faint, unit))
    whole_epochs(figure, [epoch.epoch for run in runs for epoch in run.epochs])
    return Chart(title, alt, figure, "20rem")


def layer_bars(runs: Sequence[Run]) -> list[Chart]:
    """Share of absent weights of every layer, a bar per run; layers left dense stand at 0."""
    shown = [(i, run, run.ended) for i, run in enumerate(runs) if run.ended and run.ended.rows]
    if not shown:
        return []
    names = list(dict.fromkeys(row.name for _, _, ended in shown for row in ended.rows))
    left = [v.name for _, _, ended in shown for v in ended.left_dense]
    names = list(dict.fromkeys([*names, *left]))
    figure = blank("weights absent (%)", None)
    for index, run, ended in shown:
        rows = {row.name: row for row in ended.rows}
        known = [name for name in names if name in rows or name in left]
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=[short(name, names) for name in known],
                x=[100 * rows[name].sparsity if name in rows else 0 for name in known],
                customdata=[
                    [safe(name), count(rows[name].present), count(rows[name].total)]
                    if name in rows
                    else [safe(name), "all", "all (left dense)"]
                    for name in known
                ],
                hovertemplate="%{customdata[0]}<br>%{x:.3f} % absent<br>"
                "%{customdata[1]} of %{customdata[2]} present<extra></extra>",
                name=safe(run.name),
                meta={"run": index % COLOURS},
            )
        )
    bars(figure)
    figure.update_xaxes(range=[0, 100])
    says = "; ".join(
        f"{run.name}: " + ", ".join(f"{r.name} {percent(r.sparsity)}" for r in ended.rows[:12])
        for _, run, ended in shown
    )
    height = 90 + len(names) * (14 + 14 * len(shown))
    return [
        Chart(
            "Weights absent per layer", f"Weights absent per layer. {says}.", figure, f"{height}px"
        )
    ]


def mask_lines(runs: Sequence[Run]) -> list[Chart]:
    """How masks move: weights replaced, overlap with the first mask, weights ever present."""
    if not any(run.masks for run in runs):
        return []
    return [
        _moves(runs),
        _mask_share(runs, "Overlap with the first mask", "overlap_first", "overlap (%)"),
        _mask_share(runs, "Weights ever present", "ever", "of all weights (%)"),
    ]


def _moves(runs: Sequence[Run]) -> Chart:
    figure = blank("epoch", "weights (% of all)")
    says = []
    for index, run in enumerate(runs):
        xs = [line.epoch for line in run.masks]
        for what, sign in (("grown", 1), ("dropped", -1)):
            moved = [line.count(what) for line in run.masks]
            figure.add_trace(
                go.Bar(
                    x=xs,
                    y=[
                        100 * sign * m / max(1, e.total)
                        for m, e in zip(moved, run.masks, strict=True)
                    ],
                    customdata=[count(m) for m in moved],
                    hovertemplate="epoch %{x}: %{customdata} "
                    + what
                    + "<extra>%{fullData.name}</extra>",
                    name=safe(run.name),
                    offsetgroup=str(index),
                    meta={"run": index % COLOURS, "faint": sign < 0},
                )
            )
        if run.masks:
            says.append(f"{run.name}: {count(sum(e.count('grown') for e in run.masks))} grown")
    whole_epochs(figure, [e.epoch for run in runs for e in run.masks])
    figure.update_layout(barmode="relative", bargap=0.25)
    alt = f"Weights grown (above zero) and dropped (below) per epoch. In all, {'; '.join(says)}."
    return Chart("Grown (up) and dropped (down)", alt, figure, "17.5rem")


def _mask_share(runs: Sequence[Run], title: str, what: str, unit: str) -> Chart:
    figure = blank("epoch", unit)
    says = []
    for index, run in enumerate(runs):
        ys = [100 * line.mean(what) for line in run.masks]
        figure.add_trace(curve([line.epoch for line in run.masks], ys, index, run.name, False, "%"))
        if ys:
            says.append(f"{run.name} ends at {ys[-1]:.1f} %")
    whole_epochs(figure, [e.epoch for run in runs for e in run.masks])
    figure.update_yaxes(rangemode="tozero")
    return Chart(title, f"{title} by epoch: {'; '.join(says)}.", figure, "17.5rem")


def heat_maps(run: Run) -> Chart | None:
    """Weights present per input, as the image that the inputs are: first and last epoch."""
    shown = [line for line in (run.masks[:1] + run.masks[-1:]) if line.input_counts]
    square = _square(len(shown[-1].input_counts)) if shown else None
    if square is None or len({len(line.input_counts) for line in shown}) > 1:
        return None
    if len(shown) == 2 and shown[0] is shown[1]:
        shown = shown[:1]
    side, channels = square
    figure = blank(None, None)
    images = [_image(line, side, channels) for line in shown]
    values = [value for image in images for row in image for value in row]
    if len(set(values)) == 1:  # nothing is absent: a plain square says nothing
        return None
    top = max(1, *values)
    for index, image in enumerate(images):
        figure.add_trace(_heat(image, index, top, last=index == len(images) - 1))
    _heat_axes(figure, [f"after epoch {line.epoch}" for line in shown])
    middle = _centre_share(images[-1])
    alt = (
        f"{run.name}: weights present per input pixel of a {side} by {side} image; "
        f"the middle quarter of the image holds {percent(middle)} of them at the end."
    )
    return Chart(run.name, alt, figure, "clamp(275px, 185px + 20vw, 345px)")


def _square(inputs: int) -> tuple[int, int] | None:
    """(side, channels) where the inputs are a square image of one or three channels, or None."""
    for channels in (1, 3):
        side = math.isqrt(inputs // channels)
        if side >= 4 and side * side * channels == inputs:
            return side, channels
    return None


def _image(line: MaskEpoch, side: int, channels: int) -> list[list[int]]:
    """Counts as rows of pixels, summed over colour channels (channels come first)."""
    plane = side * side
    pixels = [sum(line.input_counts[c * plane + p] for c in range(channels)) for p in range(plane)]
    return [pixels[r * side : (r + 1) * side] for r in range(side)]


def _centre_share(image: list[list[int]]) -> float:
    side = len(image)
    inner = range(side // 4, side - side // 4)
    return sum(image[r][c] for r in inner for c in inner) / max(1, sum(map(sum, image)))


def _heat(image: list[list[int]], index: int, top: int, last: bool) -> go.Heatmap:
    axis = "" if index == 0 else str(index + 1)
    return go.Heatmap(
        z=image,
        zmin=0,
        zmax=top,
        xaxis=f"x{axis}",
        yaxis=f"y{axis}",
        showscale=last,
        colorbar={
            "orientation": "h",
            "thickness": 10,
            "y": -0.21,
            "yanchor": "top",
            "outlinewidth": 0,
            "title": {"text": "weights per input", "side": "bottom"},
        },
        hovertemplate="row %{y}, column %{x}: %{z} weights<extra></extra>",
        meta={"heat": True},
    )


def _heat_axes(figure: go.Figure, titles: Sequence[str]) -> None:
    width = 1 / len(titles)
    for index, title in enumerate(titles):
        axis = "" if index == 0 else str(index + 1)
        start = index * width
        bare = {"showticklabels": False, "showgrid": False, "zeroline": False, "ticks": ""}
        figure.layout[f"xaxis{axis}"] = {
            **bare,
            "domain": [start, start + width - (0.04 if len(titles) > 1 else 0)],
            "constrain": "domain",
            "anchor": f"y{axis}",
            "title": {"text": title},
            "fixedrange": True,
        }
        figure.layout[f"yaxis{axis}"] = {
            **bare,
            "autorange": "reversed",
            "scaleanchor": f"x{axis}",
            "constraintoward": "top",
            "constrain": "domain",
            "anchor": f"x{axis}",
            "fixedrange": True,
        }
    figure.update_layout(margin={"l": 8, "r": 8, "t": 8, "b": 36})


def latency(run: Run, index: int, batch: Batch) -> Chart | None:
    """Median time of every way that ran, with its spread; the sparse way in the run's colour.

    Dots, not bars, because the axis is logarithmic where one way is far slower than another.
    """
    ways = [way for way in batch.ways if way.median_ms is not None]
    if not ways:
        return None
    medians = [way.median_ms for way in ways if way.median_ms]
    wide = max(medians, default=1) > WIDE * min(medians, default=1)
    figure = blank(f"time per call (ms{', log scale' if wide else ''})", None)
    for dense in (True, False):
        shown = [way for way in ways if way.dense is dense]
        figure.add_trace(
            go.Scatter(
                mode="markers",
                y=[safe(way.name) for way in shown],
                x=[way.median_ms for way in shown],
                marker={"size": 12, "symbol": "circle" if dense else "diamond"},
                error_x={
                    "type": "data",
                    "symmetric": False,
                    "array": [gap(way.median_ms, way.high_ms) for way in shown],
                    "arrayminus": [gap(way.low_ms, way.median_ms) for way in shown],
                    "thickness": 1.5,
                    "width": 5,
                },
                hovertemplate="%{y}: %{x:.4g} ms<extra></extra>",
                meta={"dense": True} if dense else {"run": index % COLOURS},
            )
        )
    names = [safe(way.name) for way in reversed(ways)]
    figure.update_yaxes(type="category", categoryorder="array", categoryarray=names, ticks="")
    figure.update_xaxes(**({"type": "log", "dtick": 1} if wide else {"rangemode": "tozero"}))
    says = ", ".join(f"{way.name} {milliseconds(way.median_ms)} ms" for way in ways)
    title = f"{run.name}, batch {batch.size}"
    return Chart(title, f"Time per call of {title}: {says}.", figure, f"{90 + 30 * len(ways)}px")


def disk(runs: Sequence[Run], labels: Sequence[tuple[str, str]]) -> list[Chart]:
    """Bytes on disk of each kind of file, a bar per run. labels: (key in deploy.json, words)."""
    shown = [(i, run, run.deployment.bytes) for i, run in enumerate(runs) if run.deployment]
    shown = [entry for entry in shown if entry[2]]
    if not shown:
        return []
    figure = blank("bytes on disk (kB)", None)
    kinds = [(k, words) for k, words in labels if any(k in sizes for _, _, sizes in shown)]
    for index, run, sizes in shown:
        figure.add_trace(
            go.Bar(
                orientation="h",
                y=[words for _, words in kinds],
                x=[sizes[k] / 1000 if k in sizes else None for k, _ in kinds],
                customdata=[size(sizes.get(k)) for k, _ in kinds],
                hovertemplate="%{y}: %{customdata}<extra>%{fullData.name}</extra>",
                name=safe(run.name),
                meta={"run": index % COLOURS},
            )
        )
    bars(figure)
    says = "; ".join(
        f"{run.name}: " + ", ".join(f"{words} {size(sizes.get(k))}" for k, words in kinds)
        for _, run, sizes in shown
    )
    height = 90 + len(kinds) * (14 + 14 * len(shown))
    return [Chart("Bytes on disk", f"Bytes on disk. {says}.", figure, f"{height}px")]
