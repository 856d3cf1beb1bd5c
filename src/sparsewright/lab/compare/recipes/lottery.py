"""Lottery tickets: train, prune the smallest weights, go back to the first values, and again.

Frankle, Carbin, "The Lottery Ticket Hypothesis", ICLR 2019. Each of the rounds trains a network for
all of the epochs, and so does the ticket at the end: the budget is rounds + 1 times that of others,
and is counted so.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from ..trial import Trial
from . import KINDS, Recipe
from ._masks import Masks, fit_under, pruned

ROUNDS = 5
ALLOCATE = "erk"


@KINDS.register("lottery ticket")
def lottery() -> Iterable[Recipe]:
    about = f"The mask of {ROUNDS} rounds of training and pruning by magnitude, with the values of"
    yield Recipe("lottery", f"{about} the first initialisation.", ticket)
    twin = partial(ticket, redrawn=True)
    yield Recipe("lottery-redrawn", f"{about} another one: the ticket's twin.", twin)


def ticket(trial: Trial, redrawn: bool = False) -> nn.Module:
    """Round r leaves (1 - sparsity)^(r / rounds) of the weights: as large a part in every round."""
    trial.options |= {"rounds": ROUNDS, "redrawn": redrawn}
    masks: Masks | None = None
    for number in range(1, ROUNDS + 1):
        model = trial.model()
        if masks is None:
            trial.fit(model, trial.optimizer(model))
        else:
            fit_under(trial, model, masks)
        left = (1 - trial.sparsity) ** (number / ROUNDS)
        masks = pruned(trial, model, "magnitude", ALLOCATE, 1 - left)
    model = trial.model()
    if redrawn:
        trial.redraw(model, trial.seed + 1_000_000)
    assert masks is not None
    fit_under(trial, model, masks)
    return model
