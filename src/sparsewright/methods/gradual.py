"""Gradual magnitude pruning, GMP: a little every few steps on a cubic ramp (Zhu & Gupta 2018).

At update step t a layer keeps keep + (first - keep) * (1 - x)^3 units of every group, x being the
fraction of the ramp that is over; the last update, at `end`, meets the budget exactly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..arguments import number
from ..core import Layer, Score
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import best_units
from ..schedules import Cubic
from ..scores import as_score
from . import METHODS
from ._drop_grow import check_option
from ._share import KEPT, SCOPES, Scope, ramp_by_rank
from ._timing import check_timing, check_within, end_of, is_due


@METHODS.register("gradual")
@dataclass(frozen=True)
class Gradual:
    """From dense to the asked sparsity while training.

    every: steps between updates. start, end: first and last step of the ramp; nothing is pruned
    before, and end defaults to three quarters of the run. initial_sparsity: where the ramp starts,
    in [0, 1). score: what is kept. scope: every "layer" goes down a ramp of its own to the budget
    that `allocate` gave it, or "global": the whole network goes down one, and at each step all
    layers' units are ranked together, by their score per weight; that moves budget between layers.
    Departure from TF's implementation, where an absent weight keeps its old value and may return:
    here absent weights are zero, so a pruned weight stays pruned.

    >>> ramp = Gradual(every=10, start=0, end=100)
    >>> [ramp.kept(1000, 100, t) for t in (0, 10, 50, 100)]
    [1000, 757, 213, 100]
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Zhu, Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model '
            'compression", ICLR workshop 2018'
        ),
        when=(
            "When training may be dense at first and only the result must be sparse: hard to beat "
            "at moderate sparsity."
        ),
        memory="Dense at first: all weights, gradients and optimizer state.",
        flops="3 f_D (1 - s_t) a step, averaged over the run; inference f_S.",
        published=(
            "ResNet-50 on ImageNet, in the runs of Gale, Elsen, Hooker 2019: 75.6 % at 80 %, "
            "73.9 % at 90 % (quoted by Evci et al. 2020, table 2)"
        ),
        departs=(
            "A pruned weight stays pruned; in TensorFlow's implementation it keeps its value and "
            "may return. `every` and `end` have defaults of our own. At `end` there is an update "
            "whether or not `every` divides the ramp, so that the sparsity is met. With "
            "scope='global' layers whose pattern fixes their count (N:M), or with a sparsity of "
            "their own, go down their own ramp, and every group keeps a unit at least: a layer of "
            "small weights may come to that."
        ),
    )
    every: int = 100
    start: int = 0
    end: int | None = None
    initial_sparsity: float = 0.0
    score: str | Score = "magnitude"
    scope: Scope = "layer"
    skips_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_option("Gradual", "scope", self.scope, SCOPES)
        check_timing("Gradual", self.every, self.start, self.end)
        number("method Gradual: initial_sparsity", self.initial_sparsity)
        if not 0.0 <= self.initial_sparsity < 1.0:
            raise ConfigError(
                f"method Gradual: initial_sparsity must be in [0, 1); got {self.initial_sparsity}"
            )

    @property
    def needs_gradient(self) -> bool:
        return as_score(self.score).needs_gradient

    def bind(self, steps: int | None) -> Gradual:
        """Raises ConfigError if the run ends before the ramp does: the sparsity would be missed."""
        end = end_of("Gradual", self.start, self.end, steps)
        check_within("Gradual", "the ramp must end", end, steps)
        return replace(self, end=end)

    def begin(self, layer: Layer) -> Tensor:
        first = layer.units if self.start > 0 else self.kept(layer.units, layer.keep, 0)
        if self.scope == "global":
            layer.memory[KEPT] = torch.tensor(first)
        return self._best(layer, first)

    def due(self, step: int) -> bool:
        return step == self.end or is_due(step, self.every, self.start, self.end)

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        """Layers without a gradient to score by wait for their next one, but not at the end."""
        if self.scope == "global":
            waits = self.needs_gradient and step != self.end
            ranked = [y for y in layers if not waits or y.storage.has_gradient()]
            ramp_by_rank(ranked, self.score, lambda units, keep: self.kept(units, keep, step))

    def update(self, layer: Layer, step: int) -> Tensor:
        if self.scope == "global":
            return self._best(layer, int(layer.memory[KEPT]))
        return self._best(layer, self.kept(layer.units, layer.keep, step))

    def without_gradient(self, layer: Layer, step: int) -> Tensor | None:
        """Nothing on the ramp; at its end StateError, as the budget would be missed."""
        return self.update(layer, step) if step == self.end else None

    def kept(self, units: int, keep: int, step: int) -> int:
        """Units present in every group of `units` at a step, on the way down to `keep`."""
        assert self.end is not None, "bind() comes first"
        first = max(keep, units - math.floor(self.initial_sparsity * units + 1e-9))
        length = max(1, self.end - self.start)
        ramp = Cubic(first, keep, begin=self.start, end=self.start + length)
        return math.ceil(ramp(step) - 1e-9)

    def _best(self, layer: Layer, keep: int) -> Tensor:
        present = layer.storage.count() // max(1, layer.groups)
        if keep >= present:  # also before there is a gradient to score by
            return layer.present_units
        return best_units(layer, self.score, keep)
