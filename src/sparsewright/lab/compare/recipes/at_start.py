"""Pruned before training: by every score, on the first values; then trained under the mask.

Scores compete over the whole network, as SNIP, GraSP and SynFlow have it, and weights keep their
first values, so that scores differ in the masks alone. Starts by a network's shape rank no layers,
and get ERK's shares.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn

from ....scores import SCORES
from ...tables import describe
from ..trial import Trial
from . import KINDS, Recipe
from ._masks import fit_under, is_start, pruned

RANKED, SHARED = "global", "erk"


@KINDS.register("pruned at the start")
def at_start() -> Iterable[Recipe]:
    for score, part in SCORES.items():
        run = partial(prune_first, score=score)
        yield Recipe(f"start-{score}", describe(part), run, part=(SCORES.kind, score))


def prune_first(trial: Trial, score: str) -> nn.Module:
    model = trial.model()
    allocate = SHARED if is_start(score) else RANKED
    masks = pruned(trial, model, score, allocate, trial.sparsity)
    fit_under(trial, model, masks)
    return model
