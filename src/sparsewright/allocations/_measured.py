"""What allocations share that must measure first: before, they say how."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import ClassVar

from torch import Tensor

from ..core import Shape
from ..errors import StateError


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
