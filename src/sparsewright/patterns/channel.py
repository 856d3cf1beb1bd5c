"""Channel: whole output rows or filters are present or absent (Li et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from . import PATTERNS
from ._fold import needs_matrix


@PATTERNS.register("channel")
@dataclass(frozen=True)
class Channel:
    """One group; its units are the rows of a Linear or the filters of a convolution.

    >>> import torch
    >>> Channel().fold(torch.ones(3, 2, 5))
    tensor([[10., 10., 10.]])
    """

    examples: ClassVar[tuple[str, ...]] = ("channel",)
    sparsity: ClassVar[float | None] = None
    row_step: ClassVar[int] = 1

    @classmethod
    def parse(cls, text: str) -> Channel | None:
        return cls() if text == "channel" else None

    def __str__(self) -> str:
        return "channel"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        return needs_matrix(shape)

    def fold(self, weight: Tensor) -> Tensor:
        return weight.flatten(1).sum(dim=1).reshape(1, -1)

    def unfold(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        row = table.reshape(-1, *[1] * (len(shape) - 1))
        return row.expand(shape).clone()

    def unit_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (1, *shape[1:])

    def allowed(self, units: int) -> range:
        return range(units + 1)

    def places_of(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        fan_in = math.prod(shape[1:])
        return units[:, None] * fan_in + torch.arange(fan_in, device=units.device)

    def units_of(self, places: Tensor, shape: tuple[int, ...]) -> Tensor:
        return places // max(1, math.prod(shape[1:]))
