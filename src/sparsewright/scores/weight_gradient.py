"""Weight times gradient: |w * dL/dw|, the loss's first-order change if the weight went (SNIP: Lee,
Ajanthan, Torr 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES
from ._wide import gradient_of, wide


@dataclass(frozen=True)
class WeightGradient:
    """|w * g| of every weight, in the weight's shape; StateError without a gradient."""

    facts: ClassVar[Facts] = Facts(
        source=(
            'Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection '
            'sensitivity", ICLR 2019'
        ),
        when="For untrained networks, and to prune trained ones by first-order change of the loss.",
        memory="Nothing.",
        flops="One backward.",
        published=(
            "ResNet-50 on ImageNet, pruned at initialisation: 72.0 % at 80 %, 67.2 % at 90 % "
            "(Evci et al. 2020, table 2)"
        ),
    )
    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return (wide(layer.weight) * gradient_of(layer)).abs()


SCORES.register("weight_gradient")(WeightGradient())
