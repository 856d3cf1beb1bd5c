"""Iterative hard thresholding: a step along the whole gradient, then the best k and nothing else.

x <- H_k(x - mu * gradient of f at x), for sensing by Blumensath, Davies 2009.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Layer
from ..facts import Facts
from ..kernels.masking import zero_
from ..scores._wide import wide
from . import METHODS
from ._latent import best_of, fold
from ._timing import check_timing


@METHODS.register("iht")
@dataclass(frozen=True)
class IHT:
    """After every step keep the longest units, put the others to 0, and let them come back.

    The gradient is that of the sparse network, of all weights: an absent weight stands at 0 and
    returns when one step of the optimizer makes it longer than a present one. The weights that the
    run begins with are the first iterate as they are, so the first step is dense. end: from this
    step on masks stay as they are; None: never.

    >>> IHT().due(1000), IHT(end=10).due(10)
    (True, False)
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Blumensath, Davies, "Iterative hard thresholding for compressed sensing", Applied and '
            "Computational Harmonic Analysis 27(3), 2009"
        ),
        when=(
            "For linear models and sensing, where it has guarantees, and with plain SGD. An "
            "optimizer that makes all steps alike (Adam) lets absent weights displace small "
            "present ones at random: take acdc, which relaxes it, for networks."
        ),
        memory="Gradients and optimizer state of all weights.",
        flops="f_S + 2 f_D at most a step (the forward is sparse); inference f_S.",
        published="none verified",
        departs=(
            "Any optimizer may take the step; what it keeps of absent weights (momentum) lives on. "
            "Every layer keeps its own k."
        ),
    )
    end: int | None = None
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_timing("IHT", 1, 1, self.end)

    def bind(self, steps: int | None) -> IHT:
        return self

    def begin(self, layer: Layer) -> Tensor:
        return layer.present_units

    def due(self, step: int) -> bool:
        return self.end is None or step < self.end

    def update(self, layer: Layer, step: int) -> None:
        """Masks move after steps, not before."""

    def reads_absent(self, layer: Layer, step: int) -> int:
        """All while units may return: what is absent when that is over stays so."""
        return layer.numel - layer.present if self.due(step) else 0

    def before_step(self, layer: Layer, step: int) -> None:
        """Nothing: the gradient is as it should be."""

    def after_step(self, layer: Layer, step: int) -> Tensor | None:
        best, absent = None, layer.absent
        if step >= 0 and self.due(step):
            best = best_of(layer, fold(layer, wide(layer.weight).square()), layer.keep)
            absent = ~layer.pattern.unfold(best, layer.shape)
        zero_(layer.memory["latent"], absent)
        return best
