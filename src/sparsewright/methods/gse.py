"""GSE, guided stochastic exploration: grow by gradient, of a random sample of the absent weights.

Heddes, Srinivasa, Givargis, Nicolau, "Always-sparse training by growing connections with guided
stochastic exploration", 2024, whose sample is as large as the network: then no step, not even that
of an update, takes more time or memory than the present weights do.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from torch import Tensor

from ..core import Layer, Schedule, Score, Update
from ..errors import ConfigError
from ..ranking import first_units
from ..schedules import Cosine
from . import METHODS
from ._drop_grow import check_fraction, drop_and_grow
from ._timing import check_timing, end_of, is_due


@METHODS.register("gse")
@dataclass(frozen=True)
class GSE:
    """RigL with the gradients of a sample: drop by magnitude, grow the steepest of the sampled.

    every, fraction, start, end: as for RigL. sample: absent units whose gradients are looked at,
    in every group, as a part of those kept (the paper's gamma, 1). They are drawn uniformly, the
    paper's first distribution; its two others ask for activations that masked storage has not.
    initial: score that picks the first mask. Updates take no optimizer step, as in RigL.

    >>> GSE(end=100).due(0), GSE(end=100).bind(None).end
    (True, 100)
    """

    every: int = 100
    fraction: float | Schedule = 0.3
    start: int = 0
    end: int | None = None
    sample: float = 1.0
    drop: str | Score = "magnitude"
    grow: str | Score = "gradient"
    initial: str | Score = "random"
    needs_gradient: ClassVar[bool] = True
    skips_step: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_timing("GSE", self.every, self.start, self.end)
        check_fraction("method GSE", self.fraction)
        if not self.sample > 0:
            raise ConfigError(
                f"method GSE: sample (of the units kept) must be above 0; got {self.sample}"
            )

    def bind(self, steps: int | None) -> GSE:
        return replace(self, end=end_of("GSE", self.start, self.end, steps))

    def begin(self, layer: Layer) -> Tensor:
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        return is_due(step, self.every, self.start, self.end)

    def fraction_at(self, step: int) -> float:
        """Half a cosine from `fraction` to 0 at `end`, as RigL's."""
        if callable(self.fraction):
            return self.fraction(step)
        assert self.end is not None, "bind() comes first"
        return Cosine(self.fraction, 0.0, end=max(1, self.end))(step)

    def update(self, layer: Layer, step: int) -> Update | None:
        fraction = self.fraction_at(step)
        return drop_and_grow(layer, fraction, drop=self.drop, grow=self.grow, sample=self.sample)
