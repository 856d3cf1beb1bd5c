"""SET, sparse evolutionary training: drop the weights nearest to zero, grow at random.

Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, Nature Communications 9:2383, 2018.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units
from ..scores import as_score
from . import METHODS
from ._drop_grow import (
    GROWN,
    REGROWN,
    Grown,
    Regrown,
    check_fraction,
    check_one_group,
    check_option,
    drop_and_grow,
    drop_only,
)
from ._timing import check_timing, is_due

Last = Literal["regrow", "remove"]
LAST: tuple[str, ...] = get_args(Last)


@METHODS.register("set")
@dataclass(frozen=True)
class SET:
    """Every `every` steps move a constant fraction of each layer's units to random places.

    every: steps between updates; the paper's is one epoch, so give the steps of an epoch to
    follow it. fraction: moved at every update (zeta, 0.3), or a schedule, step -> fraction.
    start, end: updates happen from step `start` (None: after `every` steps, the end of a first
    epoch) and before `end` (None: the end of the run). last: "regrow" skips the update after the
    last epoch as the code does; "remove" drops once more before the run's last step and grows
    nothing, as the paper does, which leaves 1 - fraction of the weights (one-group patterns
    only). drop: "signed_rank" removes the fraction of each sign separately as paper and code do;
    "magnitude" over both signs. grow: the growing score. grown: new weights start at "zero" (the
    Keras code; default) or N(0, 1)/10 ("normal", the truly sparse code). exclude_dropped: as for
    RigL; the code's candidates include what was just dropped. regrown: such a unit starts anew
    ("reset"), or keeps its value and optimizer state as in RigL's code ("keep").

    >>> SET(every=10).bind(steps=30).due(10)
    True
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial '
            'neural networks with adaptive sparse connectivity inspired by network science", '
            "Nature Communications 9:2383, 2018"
        ),
        when=(
            "When training must stay sparse at every single step: it never needs a gradient of an "
            "absent weight. RigL ends higher where gradients are a good guide."
        ),
        memory="Nothing but the mask.",
        flops="3 f_S a step; inference f_S.",
        published=(
            "CIFAR-10, MLP 4000-1000-4000 with about 0.3 million weights: 74.84 % (Mocanu et al. "
            "2018); ResNet-50 on ImageNet: 72.9 % at 80 %, 69.6 % at 90 % (Evci et al. 2020, "
            "table 2)"
        ),
        departs=(
            "After its last epoch the paper removes once more and adds nothing, which leaves less "
            "than was asked for: last='remove'; the default is the code's. Starting masks hold the "
            "exact count, where the code draws places with replacement, and an update removes "
            "exactly floor(fraction * present), where the code cuts at order statistics. The paper "
            "does not say at what value weights begin. The Keras code leaves the output layer "
            "dense: skip it. Updates come every 100 steps unless told; the paper's once an epoch."
        ),
    )
    every: int = 100
    fraction: float | Schedule = 0.3
    start: int | None = None
    end: int | None = None
    drop: str | Score = "signed_rank"
    grow: str | Score = "random"
    exclude_dropped: bool = False
    regrown: Regrown = "reset"
    grown: Grown = "zero"
    last: Last = "regrow"
    step_on_update: bool = True
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        check_timing("SET", self.every, self._start, self.end)
        check_fraction("method SET", self.fraction)
        check_option("SET", "regrown", self.regrown, REGROWN)
        check_option("SET", "grown", self.grown, GROWN)
        check_option("SET", "last", self.last, LAST)

    @property
    def _start(self) -> int:
        return self.every if self.start is None else self.start

    @property
    def needs_gradient(self) -> bool:
        return as_score(self.grow).needs_gradient or as_score(self.drop).needs_gradient

    @property
    def skips_step(self) -> bool:
        return not self.step_on_update

    def bind(self, steps: int | None) -> SET:
        """Without an end the updates go on for as long as the run does."""
        if self.end is not None:
            return self
        if self.last == "regrow":
            return replace(self, end=None if steps is None else max(self._start, steps))
        if steps is None:
            raise ConfigError(
                "method SET: last='remove' must know the run's length: attach(steps=...)"
            )
        return replace(self, end=max(self._start, steps - 1))

    def begin(self, layer: Layer) -> Tensor:
        if self.last == "remove":
            check_one_group(layer)
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        return self._removes(step) or is_due(step, self.every, self._start, self.end)

    def fraction_at(self, step: int) -> float:
        """zeta, constant unless a schedule was given."""
        return self.fraction(step) if callable(self.fraction) else self.fraction

    def _removes(self, step: int) -> bool:
        return self.last == "remove" and step == self.end

    def update(self, layer: Layer, step: int) -> Exchange | None:
        if self._removes(step):
            return drop_only(layer, self.fraction_at(step), self.drop)
        return drop_and_grow(
            layer,
            self.fraction_at(step),
            drop=self.drop,
            grow=self.grow,
            exclude_dropped=self.exclude_dropped,
            regrown=self.regrown,
            grown=self.grown,
        )
