"""Dense first, then one cut to the budget: what methods share that prepare a network for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

from torch import Tensor

from ..core import Layer, Score
from ..errors import ConfigError, StateError
from ..ranking import best_units
from ._drop_grow import check_option
from ._share import SCOPES, Scope, share_by_rank
from ._timing import check_timing, check_within, end_of
from ._units import Square

SQUARE = Square()


@dataclass(frozen=True)
class DenseFirst:
    """All weights are present until step `end`, when every layer is cut to its budget.

    end: the step before which the cut falls, by default three quarters of the run; what is left
    of it trains on under fixed masks. scope: the cut ranks the units of every "layer" by
    themselves, or those of all layers together ("global").
    """

    end: int | None = field(default=None, kw_only=True)
    scope: Scope = field(default="layer", kw_only=True)
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = False

    def __post_init__(self) -> None:
        check_timing(type(self).__name__, 1, 0, self.end)
        check_option(type(self).__name__, "scope", self.scope, SCOPES)

    @property
    def importance(self) -> str | Score:
        """What the cut ranks by: a unit's share of the squared length, whatever its size."""
        return SQUARE

    def bind(self, steps: int | None) -> Self:
        """Raises ConfigError if the run ends before the cut: the sparsity would be missed."""
        name = type(self).__name__
        end = end_of(name, 0, self.end, steps)
        check_within(name, "the cut must fall", end, steps)
        return replace(self, end=end)

    def begin(self, layer: Layer) -> Tensor:
        return layer.present_units

    def due(self, step: int) -> bool:
        return self.end is None or step <= self.end

    def is_over(self, step: int) -> bool:
        """Whether the cut has been made before this step, or is made before it."""
        return self.end is not None and step >= self.end

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        if step == self.end and self.scope == "global":
            share_by_rank(layers, self.importance)

    def update(self, layer: Layer, step: int) -> Tensor | None:
        return best_units(layer, self.importance, layer.keep) if step == self.end else None


def check_strength(method: str, name: str, value: float) -> None:
    """Raise ConfigError unless a penalty's factor is finite and not below 0."""
    if not 0.0 <= value < float("inf"):
        raise ConfigError(f"method {method}: {name} must be 0 or more, and finite; got {value}")


def add_to_gradient(layer: Layer, term: Tensor) -> None:
    """Add a penalty's slope to a layer's gradient; StateError if that holds some rows only."""
    gradient = layer.weight.grad
    assert gradient is not None
    if gradient.is_sparse:
        raise StateError(
            f"layer {layer.name!r}: a penalty reaches every weight, and the gradient is sparse; "
            "take sparse=False, or a proximal step (soft_l1, group_lasso), which needs none"
        )
    gradient.add_(term.to(gradient.dtype))
