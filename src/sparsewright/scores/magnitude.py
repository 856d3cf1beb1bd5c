"""Magnitude: |w| (Han, Pool, Tran, Dally 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from . import SCORES
from ._wide import wide


@dataclass(frozen=True)
class Magnitude:
    """|w| of every weight, in the weight's shape."""

    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return wide(layer.weight).abs()


SCORES.register("magnitude")(Magnitude())
