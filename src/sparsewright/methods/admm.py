"""ADMM pruning: train towards the nearest sparse network, which moves with the weights.

Zhang, Ye, Zhang, Tang, Wen, Fardad, Wang, ECCV 2018: W by the optimizer on
loss + rho / 2 * ||W - Z + U||^2, then Z = the best units of W + U, then U += W - Z.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer
from ..facts import Facts
from ..kernels.best import best_table
from ..kernels.masking import zeroed
from ..scores._wide import wide
from . import METHODS
from ._dense_first import DenseFirst, add_to_gradient, check_strength
from ._timing import check_timing
from ._units import folded, unfolded


@METHODS.register("admm")
@dataclass(frozen=True)
class ADMM(DenseFirst):
    """Pull weights towards their projection to the budget, moved every so many steps, then cut.

    rho: the pull's factor: rho * (W - Z + U) joins the gradient. every: steps of the optimizer
    between two moves of Z (the projection of W + U: the longest units stay) and U (the sum of what
    was missed). end: the step before which the network is cut for good, three quarters of the run;
    then it trains on without the pull. scope: of the cut alone; "global" ranks the units of all
    layers together. In `layer.memory`: "target" Z and "dual" U, empty after the cut.

    >>> ADMM(rho=1e-2, every=50).bind(steps=400).end
    300
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Zhang, Ye, Zhang, Tang, Wen, Fardad, Wang, "A systematic DNN weight pruning framework '
            'using alternating direction method of multipliers", ECCV 2018'
        ),
        when=(
            "To make a trained network sparse in a pattern of any kind, when there is time for "
            "several rounds. rho and the length of a round must be looked for."
        ),
        memory="Dense until the cut, and two more numbers for every weight.",
        flops="3 f_D a step before the cut, 3 f_S after it; inference f_S.",
        published=(
            "LeNet-5 on MNIST: 430.5 thousand weights to 6.05 thousand (71.2x) at 99.2 %; AlexNet "
            "on ImageNet: 60.9 million to 2.9 million (21x) at 80.2 % top-5 (authors' results)"
        ),
        departs=(
            "One run in place of the published three (pre-training, ADMM, retraining): give a "
            "trained model for the first. Their rounds take 5000 steps, which is for `every`; "
            "rho has no verified published value."
        ),
    )
    rho: float = 1e-2
    every: int = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        check_timing("ADMM", self.every, 0, self.end)
        check_strength("ADMM", "rho", self.rho)

    def begin(self, layer: Layer) -> Tensor:
        # A packed weight may yet lose what lies in no unit: both get their size in after_step(-1).
        layer.memory |= {name: layer.weight.new_empty(0) for name in ("target", "dual")}
        return layer.present_units

    def before_step(self, layer: Layer, step: int) -> None:
        if not self.is_over(step):
            target, dual = layer.memory["target"], layer.memory["dual"]
            pull = layer.weight.detach() - target
            add_to_gradient(layer, pull.add_(dual).mul_(self.rho))

    def after_step(self, layer: Layer, step: int) -> None:
        if self.is_over(step) or (step + 1) % self.every:
            return  # step -1, before the first, is a round's end: Z is the projection of W
        weight = layer.weight.detach()
        if step < 0:
            layer.memory["dual"] = torch.zeros_like(weight)
        dual = layer.memory["dual"]
        target = projection(layer, weight + dual)
        layer.memory["target"] = target
        if step >= 0:
            dual.add_(weight).sub_(target)

    def update(self, layer: Layer, step: int) -> Tensor | None:
        units = super().update(layer, step)
        if units is not None:
            layer.memory.update({name: layer.weight.new_empty(0) for name in ("target", "dual")})
        return units


def projection(layer: Layer, values: Tensor) -> Tensor:
    """Values in the shape of `layer.weight`, 0 outside of the `layer.keep` longest units of each
    group: the nearest point that holds the budget, in L2."""
    lengths = folded(layer, wide(values).square())
    best = best_table(lengths, min(layer.keep, lengths.shape[1]))
    return zeroed(values, ~unfolded(layer, best))
