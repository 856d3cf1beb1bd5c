"""Solved in the middle: trained dense for half of the epochs, pruned by every solver, which also
mends the weights that stay, and trained on under the mask for the other half.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial

from torch import nn

from ....solvers import SOLVERS, Solver
from ....solving import solve
from ...tables import describe
from ..trial import Trial
from . import KINDS, Recipe
from ._masks import fit_under, masks_of

ALLOCATE = "erk"
DAMP = 0.01  # SparseGPT's own


@KINDS.register("solved in the middle")
def solved() -> Iterable[Recipe]:
    for solver, part in SOLVERS.items():
        run = partial(solve_midway, solver=solver)
        yield Recipe(f"solved-{solver}", describe(part), run, part=(SOLVERS.kind, solver))


def damped(solver: Solver) -> Solver:
    """With some damping where it has none of its own: few examples determine no inverse."""
    if not dataclasses.is_dataclass(solver) or getattr(solver, "damp", DAMP) != 0:
        return solver
    return dataclasses.replace(solver, damp=DAMP)


def solve_midway(trial: Trial, solver: str) -> nn.Module:
    model = trial.model()
    half = trial.epochs // 2
    chosen = damped(SOLVERS[solver]())
    trial.options |= {"dense_epochs": half, "solver": str(chosen), "allocate": ALLOCATE}
    trial.fit(model, trial.optimizer(model), end=half)
    with trial.pruning():
        summary = solve(
            model,
            trial.sparsity,
            solver=chosen,
            data=trial.calibration(),
            allocate=ALLOCATE,
            skip=trial.config.skip,
            seed=trial.seed,
        )
    fit_under(trial, model, masks_of(model, summary), begin=half)
    return model
