"""In-time over-parameterisation: explore more weights over the run by rarer, larger updates.

Liu, Yin, Mocanu, Pechenizkiy, "Do we actually need dense over-parameterization? In-time
over-parameterization in sparse training", ICML 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score
from ..ranking import first_units
from ..schedules import Cosine
from ..scores import as_score
from ._drop_grow import (
    GROWN,
    REGROWN,
    Grown,
    Regrown,
    check_fraction,
    check_option,
    drop_and_grow,
)
from ._interval import every_of, length_of
from ._timing import check_timing, is_due

SOURCE = (
    'Liu, Yin, Mocanu, Pechenizkiy, "Do We Actually Need Dense Over-Parameterization? In-Time '
    'Over-Parameterization in Sparse Training", ICML 2021'
)


@dataclass(frozen=True)
class ITOP:
    """What RigL-ITOP and SET-ITOP share: all but what they grow by, and how often."""

    published: ClassVar[int]
    every: int | None = None
    fraction: float | Schedule = 0.5
    final_fraction: float = 0.005
    end: int | None = None
    drop: str | Score = "magnitude"
    exclude_dropped: bool = False
    regrown: Regrown = "keep"
    grown: Grown = "zero"
    step_on_update: bool = True
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_timing(name, 1 if self.every is None else self.every, 0, self.end)
        check_fraction(f"method {name}", self.fraction)
        check_fraction(f"method {name}: final_fraction", self.final_fraction)
        check_option(name, "regrown", self.regrown, REGROWN)
        check_option(name, "grown", self.grown, GROWN)

    @property
    def growth(self) -> str | Score:
        """The score that grows."""
        raise NotImplementedError

    @property
    def needs_gradient(self) -> bool:
        return as_score(self.growth).needs_gradient or as_score(self.drop).needs_gradient

    @property
    def skips_step(self) -> bool:
        return not self.step_on_update

    def bind(self, steps: int | None) -> Self:
        end = length_of(type(self).__name__, self.end, steps)
        return replace(self, end=end, every=every_of(self.every, self.published, end))

    def begin(self, layer: Layer) -> Tensor:
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        assert self.every is not None, "bind() comes first"
        return is_due(step, self.every, self.every, self.end)

    def fraction_at(self, step: int) -> float:
        """From fraction to final_fraction by half a cosine."""
        if callable(self.fraction):
            return self.fraction(step)
        assert self.end is not None, "bind() comes first"
        return Cosine(self.fraction, self.final_fraction, end=max(1, self.end))(step)

    def update(self, layer: Layer, step: int) -> Exchange | None:
        return drop_and_grow(
            layer,
            self.fraction_at(step),
            drop=self.drop,
            grow=self.growth,
            exclude_dropped=self.exclude_dropped,
            regrown=self.regrown,
            grown=self.grown,
        )
