"""Gradient: |dL/dw|, how fast the loss would fall if the weight could move (growth in RigL, Evci
et al. 2020). To prune by, it is worse than random: take weight_gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES
from ._wide import gradient_of


@dataclass(frozen=True)
class Gradient:
    """|g| of every weight, in the weight's shape; StateError without a gradient."""

    facts: ClassVar[Facts] = Facts(
        source="Growth in RigL (Evci, Gale, Menick, Castro, Elsen, ICML 2020)",
        when="To grow by. To prune by, it is worse than chance: take weight_gradient.",
        memory="Nothing.",
        flops="One backward.",
        published=(
            "As a score for pruning at initialisation it is worse than random (Evci et al. "
            "2020, appendix M)"
        ),
    )
    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return gradient_of(layer).abs()


SCORES.register("gradient")(Gradient())
