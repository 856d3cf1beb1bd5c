"""Random: no weight is better than another (the baseline; growth in SET, Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES


@dataclass(frozen=True)
class Random:
    """Uniform draws from [0, 1) of the layer's CPU generator, so that every device agrees."""

    facts: ClassVar[Facts] = Facts(
        source="The baseline; growth in SET (Mocanu et al., Nature Communications 2018)",
        when="As the floor that any other score must beat, and for first masks.",
        memory="Nothing.",
        flops="None.",
        published="none verified",
    )
    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "nothing"

    def __call__(self, layer: View) -> Tensor:
        return torch.rand(layer.shape, generator=layer.generator).to(layer.weight.device)


SCORES.register("random")(Random())
