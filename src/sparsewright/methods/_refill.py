"""Drop, then fill every group up to a number of units: where that number changes while training.

Methods that keep the number constant take `drop_and_grow`; these come from more units to fewer, or
take budget from another layer.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..core import Exchange, Layer, Score
from ..kernels.best import best_of, best_table
from ..ranking import best_absent, present_scores
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
) -> Exchange | None:
    """Drop the `dropped` units of least score over the whole table, and where a group still has
    more than `keep` the rest of its least; then grow every group to `keep`. None if nothing moves.

    A layer that is full, and whose budget is all units, stays as it is. Grown weights start at 0,
    so a frozen weight grows none: it only falls to `keep`. exclude_dropped, regrown: as for
    `drop_and_grow`.
    """
    if layer.is_full and layer.keep == layer.units:
        return None
    if not layer.weight.requires_grad:
        dropped, keep = 0, min(keep, layer.storage.count() // max(1, layer.groups))
    leaves = _leaving(layer, dropped, keep, drop)
    lost = int(leaves.count_nonzero())
    if len(leaves) - lost == keep * layer.groups:
        return Exchange(leaves, layer.present_units[:0]) if lost else None
    comes = best_absent(replace(layer, keep=keep), grow, leaves, last=exclude_dropped)
    if regrown == "keep":  # what goes and comes has not moved at all
        at = layer.storage.find(comes)
        leaves[at[at >= 0]] = False
        comes = comes[at < 0]
        if not len(comes) and not leaves.any():
            return None
    return Exchange(leaves, comes)


def _leaving(layer: Layer, dropped: int, keep: int, drop: str | Score) -> Tensor:
    """Bool, one entry per present unit."""
    count = layer.storage.count()
    if dropped <= 0 and count <= keep * layer.groups:
        return torch.zeros(count, dtype=torch.bool, device=layer.weight.device)
    scores = present_scores(layer, drop)
    best = best_of(scores, len(scores) - max(0, dropped))
    table = scores.masked_fill(~best, -torch.inf).view(layer.groups, -1)
    if keep < table.shape[1]:
        best &= best_table(table, keep).view(-1)
    return ~best
