"""One threshold over the units of several layers: how a budget moves to where the best are."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from ..budget import near, share_again
from ..core import Layer, Score
from ..ranking import present_scores

Scope = Literal["layer", "global"]
SCOPES: tuple[str, ...] = get_args(Scope)
KEPT = "kept"
"""What a layer remembers on a global ramp: units that every group keeps at this step of it."""


def share_by_rank(
    layers: Sequence[Layer], score: str | Score, *, per_weight: bool = True, least: float = 0.0
) -> None:
    """Set `layer.keep` to what one ranking of all present units would keep, the total as it was.

    per_weight: units are compared by their mean score per weight, not by their sum. least: part
    of each layer's units, its best, that stay whatever the others are. Layers whose pattern fixes
    its count, or that have a sparsity of their own, keep it; every group keeps a unit at least.
    """
    free = [layer for layer in layers if layer.may_share]
    if free:
        ranking = _Ranking.of(free, score, per_weight, least)
        share_again(free, ranking.best(sum(map(_budget, free))))


def ramp_by_rank(
    layers: Sequence[Layer], score: str | Score, kept: Callable[[int, int], int]
) -> None:
    """Put into each layer's memory what one ranking of all present units keeps of it at a step of a
    ramp, and set `layer.keep` to what it would keep at the ramp's end, the total as it was.

    kept: (all, those kept at the end) -> how many the step keeps. No layer gets more than it has,
    so what is gone stays so. Layers that share no budget go down the ramp by themselves.
    """
    free = [layer for layer in layers if layer.may_share]
    now = {layer.name: kept(layer.units, layer.keep) for layer in layers if not layer.may_share}
    if free:
        ranking, final = _Ranking.of(free, score), sum(map(_budget, free))
        total = kept(sum(y.groups * y.units * y.unit_size for y in free), final)
        have = {layer.name: layer.storage.count() // layer.groups for layer in free}
        share_again(free, ranking.best(final), have)
        held = {layer.name: range(layer.keep, have[layer.name] + 1) for layer in free}
        ends = {layer.name: layer.keep for layer in free}
        now |= near(free, ranking.best(total), total, held) if total > final else ends
    for layer in layers:
        layer.memory[KEPT] = torch.tensor(now[layer.name])


@dataclass(frozen=True)
class _Ranking:
    """The present units of all layers, best first: which layer each is of, and its weights."""

    layers: Sequence[Layer]
    owner: Tensor
    size: Tensor

    @classmethod
    def of(
        cls,
        layers: Sequence[Layer],
        score: str | Score,
        per_weight: bool = True,
        least: float = 0.0,
    ) -> _Ranking:
        scores, sizes, which = [], [], []
        for index, layer in enumerate(layers):
            found = present_scores(layer, score).double().cpu()
            found = found / layer.unit_size if per_weight else found
            if (safe := math.ceil(least * len(found) - 1e-9)) > 0:
                found[found.argsort(descending=True, stable=True)[:safe]] = torch.inf
            scores.append(found)
            sizes.append(torch.full((len(found),), layer.unit_size))
            which.append(torch.full((len(found),), index))
        order = torch.cat(scores).argsort(descending=True, stable=True)
        return cls(layers, torch.cat(which)[order], torch.cat(sizes)[order])

    def best(self, total: int) -> dict[str, float]:
        """Layer name -> its weights among the best so many, one at least."""
        taken = self.size.cumsum(0) - self.size < total
        found = torch.bincount(
            self.owner[taken], weights=self.size[taken].double(), minlength=len(self.layers)
        )
        return {y.name: max(1.0, n) for y, n in zip(self.layers, found.tolist(), strict=True)}


def _budget(layer: Layer) -> int:
    return layer.keep * layer.groups * layer.unit_size
