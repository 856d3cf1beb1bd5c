"""RigL: drop by magnitude, grow by gradient (Evci, Gale, Menick, Castro, Elsen, ICML 2020)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score
from ..facts import Facts
from ..ranking import first_units
from ..schedules import Cosine
from ..scores import as_score
from . import METHODS
from ._drop_grow import (
    GROWN,
    REGROWN,
    Grown,
    Regrown,
    check_fraction,
    check_option,
    drop_and_grow,
)
from ._timing import check_timing, end_of, is_due


@METHODS.register("rigl")
@dataclass(frozen=True)
class RigL:
    """Every `every` steps move a fraction of each layer's units to where the gradient is largest.

    every: steps between updates (DeltaT). fraction: moved at the first update (alpha); it falls
    by a half cosine to 0 at `end`, by default three quarters of the run; or a schedule of one's
    own, step -> fraction. start: step of the first
    update; the paper's and the code's is 0. drop, grow: the two scores. exclude_dropped: do not
    regrow at once what was just dropped; off as in paper and code. regrown: a unit dropped and
    grown in one update keeps its value and optimizer state as in the code, or is "reset".
    grown: new weights start at "zero" or N(0, 1)/10 ("normal"). step_on_update: take the
    optimizer's step at updates too; the paper's Algorithm 1 and the code take only one of both.
    initial: score that picks the first mask.

    >>> rigl = RigL(fraction=0.3, end=100)
    >>> [round(rigl.fraction_at(t), 4) for t in (0, 25, 50, 75, 100)]
    [0.3, 0.2561, 0.15, 0.0439, 0.0]
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Evci, Gale, Menick, Castro, Elsen, "Rigging the lottery: making all tickets '
            'winners", ICML 2020'
        ),
        when=(
            "The first choice for training from scratch at a fixed sparsity, in all patterns. With "
            "noisy gradients (reinforcement learning, bfloat16) SET does as well."
        ),
        memory=(
            "At updates the gradient of every weight: whole in masked storage, tile by tile in "
            "packed storage."
        ),
        flops=(
            "(3 f_S every + 2 f_S + f_D) / (every + 1) a step: every so often one dense gradient; "
            "inference f_S."
        ),
        published=(
            "ResNet-50 on ImageNet: 74.6 % at 80 %, 72.0 % at 90 % (uniform), 75.1 % and 73.0 % "
            "(ERK); dense 76.8 % (table 2)"
        ),
        departs=(
            "Ties in the scores go to the first unit; the published code breaks them by noise of "
            "1e-5. Its cosine lasts end - start steps, the paper's and this one end steps; the two "
            "are one for the start at 0. No update falls on `end` itself, where alpha is 0."
        ),
    )
    every: int = 100
    fraction: float | Schedule = 0.3
    start: int = 0
    end: int | None = None
    drop: str | Score = "magnitude"
    grow: str | Score = "gradient"
    exclude_dropped: bool = False
    regrown: Regrown = "keep"
    grown: Grown = "zero"
    step_on_update: bool = False
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        name = type(self).__name__  # a method made of this one has its own
        check_timing(name, self.every, self.start, self.end)
        check_fraction(f"method {name}", self.fraction)
        check_option(name, "regrown", self.regrown, REGROWN)
        check_option(name, "grown", self.grown, GROWN)

    @property
    def needs_gradient(self) -> bool:
        return as_score(self.grow).needs_gradient or as_score(self.drop).needs_gradient

    @property
    def skips_step(self) -> bool:
        return not self.step_on_update

    def bind(self, steps: int | None) -> RigL:
        return replace(self, end=end_of(type(self).__name__, self.start, self.end, steps))

    @property
    def sampled(self) -> float | None:
        """Absent units that are looked at, as a part of those kept; None: all."""
        return None

    def begin(self, layer: Layer) -> Tensor:
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        return is_due(step, self.every, self.start, self.end)

    def fraction_at(self, step: int) -> float:
        """alpha(t) = fraction / 2 * (1 + cos(pi * t / end)), t the step of the run."""
        if callable(self.fraction):
            return self.fraction(step)
        assert self.end is not None, "bind() comes first"
        return Cosine(self.fraction, 0.0, end=max(1, self.end))(step)

    def update(self, layer: Layer, step: int) -> Exchange | None:
        return drop_and_grow(
            layer,
            self.fraction_at(step),
            drop=self.drop,
            grow=self.grow,
            sample=self.sampled,
            exclude_dropped=self.exclude_dropped,
            regrown=self.regrown,
            grown=self.grown,
        )
