"""Solved in the middle: trained dense for half of the epochs, pruned by every solver, which also
mends the weights that stay, and trained on under the mask for the other half.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from ....solvers import SOLVERS
from ....solving import solve
from ....weights import find_weights
from ...tables import describe
from ..trial import Trial
from . import KINDS, Recipe
from ._masks import fit_under, masks_of

ALLOCATE = "erk"


@KINDS.register("solved in the middle")
def solved() -> Iterable[Recipe]:
    for solver, part in SOLVERS.items():
        yield Recipe(f"solved-{solver}", describe(part), partial(solve_midway, solver=solver))


def solve_midway(trial: Trial, solver: str) -> nn.Module:
    model = trial.model()
    half = trial.epochs // 2
    trial.options |= {"dense_epochs": half, "solver": solver, "allocate": ALLOCATE}
    trial.fit(model, trial.optimizer(model), end=half)
    lookups = [weight.name for weight in find_weights(model) if weight.is_lookup]
    with trial.pruning():
        summary = solve(
            model,
            trial.sparsity,
            solver=solver,
            data=trial.calibration(),
            allocate=ALLOCATE,
            skip=lookups,
            seed=trial.seed,
        )
    fit_under(trial, model, masks_of(model, summary), begin=half)
    return model
