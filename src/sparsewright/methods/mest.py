"""MEST: drop by magnitude and gradient of what is present, grow at random, ever less.

Yuan et al., "MEST: accurate and fast memory-economic sparse training framework on the edge",
NeurIPS 2021.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score, View
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units
from ..scores._wide import gradient_of, wide
from . import METHODS
from ._drop_grow import check_fraction
from ._interval import every_of
from ._refill import refill
from ._timing import check_timing, check_within, end_of, is_due

HALVES_AT = 0.75
"""Part of the span up to `end` after which ratio and bound are half of what they were: the
published scripts change at epochs 90 and 120 of 160."""
UPDATES = 32
"""In a run: every 5 of 160 epochs."""


@dataclass(frozen=True)
class Importance:
    """|w| + weight * |g|, of present weights."""

    weight: float
    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return wide(layer.weight).abs() + self.weight * gradient_of(layer).abs()


@METHODS.register("mest")
@dataclass(frozen=True)
class MEST:
    """Elastic mutation: drop the least |w| + gradient |g|, grow at random, in ever smaller steps.

    every: steps between updates; None: a 32nd of the run. fraction: of the present weights moved
    at an update (the mutation ratio); it is halved at three quarters of the span up to `end`, by
    default three quarters of the run, where it becomes 0; or a schedule, step -> fraction.
    gradient: weight of |g| against |w|. soft: 0 (EM), or the soft memory bound (EM&S): so much
    more than the budget, as a part of it, is held between updates, each of which drops to the
    budget and grows to the bound; the bound is halved as the ratio is, and is the budget at `end`.
    exclude_dropped: as for RigL. initial: score that picks the first mask.

    >>> mest = MEST(soft=0.5).bind(steps=160)
    >>> mest.every, [mest.fraction_at(t) for t in (5, 90, 120)], [
    ...     mest.bound(100, 1000, t) for t in (5, 90, 120)]
    (5, [0.2, 0.1, 0.0], [150, 125, 100])
    """

    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        source=(
            'Yuan et al., "MEST: Accurate and Fast Memory-Economic Sparse Training Framework on '
            'the Edge", NeurIPS 2021'
        ),
        when=(
            "When training must stay sparse at every step, on a device short of memory; with soft "
            "> 0 where a little more memory is left during training. RigL ends higher where an "
            "occasional dense gradient is affordable."
        ),
        memory="Nothing but the mask; with soft, so many more weights until `end`.",
        flops="3 f_S a step (with soft, of the weights held at the time); inference f_S.",
        published=(
            "ResNet-50 on ImageNet, EM: 75.39 % at 80 % sparsity, 72.58 % at 90 %, as tabulated by "
            "the authors of SRigL"
        ),
        departs=(
            "The paper's weight of the gradient could not be verified: 0.01 is this library's, and "
            "the public code's is 0. It is the gradient of the step at hand. A layer without a "
            "gradient is judged by magnitude. The public scripts also update before the first "
            "step, and leave the first convolution dense: skip it."
        ),
    )
    every: int | None = None
    fraction: float | Schedule = 0.2
    end: int | None = None
    gradient: float = 0.01
    soft: float = 0.0
    exclude_dropped: bool = False
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        check_timing("MEST", 1 if self.every is None else self.every, 0, self.end)
        check_fraction("method MEST", self.fraction)
        for name, value in (("gradient", self.gradient), ("soft", self.soft)):
            if not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"method MEST: {name} must be 0 or more; got {value}")

    def bind(self, steps: int | None) -> MEST:
        """Raises ConfigError if the run ends before the soft bound has met the budget."""
        end = end_of("MEST", 0, self.end, steps)
        if self.soft:
            check_within("MEST", "the soft bound must meet the budget", end, steps)
        length = math.ceil(end / 0.75) if steps is None else steps
        return replace(self, end=end, every=every_of(self.every, length, length, UPDATES))

    def begin(self, layer: Layer) -> Tensor:
        bound = self.bound(layer.keep, layer.units, 0)
        return first_units(replace(layer, keep=bound), self.initial)

    def due(self, step: int) -> bool:
        assert self.every is not None, "bind() comes first"
        closes = self.soft > 0 and step == self.end
        return closes or is_due(step, self.every, self.every, self.end)

    def fraction_at(self, step: int) -> float:
        """The mutation ratio at a step: whole, half, none."""
        return self.fraction(step) if callable(self.fraction) else self.fraction * self._part(step)

    def bound(self, keep: int, units: int, step: int) -> int:
        """Units held in every group after an update at this step; keep, or with soft more."""
        more = math.floor(keep * self.soft * self._part(step) + 1e-9)
        return min(units, keep + more)

    def update(self, layer: Layer, step: int) -> Exchange | None:
        count, bound = layer.storage.count(), self.bound(layer.keep, layer.units, step)
        if self.soft:
            dropped = count - layer.keep * layer.groups
        else:
            dropped = math.floor(self.fraction_at(step) * count + 1e-9)
        judged = self.gradient > 0 and layer.weight.grad is not None
        return refill(
            layer,
            dropped,
            bound,
            drop=Importance(self.gradient) if judged else "magnitude",
            grow="random",
            exclude_dropped=self.exclude_dropped,
            regrown="reset",
        )

    def _part(self, step: int) -> float:
        assert self.end is not None, "bind() comes first"
        if step >= self.end:
            return 0.0
        return 1.0 if step < HALVES_AT * self.end else 0.5
