"""Sensitivity: every layer is pruned alone at a few sparsities, and the budget is shared so that
each would raise the loss by as much (layers' sensitivities: Han et al. 2015; Li et al. 2017)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..allocate import ALLOCATIONS
from ..arguments import number, told
from ..calibration import Calibration
from ..core import Layer, Score
from ..errors import ConfigError, StateError
from ..facts import Facts
from ..keeping import keep_best
from ..patterns import places_of
from ..ranking import present_scores
from ._measured import Found, ToMeasure, solve

Curve = tuple[tuple[float, float], ...]
"""(sparsity, rise of the loss), both ascending, from (0, 0) to sparsity 1."""


@dataclass(frozen=True)
class Sensitivity(ToMeasure):
    """Equal rise: every layer is as sparse as it may be before the mean loss rises by more than a
    threshold that is one for all layers, and that meets the budget.

    levels: sparsities, in (0, 1), at which the loss is measured, besides 0 and 1 (the layer
    absent); between them it is taken as linear, and where it falls as level. Units go by the score
    in use. Needs data with targets, or a loss.

    >>> from sparsewright import prune
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
    >>> prune(model, 0.5, allocate="sensitivity", data=[batch]).sparsity
    0.5
    """

    levels: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9, 0.95)
    facts: ClassVar[Facts] = Facts(
        source="Han, Pool, Tran, Dally: Learning both Weights and Connections for Efficient Neural "
        "Networks. NeurIPS 2015, and Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for "
        "Efficient ConvNets. ICLR 2017, where people set budgets by such curves.",
        when="For trained networks of some ten layers, whose sizes say little about their worth.",
        memory="One copy of one layer's values.",
        flops="A dense forward (f_D) of all data for each layer and level.",
        published="none verified",
        departs="The papers leave the step from curves to budgets to the reader; equal rise is "
        "this library's rule. That layers add up is an assumption.",
    )

    def __post_init__(self) -> None:
        if not isinstance(self.levels, tuple | list):
            raise ConfigError(
                f"allocation Sensitivity: levels must be several; got {told(self.levels)}"
            )
        for level in self.levels:
            number("allocation Sensitivity: a level", level)
        ascending = all(a < b for a, b in zip(self.levels, self.levels[1:], strict=False))
        if not (ascending and all(0 < level < 1 for level in self.levels)):
            raise ConfigError(
                f"allocation Sensitivity: levels must be in (0, 1) and ascend; got {self.levels}"
            )

    def measured(self, calibration: Calibration, score: Score) -> Curves:
        """ConfigError without a loss; StateError for one that is not finite."""
        start = calibration.mean_loss()
        return Curves(
            {y.name: self._curve(y, calibration, score, start) for y in calibration.layers}
        )

    def _curve(self, layer: Layer, calibration: Calibration, score: Score, start: float) -> Curve:
        order = present_scores(layer, score)
        kept = layer.weight.detach().clone()
        points, worst = [(0.0, 0.0)], 0.0
        try:
            for level in (*self.levels, 1.0):
                _silence(layer, order, kept, level)
                rise = calibration.mean_loss() - start
                if not math.isfinite(rise):
                    raise StateError(
                        f"layer {layer.name!r}: the loss at sparsity {level} is not finite"
                    )
                worst = max(worst, rise)
                points.append((level, worst))
        finally:
            _write(layer, kept)
        return tuple(points)


@dataclass(frozen=True, eq=False)
class Curves(Found[Curve]):
    """Sparsities at an equal rise of the loss, by the layers' curves.

    >>> curves = Curves({"a": ((0, 0), (1, 1)), "b": ((0, 0), (1, 3))})
    >>> found = curves({"a": (4, 4), "b": (4, 4)}, 0.5)
    >>> {name: round(s, 6) for name, s in found.items()}
    {'a': 0.75, 'b': 0.25}
    """

    def shared(self, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        absent = sparsity * sum(sizes.values())

        def reached(rise: float) -> float:
            return math.fsum(n * sparsest(self.found[y], rise) for y, n in sizes.items())

        top = max((self.found[name][-1][1] for name in sizes), default=0.0)
        high = solve(reached, absent, 0.0, top)
        # Where curves are level many sparsities have one rise: there all go as far as it takes.
        low = math.nextafter(high, -math.inf)
        more, less = reached(high), reached(low)
        part = (absent - less) / (more - less) if more > less else 1.0
        found = {}
        for name in sizes:
            a, b = sparsest(self.found[name], low), sparsest(self.found[name], high)
            found[name] = min(max(a + part * (b - a), 0.0), 1.0)
        return found


def sparsest(curve: Curve, rise: float) -> float:
    """The largest sparsity whose rise is no more than this one; 0 if there is none.

    >>> sparsest(((0, 0), (0.5, 1), (1, 3)), 2)
    0.75
    """
    if rise < 0:
        return 0.0
    for (s0, r0), (s1, r1) in zip(reversed(curve[:-1]), reversed(curve[1:]), strict=True):
        if r1 <= rise:
            return s1
        if r0 <= rise:
            return s0 + (s1 - s0) * (rise - r0) / (r1 - r0)
    return 0.0


def _silence(layer: Layer, scores: Tensor, values: Tensor, sparsity: float) -> None:
    """Put units of least score to 0, until that part of the layer's units is absent."""
    table = scores.view(max(1, layer.groups), -1)
    count = min(table.shape[1], round((1 - sparsity) * layer.units))
    keep = keep_best(table, count).reshape(-1)
    gone = layer.present_units[~keep]
    places = places_of(layer.pattern, gone, layer.shape).reshape(-1)
    changed = values.clone()
    if values.shape == layer.shape:
        changed.view(-1)[places] = 0.0
    else:  # packed: values in order of their places
        there = places_of(layer.pattern, layer.present_units, layer.shape).reshape(-1).sort().values
        changed[torch.searchsorted(there, places)] = 0.0
    _write(layer, changed)


@torch.no_grad()
def _write(layer: Layer, values: Tensor) -> None:
    layer.weight.copy_(values)


ALLOCATIONS.register("sensitivity")(Sensitivity())
