"""Random: no weight is better than another (the baseline; growth in SET, Mocanu et al. 2018)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from . import SCORES


@dataclass(frozen=True)
class Random:
    """Uniform draws from [0, 1) of the layer's CPU generator, so that every device agrees."""

    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "nothing"

    def __call__(self, layer: View) -> Tensor:
        return torch.rand(layer.shape, generator=layer.generator).to(layer.weight.device)


SCORES.register("random")(Random())
