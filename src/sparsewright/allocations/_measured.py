"""What allocations share that must measure first: before, they say how; after, they have looked at
every layer."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from torch import Tensor

from ..core import Shape
from ..errors import BudgetError, StateError

T = TypeVar("T")


class ToMeasure:
    """An allocation that is no good before `prune` has had it measure."""

    needs_scores: ClassVar[bool] = False
    dense_first: ClassVar[bool] = False

    def __call__(
        self, shapes: Mapping[str, Shape], sparsity: float, scores: Mapping[str, Tensor] | None
    ) -> dict[str, float]:
        raise StateError(
            f"allocation {self} measures the model before it shares out: let sw.prune(..., "
            "data=batches) call it, and train on under its masks with "
            "sw.attach(..., method='static', masks=sw.masks_of(model))"
        )


@dataclass(frozen=True, eq=False)
class Found(Generic[T]):
    """An allocation that has measured: layer name -> what it shares out by."""

    found: Mapping[str, T]
    needs_scores: ClassVar[bool] = False
    dense_first: ClassVar[bool] = False

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        """BudgetError for a layer that was not measured."""
        for name in shapes:
            if name not in self.found:
                raise BudgetError(
                    f"layer {name!r}: this allocation did not measure it; it measured: "
                    f"{', '.join(self.found) or 'none'}"
                )
        return self.shared({name: math.prod(shape) for name, shape in shapes.items()}, sparsity)

    def shared(self, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        """Layer name -> sparsity, by the layers' numbers of weights; all of them were measured."""
        raise NotImplementedError


def solve(rises: Callable[[float], float], wanted: float, low: float, high: float) -> float:
    """Where between low and high a function that never falls reaches `wanted`, to the last bit.

    >>> round(solve(lambda x: x**3, 8.0, 0.0, 10.0), 9)
    2.0
    """
    for _ in range(200):
        middle = (low + high) / 2
        if not low < middle < high:
            break
        low, high = (middle, high) if rises(middle) < wanted else (low, middle)
    return high
