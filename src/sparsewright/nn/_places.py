"""Where the weights of a layer lie that is sparse from its start: drawn, never scored.

Every set of places that the pattern allows, with the layer's count, is equally likely. Time and
memory go with the weights that are present, however large the layer; a pattern that cannot say
where its units lie (`places`) takes a bool for every weight instead.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ..allocate import Uniform
from ..budget import Budgeted, solve_budget
from ..core import Pattern, Shape
from ..patterns import as_pattern

FEW = 4
"""Up to a quarter of the units are drawn one by one; of more, a random order of all is made."""


def draw_places(
    name: str,
    shape: Shape,
    sparsity: float | None,
    pattern: str | Pattern,
    generator: torch.Generator | None,
) -> Tensor:
    """Flat places, int64, ascending, in a weight of this shape.

    sparsity: in [0, 1); None takes the one that the pattern fixes (N:M). Of N weights
    N - floor(sparsity * N) are present where the pattern holds that many, else the nearest count
    that it holds. Raises MisfitError or BudgetError.

    >>> draw_places("fc", (2, 4), None, "2:4", None).shape
    torch.Size([4])
    """
    chosen = as_pattern(pattern)
    layer = Budgeted.of(name, shape, chosen, sparsity)
    keep = solve_budget([layer], None, Uniform(dense_first=False))[name]
    if keep == layer.units:
        return torch.arange(layer.numel, device="cpu")
    units = draw_units(layer.groups, layer.units, keep, generator)
    if hasattr(chosen, "places"):
        return chosen.places(units, shape).sort().values
    table = torch.zeros(layer.groups * layer.units, dtype=torch.bool, device="cpu")
    table[units] = True
    mask = chosen.unfold(table.view(layer.groups, layer.units), shape)
    return mask.reshape(math.prod(shape)).nonzero().squeeze(1)


def draw_units(groups: int, units: int, keep: int, generator: torch.Generator | None) -> Tensor:
    """(groups * keep) int64, ascending: group * units + unit of `keep` units of every group.

    >>> draw_units(3, 1000, 2, None).div(1000, rounding_mode="floor")
    tensor([0, 0, 1, 1, 2, 2])
    """
    options: dict[str, Any] = {"generator": generator, "device": "cpu"}
    if keep * FEW > units:
        table = torch.zeros(groups, units, dtype=torch.bool, device="cpu")
        if groups == 1:
            table[0, torch.randperm(units, **options)[:keep]] = True
        else:
            keys = torch.rand(groups, units, dtype=torch.float64, **options)
            table.scatter_(1, keys.topk(keep, dim=1, sorted=False).indices, True)
        return table.flatten().nonzero().squeeze(1)
    # One draw for each unit that is missing, again for those that came twice: as one by one.
    taken = torch.empty(0, dtype=torch.int64, device="cpu")
    missing = torch.full((groups,), keep, device="cpu")
    while bool(missing.any()):
        group = torch.repeat_interleave(torch.arange(groups, device="cpu"), missing)
        drawn = torch.randint(units, (len(group),), **options) + group * units
        taken = torch.cat([taken, drawn]).unique()
        counts = torch.bincount(taken.div(units, rounding_mode="floor"), minlength=groups)
        missing = keep - counts
    return taken
