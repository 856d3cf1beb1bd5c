"""Exactly the best k units of every group of a (groups, units) table, in plain torch: what compiled
kernels (kernels/best.py) are checked against."""

from __future__ import annotations

import torch
from torch import Tensor

FEW = 256
"""Units of a group times those that are kept of it, or dropped, up to which some passes over all
groups at once find the cut sooner than a selection in each."""


def keep_best(scores: Tensor, keep: int) -> Tensor:
    """(groups, units) scores -> bool table with exactly `keep` units present in every group.

    The highest scores win; among equals the first wins. keep: in [0, units]. -inf is allowed,
    NaN raises ValueError.

    >>> keep_best(torch.tensor([[3., 1., 2., 2.]]), 2)
    tensor([[ True, False,  True, False]])
    """
    groups, units = scores.shape
    if not 0 <= keep <= units:
        raise ValueError(f"keep must be in [0, {units}] (the units of a group); got {keep}")
    if any_nan(scores):
        raise ValueError("scores hold NaN: no order among them is defined")
    if keep in (0, units) or groups == 0:
        return torch.full((groups, units), keep > 0, dtype=torch.bool, device=scores.device)
    # Linear time: everything above the keep-th largest, then the first of its equals.
    cut = _worst_kept(scores, keep)
    best = scores >= cut  # at least `keep` in every group
    if int(best.count_nonzero()) == groups * keep:
        return best
    above, equal = scores > cut, scores == cut
    room = keep - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= room))


def _worst_kept(scores: Tensor, keep: int) -> Tensor:
    """(groups, 1) the keep-th largest of every group, 0 < keep < units."""
    units = scores.shape[1]
    dropped = units - keep + 1
    if min(keep, dropped) * units > FEW or len(scores) < units:
        return torch.kthvalue(scores, dropped, dim=1, keepdim=True).values
    better, worse = torch.maximum, torch.minimum
    if keep > dropped:
        better, worse = worse, better
    best: list[Tensor] = []  # of the units so far, in order
    for unit in scores.T.contiguous():
        for i, known in enumerate(best):
            best[i], unit = better(known, unit), worse(known, unit)
        if len(best) < min(keep, dropped):
            best.append(unit)
    return best[-1][:, None]


def any_nan(values: Tensor) -> bool:
    """Whether one is NaN; mostly a sum tells, which takes a fraction of a look at each.

    >>> any_nan(torch.tensor([1.0, torch.nan])), any_nan(torch.tensor([torch.inf, -torch.inf]))
    (True, False)
    """
    return bool(torch.isnan(values.sum())) and bool(torch.isnan(values).any())


def all_finite(values: Tensor) -> bool:
    """Whether none is NaN or infinite; mostly a sum tells here too.

    >>> all_finite(torch.tensor([1.0, torch.inf])), all_finite(torch.tensor([3e38, 3e38]))
    (False, True)
    """
    return bool(torch.isfinite(values.sum())) or bool(torch.isfinite(values).all())
