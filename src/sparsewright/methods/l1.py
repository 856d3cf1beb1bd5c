"""l1: a penalty on the sum of |w| whose subgradient joins the gradient, then one cut.

The penalty is the lasso's (Tibshirani 1996); on networks beside L2: Han et al. 2015.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Layer
from ..facts import Facts
from . import METHODS
from ._dense_first import DenseFirst, add_to_gradient, check_strength


@METHODS.register("l1")
@dataclass(frozen=True)
class L1(DenseFirst):
    """Add strength * sign(w) to every gradient while dense, then cut to the budget by magnitude.

    strength: the penalty's factor, 0 or more. Weights come near 0 and seldom rest there; see
    `soft_l1`. From step `end` on there is no penalty. end, scope: as for SoftL1.

    >>> L1(1e-3).bind(steps=100).end
    75
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Tibshirani, "Regression shrinkage and selection via the lasso", Journal of the Royal '
            "Statistical Society B 58(1), 1996; on networks Han, Pool, Tran, Dally, "
            '"Learning both weights and connections for efficient neural networks", NeurIPS 2015'
        ),
        when=(
            "As a baseline, and where a penalty must pass through the optimizer like any gradient. "
            "With Adam its pull is divided by the size of the gradients: take soft_l1 there."
        ),
        memory="Dense until the cut; nothing beside it.",
        flops="3 f_D a step before the cut, 3 f_S after it; inference f_S.",
        published="none verified",
        departs=(
            "Ends in a cut that meets the sparsity asked for exactly, and trains on without the "
            "penalty; the sources take a threshold."
        ),
    )
    strength: float = 1e-4

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("L1", "strength", self.strength)

    def before_step(self, layer: Layer, step: int) -> None:
        if not self.is_over(step):
            add_to_gradient(layer, layer.weight.detach().sign().mul_(self.strength))

    def after_step(self, layer: Layer, step: int) -> None:
        """Nothing: the optimizer's step was the penalty's too."""
