"""A plan as people read it: a table of the layers, then what could not serve, each reason once."""

from __future__ import annotations

import io
import re
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .image_units import IMAGES
from .kernels import KERNELS
from .kernels._ops import RESERVE
from .kernels.choose import is_dense
from .layouts import FP32

if TYPE_CHECKING:
    from .plan import Candidate, LayerPlan, PieceTiming, Plan

WIDTH = 150
NUMBERS = ("sparsity", "time", "best dense", "speed-up", "bytes")
COLUMNS = ("layer", "shape", "sparsity", "pattern", "kernel", *NUMBERS[1:])
WHOLE = ("shape", "kernel", "time", "best dense")
"""Columns that are never cut or wrapped."""
NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
SHOWN = 3
"""Names of a list that are written out."""


def print_plan(plan: Plan) -> str:
    """The table, the notes, and the refusals.

    >>> from sparsewright.plan import Plan
    >>> print_plan(Plan(1, 1, ())).splitlines()[0]
    'batch 1, threads: 1'
    """
    out = Console(file=io.StringIO(), width=WIDTH, no_color=True, highlight=False)
    out.print(_table(plan))
    for line in _remarks(plan):
        out.print(Text(line), soft_wrap=True)
    assert isinstance(out.file, io.StringIO)
    return "\n".join(line.rstrip() for line in out.file.getvalue().rstrip().splitlines())


def _table(plan: Plan) -> Table:
    title = f"batch {plan.batch}, threads: {plan.threads}"
    planned = plan.pieces.planned if plan.pieces else plan.batch
    if planned != plan.batch:
        title += f"; times of layers are those for {planned} sample{'s' if planned > 1 else ''}"
    table = Table(title=title, title_justify="left")
    for name in COLUMNS:
        table.add_column(
            name, justify="right" if name in NUMBERS else "left", no_wrap=name in WHOLE
        )
    for row in plan.layers:
        table.add_row(*(Text(cell) for cell in _cells(row)))
    return table


def _cells(row: LayerPlan) -> list[str]:
    shape = "x".join(str(s) for s in row.shape)
    geometry = row.operation.split(" ")[2:]  # of a convolution, but for the sizes of its kernel
    return [
        row.layer,
        " ".join([shape, *geometry]),
        f"{row.sparsity:.1%}",
        row.pattern,
        row.kernel if row.values == FP32 else f"{row.kernel} {row.values}",
        _time(next((c for c in row.candidates if c.kernel == row.kernel), None)),
        _dense(row),
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
        f"{row.bytes:,} of {row.dense_bytes:,}" if row.is_sparse else f"{row.bytes:,}",
    ]


def _time(candidate: Candidate | None) -> str:
    if candidate is None or candidate.median_ms is None:
        return "-"
    return f"{candidate.median_ms:.3g} ms"


def best_dense(row: LayerPlan) -> Candidate | None:
    """The fastest of the dense candidates, which are timed fastest first."""
    timed = [c for c in row.candidates if c.refused is None and c.kernel in KERNELS]
    return next((c for c in timed if is_dense(c.kernel)), None)


def _dense(row: LayerPlan) -> str:
    best = best_dense(row)
    if best is None:
        return "-"
    name = best.kernel.removeprefix("dense.").removeprefix(f"{KERNELS[best.kernel].operation}.")
    return f"{name} {_time(best)}"


def _remarks(plan: Plan) -> list[str]:
    lines = [] if any(row.is_sparse for row in plan.layers) else ["No layer is served sparse."]
    lines.append(
        "Speed-up: over the best dense candidate of the same layer, timed in turn, each with its "
        "weight in the caches."
    )
    return [*lines, *_pieces(plan), *plan.notes, *_refusals(plan)]


def _pieces(plan: Plan) -> list[str]:
    """How the batch is run, and how long the fastest of the other ways takes."""
    if plan.pieces is None:
        return []
    if plan.pieces.why_whole is not None:
        return [f"The batch runs whole: {plan.pieces.why_whole}."]
    size, timings, beside = plan.pieces.size, plan.pieces.timings, plan.pieces.side_by_side
    way = "whole" if size is None else f"{_cut(size, beside)}, by kernels for {plan.pieces.planned}"
    best = next((f": {t.median_ms:.3g} ms" for t in timings), "")
    chosen = [_is_whole(t, plan) for t in timings[:1]]
    others = [t for t in timings if [_is_whole(t, plan)] != chosen][:1]
    rest = [
        f"; {'whole' if _is_whole(t, plan) else _cut(t.size, t.side_by_side)}: {t.median_ms:.3g} ms"
        for t in others
    ]
    return [f"The batch runs {way}{best}{''.join(rest)}."]


def _cut(size: int, beside: bool) -> str:
    if not beside:
        return f"in pieces of {size}"
    if size == IMAGES:
        return f"{size} images side by side"
    return f"side by side in patches of {size} image{'s' if size > 1 else ''}"


def _is_whole(timing: PieceTiming, plan: Plan) -> bool:
    return timing.size == plan.batch and not timing.side_by_side


def _refusals(plan: Plan) -> list[str]:
    """One line for each reason; of reasons that differ in numbers alone it says from where to where
    these go."""
    found: dict[str, tuple[list[str], dict[str, None], dict[str, None]]] = {}
    for row in plan.layers:
        for candidate in row.candidates:
            if candidate.refused is None or candidate.refused == RESERVE:
                continue
            kind = NUMBER.sub("#", candidate.refused)
            reasons, kernels, layers = found.setdefault(kind, ([], {}, {}))
            reasons.append(candidate.refused)
            kernels[candidate.kernel] = layers[repr(row.layer)] = None
    return [
        f"not {_listed(list(kernels))} for {_listed(list(layers))}: {_joined(reasons)}"
        for reasons, kernels, layers in found.values()
    ]


def _joined(reasons: list[str]) -> str:
    """
    >>> _joined(["17% is padding; at most 10%", "71% is padding; at most 10%"])
    '17 to 71% is padding; at most 10%'
    """
    given = iter(zip(*(NUMBER.findall(reason) for reason in reasons), strict=True))

    def span(_: re.Match[str]) -> str:
        column = sorted(set(next(given)), key=lambda n: float(n.replace(",", "")))
        return column[0] if len(column) == 1 else f"{column[0]} to {column[-1]}"

    return NUMBER.sub(span, reasons[0])


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
