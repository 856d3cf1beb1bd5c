"""Static: a mask chosen once and never changed, the baseline of sparse training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Layer, Score
from ..ranking import first_units
from . import METHODS


@METHODS.register("static")
@dataclass(frozen=True)
class Static:
    """Keep the first mask for the whole run.

    initial: score that picks it; "random" for training from scratch, "magnitude" to fine-tune a
    trained network under a fixed mask (Han et al. 2015).

    >>> Static().due(0)
    False
    """

    initial: str | Score = "random"
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False

    def bind(self, steps: int | None) -> Static:
        return self

    def begin(self, layer: Layer) -> Tensor:
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        return False

    def update(self, layer: Layer, step: int) -> None:
        return None
