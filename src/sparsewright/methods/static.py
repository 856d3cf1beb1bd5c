"""Static: a mask chosen once and never changed, the baseline of sparse training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Layer, Score
from ..facts import Facts
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

    facts: ClassVar[Facts] = Facts(
        source=(
            "The baseline of every paper on sparse training. With magnitude as the start: Han, "
            'Pool, Tran, Dally, "Learning both weights and connections for efficient neural '
            'networks", NeurIPS 2015'
        ),
        when=(
            "As the floor that a method must beat, and to train on under masks found by pruning. "
            "At high sparsity methods that move their masks end higher. With pattern 2:4 and "
            "initial='magnitude' it is the recipe of Mishra et al. 2021 (ASP): train dense, then "
            "once more with the same settings under a fixed mask."
        ),
        memory="Nothing but the mask.",
        flops="3 f_S a step; inference f_S.",
        published=(
            "ResNet-50 on ImageNet, random masks: 70.6 % top-1 at 80 %, 65.8 % at 90 % (uniform); "
            "dense 76.8 % (Evci et al. 2020, table 2)"
        ),
    )
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
