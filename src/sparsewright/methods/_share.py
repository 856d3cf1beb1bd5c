"""One threshold over the units of several layers: how a budget moves to where the best are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import torch

from ..budget import share_again
from ..core import Layer, Score
from ..ranking import present_scores

Scope = Literal["layer", "global"]
SCOPES: tuple[str, ...] = get_args(Scope)


def share_by_rank(
    layers: Sequence[Layer], score: str | Score, *, per_weight: bool = True, least: float = 0.0
) -> None:
    """Set `layer.keep` to what one ranking of all present units would keep, the total as it was.

    per_weight: units are compared by their mean score per weight, not by their sum. least: part
    of each layer's units, its best, that stay whatever the others are. Layers whose pattern fixes
    its count, or that have a sparsity of their own, keep it; every group keeps a unit at least.
    """
    free = [layer for layer in layers if layer.may_share]
    if not free:
        return
    scores, sizes, which = [], [], []
    for index, layer in enumerate(free):
        found = present_scores(layer, score).double().cpu()
        found = found / layer.unit_size if per_weight else found
        if (safe := math.ceil(least * len(found) - 1e-9)) > 0:
            found[found.argsort(descending=True, stable=True)[:safe]] = torch.inf
        scores.append(found)
        sizes.append(torch.full((len(found),), layer.unit_size))
        which.append(torch.full((len(found),), index))
    order = torch.cat(scores).argsort(descending=True, stable=True)
    size, owner = torch.cat(sizes)[order], torch.cat(which)[order]
    total = sum(layer.keep * layer.groups * layer.unit_size for layer in free)
    taken = size.cumsum(0) - size < total
    counts = torch.bincount(owner[taken], weights=size[taken].double(), minlength=len(free))
    wanted = {y.name: max(1.0, n) for y, n in zip(free, counts.tolist(), strict=True)}
    share_again(free, wanted)
