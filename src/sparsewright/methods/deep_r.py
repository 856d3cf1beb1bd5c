"""DEEP R, deep rewiring: a walk over networks in which a weight that crosses zero goes dormant.

Bellec, Kappel, Maass, Legenstein, "Deep rewiring: training very sparse deep networks", ICLR 2018.
A connection is sign * theta, theta >= 0. Its sign lies in `layer.memory`, one for each present
weight in the order of the units, so it follows every move whatever the storage.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..core import Exchange, Layer, Score
from ..errors import ConfigError
from ..facts import Facts
from ..patterns import places_of, units_are_places
from ..ranking import best_absent, first_units
from ..sampling import slots
from ..scores._wide import wide
from . import METHODS
from ._drop_grow import check_option

Noise = Literal["temperature", "rate"]
NOISE: tuple[str, ...] = get_args(Noise)
RATE_NOISE = 1e-5
"""Standard deviation of the code's noise, before it is multiplied by the learning rate."""
BORN = 1e-12
"""theta of a weight that was just activated: as good as the paper's 0, and not dormant yet."""


@METHODS.register("deep_r")
@dataclass(frozen=True)
class DeepR:
    """At every step a drift and noise; weights that cross zero make room for random others.

    After the optimizer's step with learning rate lr each theta moves by -lr * l1 and by noise:
    sqrt(2 * lr * temperature) * N(0, 1) with noise "temperature" (the paper), lr * N(0, 1e-5) with
    "rate" (the code). temperature: None makes the noise a third of the drift. A weight below 0 is
    put to 0 and is dormant; before the next step as many random weights are activated, with a
    random sign and theta 1e-12. A unit of several weights is dormant once most of them are.
    initial: score that picks the first mask; weights begin at the values and signs that they have.

    >>> DeepR().due(0), DeepR(temperature=0.5).noise_of(lr=0.01)
    (True, 0.1)
    """

    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        source=(
            'Bellec, Kappel, Maass, Legenstein, "Deep Rewiring: Training very sparse deep '
            'networks", ICLR 2018'
        ),
        when=(
            "For its theory: with noise it samples networks from a posterior, and it is sparse at "
            "every step. It explores slowly, for only what crosses zero moves; for accuracy take "
            "SET or RigL. Meant for plain SGD."
        ),
        memory="The mask, and a sign of one byte for each present weight.",
        flops="3 f_S a step; inference f_S. Every step may move weights.",
        published=(
            "WRN-28-2 on CIFAR-10 at 90, 80, 70, 60, 50 % sparsity: 91.41, 92.36, 92.50, 92.80, "
            "92.92 % (tabulated by Dettmers, Zettlemoyer 2019)"
        ),
        departs=(
            "Drift and noise follow the optimizer's step, whichever optimizer it is; with plain "
            "SGD that is the paper's step. Activated weights begin at 1e-12 as in the code, where "
            "the paper has 0: at 0 exactly they could not be told from dormant ones. They join at "
            "the end of a backward, and are spared drift and noise until they have had a gradient "
            "of their own. Signs are drawn at each activation; the code fixes one for each place "
            "beforehand. The temperature's default is this library's; l1 is the code's. "
            "Starting masks hold the exact count, where the code draws places with replacement. "
            "soft-DEEP R, which holds no count, is soft_deep_r."
        ),
    )
    l1: float = 1e-5
    temperature: float | None = None
    noise: Noise = "temperature"
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        check_option("DeepR", "noise", self.noise, NOISE)
        for name, value in (("l1", self.l1), ("temperature", self.temperature)):
            if value is not None and not (value >= 0 and math.isfinite(value)):
                raise ConfigError(f"method DeepR: {name} must be 0 or more; got {value}")
        if self.noise != "temperature" and self.temperature is not None:
            raise ConfigError(
                f"method DeepR: temperature is for noise 'temperature'; got {self.temperature} "
                f"with noise {self.noise!r}"
            )

    def bind(self, steps: int | None) -> DeepR:
        return self

    def begin(self, layer: Layer) -> Tensor:
        units = first_units(layer, self.initial)
        device, count = layer.weight.device, len(units)
        layer.memory["sign"] = torch.ones(count, layer.unit_size, dtype=torch.int8, device=device)
        layer.memory["born"] = torch.zeros(count, dtype=torch.bool, device=device)
        return units

    def due(self, step: int) -> bool:
        return True

    def noise_of(self, lr: float) -> float:
        """Standard deviation of a step's noise."""
        if self.noise == "rate":
            return lr * RATE_NOISE
        if self.temperature is None:
            return lr * self.l1 / 3
        return math.sqrt(2 * lr * self.temperature)

    def before_step(self, layer: Layer, step: int) -> None:
        """The gradient is the loss's alone."""

    def after_step(self, layer: Layer, step: int) -> None:
        """Drift and noise; what falls below zero stays at zero until the next rewiring."""
        places = places_of(layer.pattern, layer.present_units, layer.shape)
        values = layer.storage.take(places)[0]
        if step < 0:
            signs = torch.where(values < 0, -1, 1)
            layer.memory["sign"] = signs.to(torch.int8)
            return
        if layer.weight.grad is None:
            return
        sign, born = self._of(layer, "sign"), self._of(layer, "born")
        noise = torch.randn(values.shape, generator=layer.generator).to(values.device)
        pull = noise * self.noise_of(layer.rate) - layer.rate * self.l1
        theta = sign * wide(values) + pull.masked_fill(born[:, None], 0.0)
        moved = sign * theta.clamp(min=0.0)
        born.zero_()
        moved = moved.reshape(-1)
        if not units_are_places(layer.pattern, layer.shape):
            moved = moved[places.reshape(-1).argsort()]
        layer.storage.write(moved.to(values))

    def update(self, layer: Layer, step: int) -> Exchange | None:
        present, sign = layer.present_units, self._of(layer, "sign")
        places = places_of(layer.pattern, present, layer.shape)
        crossed = sign * layer.storage.take(places)[0] <= 0
        dormant = 2 * crossed.sum(dim=1) > layer.unit_size
        if not dormant.any():
            return None
        stays = ~dormant
        activated = best_absent(layer, "random", dormant, last=False)
        drawn = torch.randint(0, 2, (len(activated), layer.unit_size), generator=layer.generator)
        fresh = (2 * drawn - 1).to(sign)
        kept = present[stays]
        at = slots(kept, activated)
        born = torch.zeros(len(kept) + len(activated), dtype=torch.bool, device=sign.device)
        born[at] = True
        signs = sign.new_empty(len(born), layer.unit_size)
        signs[at], signs[~born] = fresh, sign[stays]
        layer.memory["sign"], layer.memory["born"] = signs, born
        least = max(BORN, torch.finfo(layer.weight.dtype).tiny)  # a half may not hold 1e-12
        return Exchange(dormant, activated, fresh.to(layer.weight.dtype) * least)

    def _of(self, layer: Layer, name: str) -> Tensor:
        """What is remembered, where the weight now is."""
        layer.memory[name] = layer.memory[name].to(layer.weight.device)
        return layer.memory[name]
