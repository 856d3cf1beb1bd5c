"""Thread scaling as rows: every side's time at each number of threads, beside its time on one."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from .bench_cell import DENSE, OURS, PEER, best
from .bench_table import times, zeros

COLUMNS = (
    *("workload", "zeros", "batch", "threads", "best dense ms", "speed-up"),
    *("best sparse peer ms", "speed-up", "sparsewright ms", "speed-up", "x dense", "of floor"),
)
"""Of `speedup_rows`; the first two are words, the others figures."""

Cell = Mapping[str, Any]


def by_workload(cells: Iterable[Cell]) -> list[list[Cell]]:
    """Cells that differ in their threads alone, together, fewest threads first."""
    groups: dict[tuple[str, str, int], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell["workload"], zeros(cell), cell["batch"]), []).append(cell)
    return [sorted(group, key=lambda cell: cell["threads"]) for group in groups.values()]


def speedup_rows(cells: Iterable[Cell], published: bool = False) -> list[list[str]]:
    """One row for every cell, as texts.

    A speed-up is the time of a side's fastest way on one thread over that of its fastest way on so
    many, which may be another; "-" where either is missing. published: leave out what may only be
    printed.
    """
    return [_row(cell, group[0], published) for group in by_workload(cells) for cell in group]


def _row(cell: Cell, first: Cell, published: bool) -> list[str]:
    texts = [cell["workload"], zeros(cell), str(cell["batch"]), str(cell["threads"])]
    for side in (DENSE, PEER, OURS):
        row = best(cell["rows"], side, published=published)
        alone = best(first["rows"], side, published=published) if first["threads"] == 1 else None
        name = row and row["name"].removeprefix("sparsewright ")
        texts += [f"{row['median_ms']:.4g} {name}" if row else "none", times(alone, row)]
    dense, ours = (best(cell["rows"], side, published=published) for side in (DENSE, OURS))
    return [*texts, times(dense, ours), f"{ours['of_floor']:.0%}" if ours else "-"]
