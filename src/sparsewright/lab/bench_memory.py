"""`sparsewright bench memory`: what weights, gradients, optimizer and places take, as measured.

Every figure is of a fresh process (memory_child.py) that trains an MLP for three steps of AdamW,
RigL with an update at the second: resident memory over what the same process had before the network
was there, after it had trained a tiny one. The peak while training is what a step needs, temporary
memory and what the allocator keeps included; the batch is small, so that activations are not what
is seen. Nothing is computed from sizes.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..measure.environment import cores
from .bench_run import Settings, begin, keep
from .bench_table import machine_line, printed_table, took
from .child import ask
from .memory_child import WAYS, Asked
from .tables import show

WIDTHS = (3072, 4096, 4096, 10)
SPARSITIES = (0.9, 0.99)
BATCH = 8
TARGETS = {0.9: 0.20, 0.99: 0.03}
"""Sparsity -> most of dense training's peak that packed training is to take, at WIDTHS."""
COLUMNS = (
    *("network", "way", "zeros", "batch", "building MB", "training MB", "held MB"),
    *("x dense, building", "x dense, training", "x dense, held"),
)
LEFT = 3  # columns of words; the others are figures
Cell = Mapping[str, Any]


def run_memory(
    widths: Sequence[int],
    sparsities: Sequence[float],
    batches: Sequence[int],
    settings: Settings,
    out: Path | None,
) -> Path | None:
    """Measure every way at every sparsity, print the table, write a JSON file; its path.

    The number of threads is the first of the settings'.
    """
    data = begin("memory", settings.command)
    print(machine_line(data["environment"]), flush=True)
    threads = next(iter(settings.threads), 0) or cores()
    path, start = None, time.perf_counter()
    for batch in batches:
        cell: dict[str, Any] = {"widths": list(widths), "batch": batch, "threads": threads}
        cell["rows"] = []
        data["cells"].append(cell)
        for asked in _asked(tuple(widths), sparsities, batch, threads):
            cell["rows"].append({**asdict(asked), **_measured(asked)})
            path = keep(data, start, out)
    show(printed_table("MB of 10^6 bytes", COLUMNS, memory_rows(data["cells"]), LEFT))
    print("\n".join(target_lines(data["cells"])))
    print(took(data["seconds"], len(data["cells"])))
    return path


def _asked(
    widths: tuple[int, ...], sparsities: Sequence[float], batch: int, threads: int
) -> Iterator[Asked]:
    yield Asked("dense", widths, 0.0, batch, threads)
    for sparsity in sparsities:
        for way in WAYS.names():
            if way != "dense":
                yield Asked(way, widths, sparsity, batch, threads)


def _measured(asked: Asked) -> dict[str, Any]:
    about = f"memory of {asked.way!r} at {asked.sparsity:g}"
    return ask("memory_child", asdict(asked), asked.threads, about)


def memory_rows(cells: Iterable[Cell]) -> list[list[str]]:
    """The table, a row for every way."""
    return [_row(cell, row) for cell in cells for row in cell["rows"]]


def _row(cell: Cell, row: Mapping[str, Any]) -> list[str]:
    dense = _dense(cell)
    keys = ("building", "training", "held")
    return [
        f"mlp {'-'.join(map(str, cell['widths']))}",
        row["way"],
        f"{100 * row['sparsity']:.4g} %",
        str(cell["batch"]),
        *(f"{row[key] / 1e6:.1f}" for key in keys),
        *(f"{row[key] / max(1, dense[key]):.3f}" for key in keys),
    ]


def _dense(cell: Cell) -> Mapping[str, Any]:
    return next(row for row in cell["rows"] if row["way"] == "dense")


def target_lines(cells: Iterable[Cell]) -> list[str]:
    """Whether the peak of packed training meets its targets."""
    lines = []
    for cell in cells:
        for row in cell["rows"]:
            target = TARGETS.get(row["sparsity"])
            if not row["way"].startswith("packed") or target is None:
                continue
            if tuple(cell["widths"]) != WIDTHS:
                continue
            ratio = row["training"] / max(1, _dense(cell)["training"])
            verdict = "met" if ratio <= target else "missed"
            lines.append(
                f"target {verdict}: {row['way']} at {100 * row['sparsity']:.4g} %, batch "
                f"{cell['batch']}: {ratio:.3f}x the peak of dense training, wanted {target:g}x"
            )
    return lines
