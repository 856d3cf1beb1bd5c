"""Group lasso: a penalty on the length of whole units of the pattern, then one cut.

The penalty is strength * sum over units of sqrt(size) * ||w_unit||_2 (Yuan, Lin 2006); on filters,
channels and blocks of networks: Wen, Wu, Wang, Chen, Li 2016.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

from ..core import Layer
from ..facts import Facts
from . import METHODS
from ._dense_first import DenseFirst, add_to_gradient, check_strength
from ._drop_grow import check_option
from ._units import unit_norms
from .soft_l1 import shrunk

Step = Literal["proximal", "subgradient"]
STEPS: tuple[str, ...] = get_args(Step)


@METHODS.register("group_lasso")
@dataclass(frozen=True)
class GroupLasso(DenseFirst):
    """Shrink whole units of the pattern (channels, blocks) while dense, then cut to the budget.

    strength: the penalty's factor, 0 or more. step: "proximal" shortens every unit by
    rate * strength * sqrt(size) after each step; "subgradient" adds its slope to the gradient.
    weighted: with the factor sqrt(size of the unit), so that units of all sizes are pulled alike.
    Where units are single weights (unstructured, N:M, fan_in) it is soft_l1, or l1. end, scope: as
    for SoftL1.

    >>> GroupLasso(1e-3).bind(steps=100).end
    75
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Yuan, Lin, "Model selection and estimation in regression with grouped variables", '
            "Journal of the Royal Statistical Society B 68(1), 2006; on networks Wen, Wu, Wang, "
            'Chen, Li, "Learning structured sparsity in deep neural networks", NeurIPS 2016'
        ),
        when=(
            "When channels or blocks are to go: it gathers what matters in few units before the "
            "cut. For unstructured sparsity it is soft_l1."
        ),
        memory="Dense until the cut; at each step one length per unit.",
        flops="3 f_D a step before the cut, 3 f_S after it; inference f_S.",
        published="none verified",
        departs=(
            "Ends in a cut that meets the sparsity asked for exactly, by the length of the units; "
            "groups are the units of the pattern, of one kind at a time."
        ),
    )
    strength: float = 1e-4
    step: Step = "proximal"
    weighted: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check_strength("GroupLasso", "strength", self.strength)
        check_option("GroupLasso", "step", self.step, STEPS)

    def _pull(self, layer: Layer) -> float:
        return self.strength * (math.sqrt(layer.unit_size) if self.weighted else 1.0)

    def before_step(self, layer: Layer, step: int) -> None:
        if self.step == "subgradient" and not self.is_over(step):
            norms = unit_norms(layer)
            direction = layer.weight.detach() / norms.masked_fill(norms == 0, 1.0)
            add_to_gradient(layer, direction.mul_(self._pull(layer)))

    def after_step(self, layer: Layer, step: int) -> None:
        if self.step == "proximal" and step >= 0 and not self.is_over(step):
            weight = layer.weight.detach()
            threshold = layer.rate * self._pull(layer)
            weight.copy_(shrunk(weight, unit_norms(layer), threshold))
