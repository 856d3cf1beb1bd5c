"""Weight times gradient: |w * dL/dw|, the loss's first-order change if the weight went (SNIP: Lee,
Ajanthan, Torr 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from . import SCORES
from ._wide import gradient_of, wide


@dataclass(frozen=True)
class WeightGradient:
    """|w * g| of every weight, in the weight's shape; StateError without a gradient."""

    needs_gradient: ClassVar[bool] = True
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return (wide(layer.weight) * gradient_of(layer)).abs()


SCORES.register("weight_gradient")(WeightGradient())
