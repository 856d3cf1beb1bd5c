"""Unstructured: any weight may be absent; one group of single weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from . import PATTERNS


@PATTERNS.register("unstructured")
@dataclass(frozen=True)
class Unstructured:
    """Any set of weights may be absent.

    >>> import torch
    >>> Unstructured().fold(torch.tensor([[1., 2.], [3., 4.]]))
    tensor([[1., 2., 3., 4.]])
    """

    examples: ClassVar[tuple[str, ...]] = ("unstructured",)
    sparsity: ClassVar[float | None] = None

    @classmethod
    def parse(cls, text: str) -> Unstructured | None:
        return cls() if text == "unstructured" else None

    def __str__(self) -> str:
        return "unstructured"

    def misfit(self, shape: tuple[int, ...]) -> str | None:
        return None

    def fold(self, weight: Tensor) -> Tensor:
        return weight.reshape(1, -1)

    def unfold(self, table: Tensor, shape: tuple[int, ...]) -> Tensor:
        return table.reshape(shape)

    def places(self, units: Tensor, shape: tuple[int, ...]) -> Tensor:
        """Flat places of units (group * units + unit), without a table of all."""
        return units

    def allowed(self, units: int) -> range:
        return range(units + 1)
