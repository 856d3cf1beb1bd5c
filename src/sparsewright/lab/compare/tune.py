"""The learning rate of a suite: the one that served its dense network best, from a small grid.

Rates are judged on training examples that were held out, never on those that are tested with, and
all recipes then train by the one that was found.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...errors import ConfigError, StateError
from ...files import write_text
from .run import machine
from .suites import SUITES, TUNED, Problem, Suite, tuned_grids
from .trial import Trial

SEEDS = (0, 1)


def tune(name: str, *, epochs: int | None = None, path: Path = TUNED) -> dict[str, Any]:
    """Train the dense network by every rate of the suite's grid, and write down the best.

    Returns what is written of the suite: the rate, and the mean measure of every rate. ConfigError
    if no rate trains.
    """
    suite = SUITES[name]
    problem = suite.problem(suite).held_out()
    length = suite.config.epochs if epochs is None else epochs
    replace(suite.config, epochs=length)  # its error before any run
    grid: dict[str, float | None] = {}
    for rate in suite.grid:
        grid[f"{rate:g}"] = tried(suite, problem, rate, length)
    known = {float(rate): measure for rate, measure in grid.items() if measure is not None}
    if not known:
        raise ConfigError(f"suite {name}: the dense network trains by no rate of {suite.grid}")
    best = (max if suite.higher else min)(known, key=lambda rate: known[rate])
    found = {
        "lr": best,
        "grid": grid,
        "measure": f"{suite.measure} on held-out examples",
        "epochs": length,
        "seeds": list(SEEDS),
        "command": f"sparsewright compare --suite {name} --tune",
        "machine": machine(),
    }
    grids = {**tuned_grids(path), name: found}
    write_text(path, json.dumps(grids, indent=2, sort_keys=True) + "\n")
    return found


def tried(suite: Suite, problem: Problem, rate: float, epochs: int) -> float | None:
    """The mean measure over the seeds, or None if the loss did not stay finite."""
    found = []
    with_rate = replace(suite, config=replace(suite.config, lr=rate))
    for seed in SEEDS:
        trial = Trial(with_rate, problem, sparsity=0.0, seed=seed, epochs=epochs)
        model = trial.model()
        try:
            trial.fit(model, trial.optimizer(model))
        except StateError:
            return None
        found.append(problem.evaluate(model)[1])
    return statistics.fmean(found)


def grid_text(found: Mapping[str, Any]) -> str:
    """The grid, a rate on a line, and the best."""
    lines = [
        f"lr {rate}: " + ("does not train" if measure is None else f"{measure:.4f}")
        for rate, measure in found["grid"].items()
    ]
    return "\n".join([*lines, f"best: lr {found['lr']:g} ({found['measure']})"])
