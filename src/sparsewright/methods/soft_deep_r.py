"""soft-DEEP R: a walk in which dormant weights go on walking, and wake when theta turns positive.

Bellec, Kappel, Maass, Legenstein, "Deep rewiring: training very sparse deep networks", ICLR 2018.
A connection is sign * theta where theta > 0, else dormant. What is latent is sign * theta of those
awake; of those dormant `depth` remembers theta, as a part of the floor, the least that it may be.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer, Score
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units
from ..scores._wide import wide
from . import METHODS
from ._latent import UntilCut, check_not_below, fold, gradient_of, is_cut
from ._learned import recall

SIGN, DEPTH = "sign", "depth"
SHALLOW = 1e-30
"""Least depth: dormant all the same."""


@METHODS.register("soft_deep_r")
@dataclass(frozen=True)
class SoftDeepR(UntilCut):
    """DEEP R without a fixed count: noise and drift send weights to sleep, and noise alone wakes
    them; at `end` those of largest theta are kept.

    After the optimizer's step with learning rate lr each theta above 0 moves by -lr * l1 and by
    noise, one below 0 by noise alone: lr * noise * N(0, 1), or sqrt(2 * lr * temperature) * N(0, 1)
    if a temperature is given. No theta falls below -floor; None: ((1 - density) / density) * T /
    l1, T the temperature or lr * noise^2 / 2, which without a loss leaves as many awake as the
    budget has. initial: score that picks those awake at first; the others begin anywhere between
    -floor and 0. Signs are fixed.

    >>> method = SoftDeepR(noise=0.2, l1=0.1)
    >>> round(method.temperature_of(lr=0.5), 6), round(method.floor_of(lr=0.5, density=0.1), 6)
    (0.01, 0.9)
    """

    l1: float = 1e-5
    noise: float = 1e-5
    temperature: float | None = None
    floor: float | None = None
    initial: str | Score = "random"
    facts: ClassVar[Facts] = Facts(
        source=(
            'Bellec, Kappel, Maass, Legenstein, "Deep Rewiring: Training very sparse deep '
            'networks", ICLR 2018'
        ),
        when=(
            "For its theory, and to see what the loss makes of sparsity when no count is held: "
            "before the cut far more weights may be awake than asked. Take deep_r to stay within "
            "a budget, and SET or RigL for accuracy. Meant for plain SGD."
        ),
        memory="The latent weights, a sign of one byte and a depth of each beside the weights.",
        flops="3 f_S(t) a step, by what is awake at that step; 3 f_S after the cut; inference f_S.",
        published="none verified",
        departs=(
            "The paper's sparsity is what the walk leaves; here the largest theta are kept at "
            "`end`, exactly as many as asked, and train on without noise or drift; kept ones that "
            "were dormant start anew from 0. Until then the mask reports all weights as present. "
            "l1, noise and the rule for the floor are the public code's; there its learning "
            "rate is constant, here the floor follows the rate, and dormant weights with it. Drift "
            "and noise follow the optimizer's step, whichever optimizer it is; with plain SGD that "
            "is the paper's step. Optimizers that remember go on from what they knew of a weight "
            "before it slept."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        options = {"l1": self.l1, "noise": self.noise, "temperature": self.temperature}
        check_not_below("SoftDeepR", 0, **options, floor=self.floor)
        for name, value in (options | {"floor": self.floor}).items():
            if value is not None and not math.isfinite(value):
                raise ConfigError(f"method SoftDeepR: {name} must be finite; got {value}")
        if self.floor is None and self.l1 == 0:
            raise ConfigError(
                "method SoftDeepR: l1 must be above 0 where floor is left to the rule, which "
                f"divides by it; got {self.l1}"
            )

    def temperature_of(self, lr: float) -> float:
        """T of a step: the variance of its noise is 2 * lr * T."""
        return lr * self.noise**2 / 2 if self.temperature is None else self.temperature

    def floor_of(self, lr: float, density: float) -> float:
        """How far below 0 theta may be.

        Without a loss theta above 0 has the density exp(-theta * l1 / T), so T / l1 is the mass of
        those awake beside `floor` of those dormant.
        """
        if self.floor is not None:
            return self.floor
        return (1 - density) / density * self.temperature_of(lr) / self.l1

    def prepare(self, layer: Layer) -> None:
        awake = torch.zeros(layer.groups * layer.units, dtype=torch.bool)
        awake[first_units(layer, self.initial).cpu()] = True
        mask = layer.pattern.unfold(awake.view(layer.groups, layer.units), layer.shape)
        depth = torch.rand(layer.shape, generator=layer.generator).clamp(min=SHALLOW)
        drawn = torch.randint(0, 2, layer.shape, generator=layer.generator)
        layer.memory[DEPTH] = depth.masked_fill(mask, 0.0).to(layer.weight.device)
        layer.memory[SIGN] = (2 * drawn - 1).to(torch.int8).to(layer.weight.device)

    def after_step(self, layer: Layer, step: int) -> None:
        dormant = recall(layer, DEPTH) > 0
        if step < 0:
            own = torch.where(layer.weight < 0, -1, 1).to(torch.int8)
            layer.memory[SIGN] = recall(layer, SIGN).where(dormant, own)
            layer.memory["latent"].masked_fill_(dormant, 0.0)
        elif layer.weight.grad is not None and not is_cut(layer):
            self._walk(layer, dormant)
        super().after_step(layer, step)

    def form(self, layer: Layer, step: int) -> None:
        layer.weight.copy_(layer.memory["latent"])

    def chain(self, layer: Layer, step: int) -> None:
        gradient_of(layer).masked_fill_(recall(layer, DEPTH) > 0, 0.0)

    def importance(self, layer: Layer) -> Tensor:
        return fold(layer, self._theta(layer, recall(layer, DEPTH) > 0))

    def _theta(self, layer: Layer, dormant: Tensor) -> Tensor:
        """Of the latent weights that `layer.weight` holds, float32 or wider."""
        below = -recall(layer, DEPTH) * self._floor(layer)
        return below.where(dormant, recall(layer, SIGN) * wide(layer.weight.detach()))

    def _floor(self, layer: Layer) -> float:
        if not layer.keep:  # a layer without weights
            return 0.0
        return self.floor_of(layer.rate, layer.keep / layer.units)

    def _walk(self, layer: Layer, dormant: Tensor) -> None:
        """Drift and noise; what crosses 0 sleeps or wakes."""
        size, floor = (
            math.sqrt(2 * layer.rate * self.temperature_of(layer.rate)),
            self._floor(layer),
        )
        noise = torch.randn(layer.shape, generator=layer.generator).to(layer.weight.device)
        drift = torch.where(dormant, 0.0, layer.rate * self.l1)
        theta = self._theta(layer, dormant) + noise * size - drift
        sleeps = theta <= 0
        depth = (-theta / floor if floor > 0 else torch.ones_like(theta)).clamp(SHALLOW, 1.0)
        layer.memory[DEPTH] = depth.masked_fill(~sleeps, 0.0).float()
        awake = (recall(layer, SIGN) * theta).masked_fill(sleeps, 0.0)
        layer.memory["latent"].copy_(awake)
