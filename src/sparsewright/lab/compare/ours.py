"""What comparisons measured of each method, score and solver, for its page: Markdown from lines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .groups import Group, Outcome, outcome_of
from .page import table
from .recipes import Part, recipes
from .runs import lines_of

Row = tuple[Outcome, str]
"""A suite's outcome and a recipe that has a result in it."""


def figures(folders: Sequence[Path]) -> dict[Part, str]:
    """(kind, name) -> a table of what its recipes reached; parts that were not run are left out.

    ConfigError if there is no run in the folders.
    """
    lines = lines_of(folders)
    suites = dict.fromkeys(line["suite"] for line in lines)
    rows: dict[Part, list[Row]] = {}
    for outcome in (outcome_of(lines, suite) for suite in suites):
        have = {group.recipe for group in outcome.groups if group.is_whole}
        for name, (_, recipe) in recipes().items():
            if recipe.part and name in have:
                rows.setdefault(recipe.part, []).append((outcome, name))
    return {part: part_table(own) for part, own in rows.items()}


def part_table(rows: Sequence[Row]) -> str:
    """A row for each recipe in each suite, a column for each sparsity."""
    sparsities = sorted({s for outcome, name in rows for s in measured_at(outcome, name)})
    head = ["recipe", "measured", *(f"{sparsity:g}" for sparsity in sparsities), "dense"]
    body = []
    for outcome, name in rows:
        found = measured_at(outcome, name)
        cells = [reached(outcome, found.get(sparsity)) for sparsity in sparsities]
        body.append([name, of_what(outcome), *cells, reached(outcome, outcome.dense)])
    return "\n".join(table(head, body))


def measured_at(outcome: Outcome, recipe: str) -> Mapping[float, Group]:
    """Sparsity -> the group of a recipe, where it has a result."""
    return {g.sparsity: g for g in outcome.groups if g.recipe == recipe and g.is_whole}


def of_what(outcome: Outcome) -> str:
    """What was measured, in a few words."""
    suite = outcome.suite
    epochs = f"{outcome.epochs} epoch{'s' if outcome.epochs > 1 else ''}"
    return f"{outcome.name}, {epochs}: {suite.measure} ({suite.unit})"


def reached(outcome: Outcome, group: Group | None) -> str:
    """Mean and spread over the seeds."""
    if group is None:
        return "-"
    factor = outcome.suite.factor
    spread = "" if group.spread is None else f" ± {factor * group.spread:.2f}"
    return f"{factor * group.mean:.2f}{spread}"
