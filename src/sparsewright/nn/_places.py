"""Where the weights of a layer lie that is sparse from its start: drawn, never scored.

Every set of places that the pattern allows, with the layer's count, is equally likely. Time and
memory go with the weights that are present, however large the layer, where the pattern can say
where its units lie (patterns/_places.py).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..allocate import Uniform
from ..budget import Budgeted, solve_budget
from ..core import Pattern, Shape
from ..patterns import as_pattern, places_of
from ..sampling import draw


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
    counts = torch.full((layer.groups,), keep, device="cpu")  # whatever the default device is
    none = torch.empty(0, dtype=torch.int64, device="cpu")
    units = draw(layer.groups, layer.units, counts, none, generator or torch.default_generator)
    return places_of(chosen, units, shape).reshape(-1).sort().values
