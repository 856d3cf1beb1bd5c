"""The sections on training of the page of figures: steps, memory, and what grows with size."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from . import bench_memory, bench_neurons, bench_scale, bench_train

Data = Mapping[str, Any]
FIGURES = "figures"
STEP = """One step is zero_grad, forward, cross-entropy, backward and AdamW. A row of a method that
moves weights is the mean over the steps of a period of which one does. Below the
tables stands what every way took."""
MEMORY = """Resident memory of fresh processes over what they had before the network was there, with
its activations: most while it was built, most in three steps (with RigL, an update at the second),
and what is held at the end: weights, gradients, optimizer state and places. Between the three the
allocator was asked to give back what it had kept unused."""
Table = Callable[[Sequence[str], Iterable[Sequence[str]], int], list[str]]


def step_lines(run: Data) -> list[str]:
    """All rows of all cells, which the summary above them does not show, and the targets."""
    lines = ["", "Every way, milliseconds of a step, 10th to 90th percentile:", ""]
    for cell in run["cells"]:
        about = f"{cell['workload']} at {100 * cell['sparsity']:.4g} %"
        about += f", {cell['threads']} thread{'s' * (cell['threads'] > 1)}"
        lines += [f"- {about}: {'; '.join(_row(row) for row in cell['rows'])}"]
    return [*lines, *targets(bench_train.target_lines(run["cells"]))]


def _row(row: Data) -> str:
    for why in ("refused", "failed"):
        if why in row:
            return f"{row['name']} {why} ({row[why]})"
    note = f" ({row['note']})" if "note" in row else ""
    return (
        f"{row['name']} {row['median_ms']:.4g} [{row['low_ms']:.4g} to {row['high_ms']:.4g}]{note}"
    )


def memory_lines(run: Data, table: Table) -> list[str]:
    rows = bench_memory.memory_rows(run["cells"])
    met = targets(bench_memory.target_lines(run["cells"]))
    return ["", MEMORY, "", *table(bench_memory.COLUMNS, rows, bench_memory.LEFT), *met]


def scale_lines(run: Data, table: Table) -> list[str]:
    lines: list[str] = []
    name = figure_name(run)
    if bench_scale.plot(run["cells"]) is not None:
        lines += ["", f"![time of a step over present weights]({FIGURES}/{name})"]
    if run["cells"]:
        rows = bench_scale.scale_rows(run["cells"])
        lines += ["", *table(bench_scale.COLUMNS, rows, bench_scale.LEFT), ""]
        lines += [f"- Over {c['over']}: {bench_scale.slope_line(c)}" for c in run["cells"]]
    for network in run["networks"]:
        lines += ["", *(f"- {line}" for line in bench_neurons.lines(network))]
    return lines


def figures(runs: Iterable[Data]) -> dict[str, str]:
    """File name -> SVG, of every plot that the page shows."""
    plots = {figure_name(run): bench_scale.plot(run["cells"]) for run in runs if _scales(run)}
    return {name: plot for name, plot in plots.items() if plot is not None}


def _scales(run: Data) -> bool:
    return bool(run["kind"] == "scale")


def figure_name(run: Data) -> str:
    """Of a run's plot: its machine's, and the threads."""
    about = run["environment"]
    threads = "-".join(dict.fromkeys(str(cell["threads"]) for cell in run["cells"]))
    name = f"scale-{about['cpu']}-{about['kernels_isa']}-{threads}".lower()
    return re.sub(r"[^a-z0-9]+", "-", name).strip("-") + ".svg"


def targets(lines: Sequence[str]) -> list[str]:
    return ["", *(f"- {line[0].upper()}{line[1:]}" for line in lines)] if lines else []
