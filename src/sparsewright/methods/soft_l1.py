"""soft_l1: a penalty on the sum of |w| taken as a proximal step, soft thresholding, then one cut.

Iterative shrinkage: after a step of rate mu along the gradient, w becomes
sign(w) * max(|w| - mu * strength, 0) (Daubechies, Defrise, De Mol 2004; Beck, Teboulle 2009).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer
from ..facts import Facts
from ..kernels.masking import zero_
from . import METHODS
from ._dense_first import DenseFirst, check_strength


def shrunk(weight: Tensor, norms: Tensor, threshold: float) -> Tensor:
    """weight * max(1 - threshold / norms, 0): shorter by `threshold` in the direction it has.

    >>> weight = torch.tensor([3.0, -0.5, 1.0])
    >>> shrunk(weight, weight.abs(), 1.0)
    tensor([2., 0., 0.])
    """
    shift = (weight / norms).mul_(threshold)  # NaN where both are 0, which stays 0
    found = torch.sub(weight, shift, out=shift)
    zero_(found, norms <= threshold)
    return found


@METHODS.register("soft_l1")
@dataclass(frozen=True)
class SoftL1(DenseFirst):
    """Soft-threshold every weight by rate * strength after each step, then cut to the budget.

    strength: the penalty's factor, 0 or more. rate: the learning rate of the weight's parameter
    group at that step. end: the step before which the cut to the budget falls (three quarters of
    the run); from then on there is no penalty. scope: the cut ranks the units of each "layer" by
    themselves, or those of all layers together ("global").

    >>> SoftL1(1e-3).bind(steps=100).end
    75
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Beck, Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse '
            'problems", SIAM Journal on Imaging Sciences 2(1), 2009 (ISTA, of which theirs is the '
            "fast form)"
        ),
        when=(
            "When weights should be exactly 0 before anything is cut. The strength decides how "
            "many are, so it must be looked for; gradual needs no such search."
        ),
        memory="Dense until the cut; nothing beside it.",
        flops="3 f_D a step before the cut, 3 f_S after it; inference f_S.",
        published="none verified",
        departs=(
            "Ends in a cut that meets the sparsity asked for exactly: of weights at 0 the first "
            "stay, if it must keep some, and train on. The threshold is rate * strength under "
            "every optimizer, also one that scales its steps weight by weight."
        ),
    )
    strength: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("SoftL1", "strength", self.strength)

    def before_step(self, layer: Layer, step: int) -> None:
        """Nothing: the penalty has its own step."""

    def after_step(self, layer: Layer, step: int) -> None:
        if step >= 0 and not self.is_over(step):
            weight = layer.weight.detach()
            weight.copy_(shrunk(weight, weight.abs(), layer.rate * self.strength))
