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
    """|w * g| of every weight, in the weight's shape; StateError without a gradient.

    g is the gradient that the weights have: in training that of the last backward, in `prune` the
    model's own if neither data nor loss is given, else the sum over the batches. There it ranks as
    "snip" does, which always measures and is no score for training.
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Lee, Ajanthan, Torr, "SNIP: single-shot network pruning based on connection '
            'sensitivity", ICLR 2019'
        ),
        when="In training, or to prune by gradients that are there already. To prune by data take "
        "snip, whose scores are the same but for a factor.",
        memory="Nothing.",
        flops="One backward.",
        published=(
            "ResNet-50 on ImageNet, pruned at initialisation: 72.0 % at 80 %, 67.2 % at 90 % "
            "(as run by Evci et al. 2020 for RigL)"
        ),
    )
    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return (wide(layer.weight) * gradient_of(layer)).abs()


SCORES.register("weight_gradient")(WeightGradient())
