"""Drop, then fill every group up to a number of units: where that number changes while training.

Methods that keep the number constant take `drop_and_grow`; these come from more units to fewer, or
take budget from another layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core import Layer, Score, Update, keep_best
from ..ranking import best_absent, present_scores
from ..sampling import is_in, merged
from ._drop_grow import Regrown


def refill(
    layer: Layer,
    dropped: int,
    keep: int,
    *,
    drop: str | Score,
    grow: str | Score,
    exclude_dropped: bool = False,
    regrown: Regrown = "keep",
) -> Update | None:
    """Drop the `dropped` units of least score over the whole table, and where a group still has
    more than `keep` the rest of its least; then grow every group to `keep`. None if nothing moves.

    exclude_dropped, regrown: as for `drop_and_grow`. Grown weights start at 0.
    """
    present = layer.present_units
    kept = _survivors(layer, dropped, keep, drop)
    if len(kept) == keep * layer.groups:
        return None if len(kept) == len(present) else Update(kept)
    gone = present[~is_in(present, kept)]
    last = gone if exclude_dropped else gone[:0]
    grown = best_absent(replace(layer, keep=keep), grow, kept, last=last)
    units = merged(kept, grown)
    if regrown == "keep" and torch.equal(units, present):
        return None
    return Update(units, grown if regrown == "reset" else None)


def _survivors(layer: Layer, dropped: int, keep: int, drop: str | Score) -> Tensor:
    """Flat units, ascending."""
    present = layer.present_units
    if dropped <= 0 and len(present) <= keep * layer.groups:
        return present
    scores = present_scores(layer, drop)
    best = keep_best(scores.view(1, -1), len(scores) - max(0, dropped)).view(-1)
    table = scores.masked_fill(~best, -torch.inf).view(layer.groups, -1)
    if keep < table.shape[1]:
        best &= keep_best(table, keep).view(-1)
    return present[best]
