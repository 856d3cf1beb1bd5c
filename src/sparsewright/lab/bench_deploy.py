"""`sparsewright bench deploy`: how long `deploy` takes where it times every layer, and where it
reads from its cache what it measured before.

Every figure is of a fresh process (deploy_child.py), with all that it imports on the way. A model's
first process finds an empty cache, all others what that one left; the last column is another deploy
in the same process, when all is imported.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

from ..measure.environment import cores
from .bench_model import ModelCell, model_cells
from .bench_run import Settings, begin, chosen, keep
from .bench_table import machine_line, printed_table, took, zeros
from .child import ask
from .deploy_child import Asked
from .tables import show

ROUNDS = 5
SECONDS = 0.3  # of timing for each layer: what `deploy` takes if nobody says
TARGET = 1.0
"""Seconds that a deploy is to take where the cache has its timings."""
COLUMNS = (
    *("model", "zeros", "batch", "threads", "sparse layers"),
    *("first s", "second s", "from", "to", "its CPU s", "same process s"),
)
LEFT = 2  # columns of words; the others are figures
Cell = Mapping[str, Any]


def run_deploy(
    models: Sequence[str] | None,
    patterns: Sequence[str],
    sparsities: Sequence[float],
    batches: Sequence[int],
    settings: Settings,
    out: Path | None,
) -> Path | None:
    """Deploy every model in processes of its own, print the table, write a JSON file; its path.

    settings: its rounds are the processes that find the cache filled, its plan_seconds what each
    layer is timed for. The file is written anew after every cell.
    """
    data = begin("deploy", settings.command)
    print(machine_line(data["environment"]), flush=True)
    path, start = None, time.perf_counter()
    cells = chosen(model_cells(patterns, sparsities, batches, models))
    for count in dict.fromkeys(count or cores() for count in settings.threads):
        for cell in cells:
            data["cells"].append(_measured(cell, count, settings))
            path = keep(data, start, out)
    show(printed_table("seconds of sw.deploy", COLUMNS, deploy_rows(data["cells"]), LEFT))
    print("\n".join(target_lines(data["cells"])))
    print(took(data["seconds"], len(data["cells"])))
    return path


def _measured(cell: ModelCell, threads: int, settings: Settings) -> dict[str, Any]:
    """A process whose cache is empty, and others that find what it left."""
    zero = (cell.pattern, cell.sparsity)
    asked = asdict(Asked(cell.name, *zero, cell.batch, threads, settings.plan_seconds))
    found = []
    with tempfile.TemporaryDirectory(prefix="sparsewright-deploy-") as folder:
        for _ in range(1 + settings.rounds):
            about, cache = f"deploying {cell.name}", {"SPARSEWRIGHT_CACHE": folder}
            found.append(ask("deploy_child", asked, threads, about, cache))
    first, *later = found
    return {**asked, "first": first, "rows": later}


def deploy_rows(cells: Iterable[Cell]) -> list[list[str]]:
    """The table: medians over the processes, and the fastest and slowest second deploy."""
    return [_row(cell) for cell in cells]


def _row(cell: Cell) -> list[str]:
    second = _all(cell, "deploy_s")
    return [
        cell["model"],
        zeros(cell),
        str(cell["batch"]),
        str(cell["threads"]),
        f"{cell['first']['sparse']} of {cell['first']['layers']}",
        f"{cell['first']['deploy_s']:.2f}",
        *(f"{value:.2f}" for value in (median(second), min(second), max(second))),
        f"{median(_all(cell, 'cpu_s')):.2f}",
        f"{median(_all(cell, 'again_s')):.2f}",
    ]


def _all(cell: Cell, key: str) -> list[float]:
    return [row[key] for row in cell["rows"]]


def target_lines(cells: Iterable[Cell]) -> list[str]:
    """Whether the second deploys meet their target."""
    lines = []
    for cell in cells:
        seconds = median(_all(cell, "deploy_s"))
        verdict = "met" if seconds <= TARGET else "missed"
        lines.append(
            f"target {verdict}: {cell['model']}, batch {cell['batch']}, {cell['threads']} "
            f"thread{'s' * (cell['threads'] > 1)}: the second deploy takes {seconds:.2f} s, wanted "
            f"{TARGET:g} s"
        )
    return lines
