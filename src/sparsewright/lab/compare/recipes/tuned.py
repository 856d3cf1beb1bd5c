"""Pruned in the middle: trained dense for half of the epochs, pruned in one shot by every score,
trained on under the mask for the other half. The learning rate keeps to one schedule throughout.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from ....allocate import ALLOCATIONS
from ....scores import SCORES
from ...tables import describe
from ..trial import Trial
from . import KINDS, Recipe
from ._masks import fit_under, is_start, pruned

ALLOCATE = "erk"
RANKED = "magnitude"
"""The score that is also tried with every other allocation over all layers."""


@KINDS.register("pruned in the middle")
def tuned() -> Iterable[Recipe]:
    for score, part in SCORES.items():
        if is_start(score):  # by a network's shape alone: trained weights do not matter to it
            continue
        run = partial(prune_midway, score=score)
        yield Recipe(f"tuned-{score}", describe(part), run, part=(SCORES.kind, score))
    for name, allocation in ALLOCATIONS.items():
        if not allocation.dense_first and name != ALLOCATE:
            run = partial(prune_midway, score=RANKED, allocate=name)
            own = ALLOCATIONS.kind, name
            yield Recipe(f"tuned-{RANKED}-{name}", describe(allocation), run, part=own)


def prune_midway(trial: Trial, score: str, allocate: str = ALLOCATE) -> nn.Module:
    model = trial.model()
    half = trial.epochs // 2
    trial.options |= {"dense_epochs": half}
    trial.fit(model, trial.optimizer(model), end=half)
    masks = pruned(trial, model, score, allocate, trial.sparsity)
    fit_under(trial, model, masks, begin=half)
    return model
