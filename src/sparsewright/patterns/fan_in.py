"""Constant fan-in: every output neuron keeps the same number of inputs (Lasby et al. 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from . import PATTERNS
from ._fold import needs_matrix


@PATTERNS.register("fan_in")
@dataclass(frozen=True)
class FanIn:
    """One group per output row or filter; units are its single weights.

    >>> import torch
    >>> FanIn().fold(torch.ones(3, 2, 5)).shape
    torch.Size([3, 10])
    """

    examples: ClassVar[tuple[str, ...]] = ("fan_in",)
    sparsity: ClassVar[float | None] = None

    @classmethod
    def parse(cls, text: str) -> FanIn | None:
        return cls() if text == "fan_in" else None

    def __str__(self) -> str:
        return "fan_in"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        return needs_matrix(shape)

    def fold(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def unfold(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        return table.reshape(shape)

    def places(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Flat places of units (group * units + unit), without a table of all."""
        return units

    def allowed(self, units: int) -> range:
        return range(units + 1)
