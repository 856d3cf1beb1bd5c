"""The results of a comparison on the terminal: a table for each sparsity, the best first."""

from __future__ import annotations

import math
from collections.abc import Iterable

from rich.table import Table

from .groups import Group, Line, Outcome

COLUMNS = (
    *("recipe", "kind", "seeds", "measure", "spread", "to dense"),
    *("parameters", "training FLOPs", "inference FLOPs", "CPU s", "wall s"),
)
LEFT = 2  # columns of words; the others are figures


def columns(outcome: Outcome) -> list[str]:
    """The headings, with what the suite measures."""
    measured = f"{outcome.suite.measure} ({outcome.suite.unit})"
    return [measured if name == "measure" else name for name in COLUMNS]


def rows(outcome: Outcome, sparsity: float) -> list[list[str]]:
    """A row for each recipe at a sparsity, the best first; the dense network is among them."""
    groups = outcome.at(sparsity)
    if outcome.dense is not None:
        groups = sorted(
            [*groups, outcome.dense], key=lambda g: g.mean, reverse=outcome.suite.higher
        )
    return [row(outcome, group) for group in groups]


def row(outcome: Outcome, group: Group) -> list[str]:
    """A group in words; FLOPs are parts of the dense network's."""
    factor, dense = outcome.suite.factor, outcome.dense
    return [
        group.recipe,
        group.kind,
        str(len(group.measures)),
        f"{factor * group.mean:.2f}",
        "-" if group.spread is None else f"{factor * group.spread:.2f}",
        f"{factor * (group.mean - dense.mean):+.2f}" if dense else "-",
        f"{group.parameters:,.0f}",
        times(group.training),
        times(group.inference),
        f"{group.cpu_seconds:.1f}",
        f"{group.seconds:.1f}",
    ]


def times(ratio: float) -> str:
    """
    >>> times(0.10345), times(float("nan"))
    ('0.103x', '-')
    """
    return "-" if math.isnan(ratio) else f"{ratio:.3f}x"


def results_tables(outcome: Outcome) -> list[Table | str]:
    """What is printed: a table for each sparsity, then what failed."""
    shown: list[Table | str] = []
    for sparsity in outcome.sparsities:
        table = Table(
            title=f"{outcome.name}, sparsity {sparsity:g}, {outcome.epochs} epochs",
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 2, 0, 0),
        )
        for number, name in enumerate(columns(outcome)):
            table.add_column(name, justify="left" if number < LEFT else "right", overflow="fold")
        for cells in rows(outcome, sparsity):
            table.add_row(*cells)
        shown.append(table)
    return [*shown, *failures(outcome)]


def failures(outcome: Outcome) -> list[str]:
    """A line for each error of each recipe, with the runs that ended in it."""
    alike: dict[tuple[str, str], list[Line]] = {}
    for line in outcome.lines:
        if "error" in line:
            alike.setdefault((line["recipe"], line["error"]), []).append(line)
    return [
        f"failed: {recipe}, sparsity {listed(own, 'sparsity')}, seed {listed(own, 'seed')}"
        f"{f' ({len(own)} runs)' if len(own) > 1 else ''}: {error}"
        for (recipe, error), own in alike.items()
    ]


def listed(lines: Iterable[Line], what: str) -> str:
    """Each value once, ascending.

    >>> listed([{"seed": 1}, {"seed": 0}, {"seed": 1}], "seed")
    '0, 1'
    """
    return ", ".join(f"{value:g}" for value in sorted({line[what] for line in lines}))
