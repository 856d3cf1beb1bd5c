"""Between units and the weights in them, without a table of all: what packed storage needs.

A pattern may say it in closed form (`places_of`, `units_of`, `row_step`); of one that does not, a
table of the whole weight is unfolded.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import Pattern, Shape, table_size


def places_of(pattern: Pattern, units: Tensor, shape: Shape) -> Tensor:
    """Flat units (n) -> flat indices of their weights (n, unit_size), int64.

    >>> from sparsewright.patterns import as_pattern
    >>> places_of(as_pattern("block:2x2"), torch.tensor([1]), (2, 4))
    tensor([[2, 3, 6, 7]])
    """
    own = getattr(pattern, "places_of", None)
    if own is not None:
        return own(units, shape)
    order = unit_of_all(pattern, shape, units.device).argsort(stable=True)
    groups, each = table_size(pattern, shape)
    return order.view(groups * each, -1)[units]


def units_of(pattern: Pattern, places: Tensor, shape: Shape) -> Tensor:
    """Flat indices of weights (n) -> the flat unit of each (n), int64.

    >>> from sparsewright.patterns import as_pattern
    >>> units_of(as_pattern("block:2x2"), torch.tensor([2, 3, 6, 7]), (2, 4))
    tensor([1, 1, 1, 1])
    """
    own = getattr(pattern, "units_of", None)
    if own is not None:
        return own(places, shape)
    return unit_of_all(pattern, shape, places.device)[places]


def units_are_places(pattern: Pattern, shape: Shape) -> bool:
    """Whether a unit is one weight, and its number the weight's flat index.

    >>> from sparsewright.patterns import as_pattern
    >>> units_are_places(as_pattern("fan_in"), (2, 4)), units_are_places(as_pattern("2:4"), (2, 4))
    (True, False)
    """
    own = getattr(pattern, "units_of", None)
    if own is None:
        return False
    probe = torch.empty(0, dtype=torch.int64, device="cpu")
    return own(probe, shape) is probe


def row_step(pattern: Pattern, shape: Shape) -> int:
    """Rows of a weight that must stay together for their units to be a run of the table's."""
    return getattr(pattern, "row_step", max(1, shape[0]))


def unit_of_all(pattern: Pattern, shape: Shape, device: torch.device) -> Tensor:
    """(weights) the flat unit of every weight."""
    groups, units = table_size(pattern, shape)
    numbers = torch.arange(groups * units, device=device).view(groups, units)
    return pattern.unfold(numbers, shape).reshape(math.prod(shape))
