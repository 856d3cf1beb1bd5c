"""GraNet: gradual magnitude pruning that regenerates, dropping more and growing it back elsewhere.

Liu et al., "Sparse training via boosting pruning plasticity with neuroregeneration", NeurIPS 2021.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units
from ..schedules import Cosine, Cubic
from ..scores import as_score
from . import METHODS
from ._drop_grow import REGROWN, Regrown, check_fraction, check_option
from ._interval import every_of, length_of
from ._refill import refill
from ._share import KEPT, SCOPES, Scope, ramp_by_rank
from ._timing import check_timing, check_within, is_due

RAMP = 0.3
"""Part of the run in which the density falls: the README's 30 of 100 epochs."""


@METHODS.register("granet")
@dataclass(frozen=True)
class GraNet:
    """From denser to the asked sparsity; every update also regrows by gradient what it drops.

    every: steps between updates; None: 100, or a 25th of a shorter run. fraction: of the weights
    that an update leaves, dropped and regrown in the same update (r, zero-cost neuroregeneration);
    it falls by half a cosine to final_fraction at `stop`; or a schedule, step -> fraction.
    initial_sparsity: where the cubic ramp of gradual pruning starts: 0.5 from sparse, 0 from
    dense. end: its last step, by default 3/10 of the run; there the budget is met exactly. stop:
    updates come before this step, by default the end of the run. drop, grow: the two scores.
    exclude_dropped, regrown, step_on_update: as for RigL. initial: score that picks the first mask.
    scope: every "layer" goes down a ramp of its own (the code's GraNet_uniform), or "global": the
    network goes down one, all layers' units ranked together (the code's GraNet); what is regrown
    is regrown where it was dropped.

    >>> granet = GraNet(every=10, end=100).bind(steps=300)
    >>> [granet.kept(1000, 100, t) for t in (0, 10, 50, 100, 200)]
    [500, 392, 150, 100, 100]
    """

    published: ClassVar[int] = 100
    facts: ClassVar[Facts] = Facts(
        source=(
            'Liu et al., "Sparse Training via Boosting Pruning Plasticity with Neuroregeneration", '
            "NeurIPS 2021"
        ),
        when=(
            "When training may begin denser than it ends: between gradual pruning, which cannot "
            "take a weight back, and RigL, which is sparse from the first step."
        ),
        memory=(
            "The mask, and early in the run more weights than are asked (all of them with "
            "initial_sparsity 0); at updates the gradients of all weights, as RigL."
        ),
        flops=(
            "E_t[3 f_D d_t], d_t the density at step t, and f_D - f_S more at updates; inference "
            "f_S."
        ),
        published="none verified",
        departs=(
            "By default every layer goes down a ramp of its own to the units that its allocation "
            "gives it, as the code's GraNet_uniform (without the 20 % that it leaves the "
            "classifier); the commands of its README take GraNet, here scope='global'. Layers "
            "whose pattern fixes their count (N:M), or with a sparsity of their own, keep their "
            "ramp. A weight that an update cuts or drops and regrows keeps its value; in the code "
            "it starts at 0."
        ),
    )
    every: int | None = None
    fraction: float | Schedule = 0.5
    final_fraction: float = 0.005
    initial_sparsity: float = 0.5
    end: int | None = None
    stop: int | None = None
    drop: str | Score = "magnitude"
    grow: str | Score = "gradient"
    exclude_dropped: bool = False
    regrown: Regrown = "keep"
    step_on_update: bool = True
    initial: str | Score = "random"
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        check_timing("GraNet", 1 if self.every is None else self.every, 0, self.end)
        check_fraction("method GraNet", self.fraction)
        check_fraction("method GraNet: final_fraction", self.final_fraction)
        check_option("GraNet", "regrown", self.regrown, REGROWN)
        check_option("GraNet", "scope", self.scope, SCOPES)
        if not 0.0 <= self.initial_sparsity < 1.0:
            raise ConfigError(
                f"method GraNet: initial_sparsity must be in [0, 1); got {self.initial_sparsity}"
            )

    @property
    def needs_gradient(self) -> bool:
        return as_score(self.grow).needs_gradient or as_score(self.drop).needs_gradient

    @property
    def skips_step(self) -> bool:
        return not self.step_on_update

    def bind(self, steps: int | None) -> GraNet:
        """Raises ConfigError if the run ends before the ramp does: the sparsity would be missed."""
        stop = length_of("GraNet", self.stop, steps, "stop")
        length = stop if steps is None else steps
        end = math.floor(RAMP * length) if self.end is None else self.end
        check_within("GraNet", "the ramp must end", end, length)
        return replace(self, end=end, stop=stop, every=every_of(self.every, self.published, length))

    def begin(self, layer: Layer) -> Tensor:
        first = self.kept(layer.units, layer.keep, 0)
        if self.scope == "global":
            layer.memory[KEPT] = torch.tensor(first)
        return first_units(replace(layer, keep=first), self.initial)

    def due(self, step: int) -> bool:
        assert self.every is not None, "bind() comes first"
        return step == self.end or is_due(step, self.every, self.every, self.stop)

    def kept(self, units: int, keep: int, step: int) -> int:
        """Units present in every group of `units` at a step, on the way down to `keep`."""
        assert self.end is not None, "bind() comes first"
        first = max(keep, units - math.floor(self.initial_sparsity * units + 1e-9))
        return math.ceil(Cubic(first, keep, end=max(1, self.end))(step) - 1e-9)

    def fraction_at(self, step: int) -> float:
        """From fraction to final_fraction by half a cosine."""
        if callable(self.fraction):
            return self.fraction(step)
        assert self.stop is not None, "bind() comes first"
        return Cosine(self.fraction, self.final_fraction, end=max(1, self.stop))(step)

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        assert self.end is not None, "bind() comes first"
        if self.scope == "global" and step <= self.end:
            waits = as_score(self.drop).needs_gradient and step != self.end
            ranked = [y for y in layers if not waits or y.storage.has_gradient()]
            ramp_by_rank(ranked, self.drop, lambda units, keep: self.kept(units, keep, step))

    def without_gradient(self, layer: Layer, step: int) -> Exchange | None:
        """Down the ramp, and nothing grows."""
        return refill(layer, 0, self._left(layer, step), drop=self.drop, grow=self.grow)

    def _left(self, layer: Layer, step: int) -> int:
        """Units that an update leaves in every group: those of the ramp, or fewer if it has."""
        count = layer.storage.count() // max(1, layer.groups)
        if self.scope == "global":
            return min(int(layer.memory[KEPT]), count)
        return min(self.kept(layer.units, layer.keep, step), count)

    def update(self, layer: Layer, step: int) -> Exchange | None:
        count, keep = layer.storage.count(), self._left(layer, step)
        left = keep * layer.groups
        regenerated = math.floor(self.fraction_at(step) * left + 1e-9)
        return refill(
            layer,
            count - left + regenerated,
            keep,
            drop=self.drop,
            grow=self.grow,
            exclude_dropped=self.exclude_dropped,
            regrown=self.regrown,
        )
