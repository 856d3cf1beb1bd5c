"""What recipes that prune have in common: prune and account for it, then train under the masks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ....allocate import as_allocation
from ....core import View
from ....methods.static import Static
from ....prune import prune
from ....scores import as_score
from ....summary import Summary
from ....weights import find_weights
from ..trial import Trial, loss

Masks = dict[str, Tensor]
ROWS = "channel"
"""The pattern of scores that judge whole neurons or filters."""


@dataclass(frozen=True, eq=False)
class Given:
    """The score by which masks that are known are chosen: 1 where present."""

    masks: Masks
    needs_gradient: ClassVar[bool] = False

    def __call__(self, layer: View) -> Tensor:
        return self.masks[layer.name].float()


def pruned(trial: Trial, model: nn.Module, score: str, allocate: str, sparsity: float) -> Masks:
    """Prune in one shot; the masks by the weights' names. What it measures is accounted for."""
    chosen = as_score(score)
    wishes: dict[str, Any] = {"skip": list(trial.config.skip)}
    if measures(chosen) or measures(as_allocation(allocate)):
        wishes |= {"data": trial.calibration()}
    elif chosen.needs_gradient:
        wishes |= {"loss": lambda model: mean_loss(trial, model)}
    trial.options |= {"score": score, "allocate": allocate}
    if getattr(chosen, "of_rows", False):
        last = find_weights(model)[-1].name
        sparsity = without(model, wishes["skip"], last, sparsity)
        wishes |= {"pattern": ROWS, "skip": [*wishes["skip"], last]}
        trial.options |= {"pattern": ROWS, "left dense": last}
    trial.let_go()  # of the masks of an earlier round
    model.train()
    with trial.pruning():
        summary = prune(model, sparsity, score=chosen, allocate=allocate, seed=trial.seed, **wishes)
    return masks_of(model, summary)


def is_start(score: str) -> bool:
    """Whether a score is a way to begin: it must know how many weights a layer keeps."""
    return bool(getattr(as_score(score), "needs_keep", False))


def without(model: nn.Module, skip: Sequence[str], last: str, sparsity: float) -> float:
    """The sparsity of all weights but the last, whose rows are classes, for as many absent in all.

    It may come to 1 or more, which is then refused.
    """
    sizes = {w.name: w.parameter.numel() for w in find_weights(model) if w.name not in skip}
    total = sum(sizes.values())
    return sparsity * total / max(1, total - sizes.get(last, 0))


def measures(part: object) -> bool:
    """Whether a score or an allocation looks at the model on data before it judges."""
    return callable(getattr(part, "measured", None))


def mean_loss(trial: Trial, model: nn.Module) -> Tensor:
    """Over the batches that scores look at."""
    batches = trial.calibration()
    return torch.stack([loss(model, x, y) for x, y in batches]).mean()


def masks_of(model: nn.Module, summary: Summary) -> Masks:
    """By their zeros, of the weights that were made sparse."""
    weights = {weight.name: weight.parameter for weight in find_weights(model)}
    return {row.name: weights[row.name].detach() != 0 for row in summary.rows}


def fit_under(trial: Trial, model: nn.Module, masks: Masks, begin: int = 0) -> None:
    """Train from epoch `begin` to the end under masks that stay."""
    left_out = [weight.name for weight in find_weights(model) if weight.name not in masks]
    shares = {name: {"sparsity": int((~mask).sum()) / mask.numel()} for name, mask in masks.items()}
    optimizer = trial.optimizer(model)
    method = Static(initial=Given(masks))
    sparse = trial.attach(
        model, optimizer, method=method, sparsity=None, overrides=shares, skip=left_out
    )
    for layer in sparse.layers:
        assert torch.equal(layer.mask, masks[layer.name]), layer.name
    trial.fit(model, optimizer, sparse, begin=begin)
