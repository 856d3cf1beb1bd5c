"""`sparsewright bench scale`: what a training step costs by its weights, and how large it can be.

First the time of a step of one packed layer (forward, both gradients, AdamW) over its present
weights at one width, beside a dense layer of that width, then over its width at as many weights;
all of a curve are timed in turn. Then a network of ten million neurons is trained
(bench_neurons.py).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..errors import ConfigError
from ..measure.environment import cores
from ..measure.environment import threads as using_threads
from ..measure.timing import Timing, interleave
from ..nn import PackedLinear
from .bench_neurons import Network, lines, train
from .bench_plot import Point, loglog_svg
from .bench_run import Settings, begin, keep
from .bench_table import duration, machine_line, printed_table
from .tables import show
from .train_ways import adamw

COLUMNS = ("over", "threads", "batch", "width", "present weights", "ms", "10th to 90th", "ns each")
LEFT = 1  # columns of words
MOST_DENSE = 2**13  # width of a dense layer whose AdamW takes a gigabyte
Cell = Mapping[str, Any]


@dataclass(frozen=True)
class Curves:
    """widths, nnz: at WIDTH over nnz, and at NNZ over widths; an empty one leaves its curve out.
    batch: rows of the input. ConfigError where a layer cannot hold so many weights."""

    width: int = 8192
    over_nnz: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)
    nnz: int = 10**6
    over_width: tuple[int, ...] = (2**12, 2**14, 2**16, 2**18)
    batch: int = 32

    def __post_init__(self) -> None:
        for width, nnz in [(self.width, n) for n in self.over_nnz] + [
            (w, self.nnz) for w in self.over_width
        ]:
            if not 1 <= nnz <= width * width // 2:
                raise ConfigError(
                    f"a layer {width}x{width} of the bench holds 1 to {width * width // 2} weights "
                    f"(half of all); got {nnz}"
                )
        for values in (self.over_nnz, self.over_width):
            if len(set(values)) == 1:
                raise ConfigError(f"a curve needs two points or more; got {values[0]} alone")


def run_scale(
    curves: Curves, network: Network | None, settings: Settings, out: Path | None
) -> Path | None:
    """Measure, print and write a JSON file; its path. network: None leaves it out."""
    data = begin("scale", settings.command)
    data["networks"] = []
    print(machine_line(data["environment"]), flush=True)
    path, start = None, time.perf_counter()

    for count in dict.fromkeys(count or cores() for count in settings.threads):
        with using_threads(count):
            for cell in _curves(curves, settings.rounds):
                data["cells"].append(cell)
                show(printed_table("", COLUMNS, scale_rows([cell]), LEFT))
                print(slope_line(cell), flush=True)
                path = keep(data, start, out)
    for count in dict.fromkeys(count or cores() for count in settings.threads) if network else ():
        with using_threads(count):
            assert network is not None
            data["networks"].append(train(network, lambda line: print(line, flush=True)))
            print("\n".join(lines(data["networks"][-1])), flush=True)
            path = keep(data, start, out)
    print(f"took {duration(time.perf_counter() - start)}")
    return path


def _curves(curves: Curves, rounds: int) -> Iterable[dict[str, Any]]:
    by_nnz = [(curves.width, nnz) for nnz in curves.over_nnz]
    by_width = [(width, curves.nnz) for width in curves.over_width]
    if by_nnz:
        dense = curves.width if curves.width <= MOST_DENSE else None
        yield _curve("weights", by_nnz, curves.batch, dense, rounds)
    if by_width:
        yield _curve("width", by_width, curves.batch, None, rounds)


def _curve(
    over: str, sizes: Sequence[tuple[int, int]], batch: int, dense: int | None, rounds: int
) -> dict[str, Any]:
    torch.manual_seed(0)
    steps: dict[str, Callable[[], None]] = {}
    made: dict[str, tuple[int, int]] = {}
    for width, nnz in sizes:
        layer = PackedLinear(width, width, bias=False, sparsity=1 - nnz / width**2)
        name = f"{width} {nnz}"
        steps[name], made[name] = _step(layer, width, batch), (width, layer.nnz)
    if dense is not None:
        steps["dense"] = _step(nn.Linear(dense, dense, bias=False), dense, batch)
    times = interleave(steps, seconds=0, min_rounds=rounds)
    points = [{"width": w, "nnz": n, **_ms(times[name])} for name, (w, n) in made.items()]
    cell = {"over": over, "batch": batch, "threads": torch.get_num_threads(), "rows": points}
    if dense is not None:
        cell["dense"] = {"width": dense, **_ms(times["dense"])}
    return cell


def _step(layer: nn.Module, width: int, batch: int) -> Callable[[], None]:
    optimizer = adamw(layer)
    x, dy = torch.randn(batch, width, requires_grad=True), torch.randn(batch, width)

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).backward(dy)
        optimizer.step()

    return step


def _ms(time: Timing) -> dict[str, float]:
    return {f"{key}_ms": 1e3 * getattr(time, key) for key in ("median", "low", "high")}


def slope(points: Sequence[Mapping[str, Any]], key: str) -> float:
    """Of log(time) over log(size), by least squares: 1 where the time is in proportion.

    >>> slope([{"nnz": 1, "median_ms": 2.0}, {"nnz": 100, "median_ms": 20.0}], "nnz")
    0.5
    """
    xs = [math.log(p[key]) for p in points]
    ys = [math.log(p["median_ms"]) for p in points]
    x, y = sum(xs) / len(xs), sum(ys) / len(ys)
    rise = sum((a - x) * (b - y) for a, b in zip(xs, ys, strict=True))
    return rise / sum((a - x) ** 2 for a in xs)


def _key(cell: Cell) -> str:
    return "nnz" if cell["over"] == "weights" else "width"


def slope_line(cell: Cell) -> str:
    """The slope over the whole curve, and over its last two points."""
    points, key = cell["rows"], _key(cell)
    dense = ""
    if "dense" in cell:
        dense = f"; dense {cell['dense']['median_ms']:.4g} ms at any number of weights"
    return (
        f"time grows as {cell['over']}^{slope(points, key):.2f} over the whole curve, "
        f"^{slope(points[-2:], key):.2f} between the last two points{dense}"
    )


def scale_rows(cells: Iterable[Cell]) -> list[list[str]]:
    """The table, a row for every point."""
    return [
        [
            cell["over"],
            str(cell["threads"]),
            str(cell["batch"]),
            f"{point['width']:,}",
            f"{point['nnz']:,}",
            f"{point['median_ms']:.4g}",
            f"{point['low_ms']:.4g} to {point['high_ms']:.4g}",
            f"{1e6 * point['median_ms'] / point['nnz']:.2f}",
        ]
        for cell in cells
        for point in cell["rows"]
    ]


def plot(cells: Iterable[Cell]) -> str | None:
    """Time over present weights, as SVG; None if no cell has that curve."""
    series: dict[str, list[Point]] = {}
    levels = {}
    for cell in cells:
        if cell["over"] != "weights":
            continue
        named = f"{cell['threads']} thread{'s' * (cell['threads'] > 1)}"
        series[f"packed, {named}"] = [
            (p["nnz"], p["median_ms"], p["low_ms"], p["high_ms"]) for p in cell["rows"]
        ]
        if "dense" in cell:
            levels[f"dense, {named}"] = cell["dense"]["median_ms"]
        width, batch = cell["rows"][0]["width"], cell["batch"]
    if not series:
        return None
    title = f"A training step of one {width:,} x {width:,} layer, batch {batch}"
    return loglog_svg(title, "present weights", "milliseconds", series, levels)
