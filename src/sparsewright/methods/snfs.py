"""SNFS, sparse momentum: drop by magnitude, grow and share the budget out by momentum.

Dettmers, Zettlemoyer, "Sparse networks from scratch: faster training without losing performance",
2019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Exchange, Layer, Schedule, Score, View
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units
from ..schedules import Cosine
from ..scores._wide import wide
from . import METHODS
from ._drop_grow import check_fraction
from ._interval import every_of, length_of
from ._redistribute import redistribute
from ._refill import refill
from ._timing import check_timing, is_due


@dataclass(frozen=True, eq=False)
class Momentum:
    """|m| of every weight, from what the method remembers."""

    momentum: Tensor
    needs_gradient: ClassVar[bool] = False

    def __call__(self, layer: View) -> Tensor:
        return self.momentum.to(layer.weight.device).abs()


@METHODS.register("snfs")
@dataclass(frozen=True)
class SNFS:
    """Move weights to where the smoothed gradient is largest, between layers too.

    every: steps between updates; the paper's is one epoch, so give the steps of an epoch to follow
    it; None: 100, or a 25th of a shorter run. fraction: of each layer, dropped by magnitude; it
    falls by half a cosine to final_fraction at `end`, by default the end of the run; or a
    schedule, step -> fraction. beta: of the momentum m <- beta m + (1 - beta) g, kept of all
    weights. What was dropped in all goes to the layers by the mean |m| of their present weights,
    and in each to the absent weights of largest |m|. exclude_dropped: as for RigL.

    >>> snfs = SNFS(every=10).bind(steps=100)
    >>> snfs.moves(10), snfs.moves(11), snfs.due(11), round(snfs.fraction_at(50), 4)
    (True, False, True, 0.2525)
    """

    published: ClassVar[int] = 100
    needs_gradient: ClassVar[bool] = True
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = False
    masked_only: ClassVar[str] = "needs the momentum of absent weights at every step"
    facts: ClassVar[Facts] = Facts(
        source=(
            'Dettmers, Zettlemoyer, "Sparse Networks from Scratch: Faster Training without '
            'Losing Performance", 2019 (arXiv:1907.04840)'
        ),
        when=(
            "When every step may cost a dense backward: smoothed gradients choose better than "
            "those of one batch, and layers get the budget that they use. To train at sparse cost "
            "take RigL."
        ),
        memory="The mask, and a momentum of every weight, present or absent, in float32.",
        flops="2 f_S + f_D a step; inference f_S.",
        published=(
            "ResNet-50 on ImageNet: 74.2 % at 80 % sparsity, 72.3 % at 90 % (authors' report); "
            "with ERK 75.2 % and 72.9 % (Evci et al. 2020, table 2)"
        ),
        departs=(
            "The momentum is the method's own; the code reads the optimizer's, which for absent "
            "weights this library keeps at 0. A fraction is rounded down, in the code up. What a "
            "full layer cannot take goes to the others by the same shares, and the total is met "
            "exactly. Updates come every 100 steps unless told. Layers whose pattern holds one "
            "count alone (N:M), or with a sparsity of their own, keep it."
        ),
    )
    every: int | None = None
    fraction: float | Schedule = 0.5
    final_fraction: float = 0.005
    beta: float = 0.9
    end: int | None = None
    exclude_dropped: bool = False
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        check_timing("SNFS", 1 if self.every is None else self.every, 0, self.end)
        check_fraction("method SNFS", self.fraction)
        check_fraction("method SNFS: final_fraction", self.final_fraction)
        if not 0 <= self.beta < 1:
            raise ConfigError(
                f"method SNFS: beta (of the momentum) must be in [0, 1); got {self.beta}"
            )

    def bind(self, steps: int | None) -> SNFS:
        end = length_of("SNFS", self.end, steps)
        return replace(self, end=end, every=every_of(self.every, self.published, end))

    def begin(self, layer: Layer) -> Tensor:
        layer.memory["momentum"] = torch.zeros(layer.shape, device=layer.weight.device)
        return first_units(layer, self.initial)

    def moves(self, step: int) -> bool:
        """Whether weights move before this step."""
        assert self.every is not None, "bind() comes first"
        return is_due(step, self.every, self.every, self.end)

    def due(self, step: int) -> bool:
        """At every step before the end: the momentum wants gradients of absent weights."""
        return self.end is None or step < self.end

    def fraction_at(self, step: int) -> float:
        """From fraction to final_fraction by half a cosine."""
        if callable(self.fraction):
            return self.fraction(step)
        assert self.end is not None, "bind() comes first"
        return Cosine(self.fraction, self.final_fraction, end=max(1, self.end))(step)

    def before_step(self, layer: Layer, step: int) -> None:
        if self.due(step):
            assert layer.weight.grad is not None
            momentum = layer.memory["momentum"]
            momentum.mul_(self.beta)
            momentum.add_(wide(layer.weight.grad).to(momentum), alpha=1 - self.beta)

    def after_step(self, layer: Layer, step: int) -> None:
        """Weights are the optimizer's alone."""

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        if not self.moves(step):
            return
        moved = [layer for layer in layers if layer.weight.grad is not None]
        kept = {
            layer.name: (layer.storage.count() - self._dropped(layer, step)) * layer.unit_size
            for layer in moved
        }
        redistribute(moved, kept, {layer.name: mean_momentum(layer) for layer in moved})

    def update(self, layer: Layer, step: int) -> Exchange | None:
        if not self.moves(step):
            return None
        return refill(
            layer,
            self._dropped(layer, step),
            layer.keep,
            drop="magnitude",
            grow=Momentum(layer.memory["momentum"]),
            exclude_dropped=self.exclude_dropped,
        )

    def _dropped(self, layer: Layer, step: int) -> int:
        return math.floor(self.fraction_at(step) * layer.storage.count() + 1e-9)


def mean_momentum(layer: Layer) -> float:
    """Mean |m| of the present weights; 0 where none is present."""
    present = layer.memory["momentum"][layer.mask].abs()
    return float(present.double().mean()) if present.numel() else 0.0
