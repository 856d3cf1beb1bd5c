"""Gradient: |dL/dw|, how fast the loss would fall if the weight could move (growth in RigL, Evci
et al. 2020). To prune by, it is worse than random: take weight_gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from . import SCORES
from ._wide import gradient_of


@dataclass(frozen=True)
class Gradient:
    """|g| of every weight, in the weight's shape; StateError without a gradient."""

    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return gradient_of(layer).abs()


SCORES.register("gradient")(Gradient())
