"""Phases: dense and sparse in turn, at given parts of the run (methods: AC/DC, DSD)."""

from __future__ import annotations

import math
from abc import abstractmethod
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..core import Layer, Update
from ..errors import ConfigError
from ..patterns import places_of
from ..ranking import best_units
from ._share import Scope, share_by_rank


@dataclass(frozen=True)
class Phased:
    """Dense to begin with; at every turn the network becomes sparse, or dense again.

    turns: the optimizer steps before which it changes, ascending; by default from the parts of
    the run that the method names.
    """

    turns: tuple[int, ...] | None = field(default=None, kw_only=True)
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False

    def __post_init__(self) -> None:
        name, parts = type(self).__name__, self.parts
        if not all(0.0 <= p < 1.0 for p in parts) or list(parts) != sorted(parts):
            raise ConfigError(
                f"method {name}: phases must be ascending parts of the run in [0, 1); got {parts}"
            )
        turns = self.turns
        if turns is not None and (list(turns) != sorted(turns) or any(t < 0 for t in turns)):
            raise ConfigError(f"method {name}: turns must be ascending steps; got {turns}")

    @property
    @abstractmethod
    def parts(self) -> tuple[float, ...]:
        """The turns as parts of the run, in [0, 1)."""

    @property
    @abstractmethod
    def scope(self) -> Scope:
        """Whether a cut ranks the units of one layer or of all."""

    @property
    def resets(self) -> bool:
        """Whether weights that stayed start anew too, for the optimizer, as a dense phase begins"""
        return False

    def bind(self, steps: int | None) -> Self:
        """Raises ConfigError if the run ends before the last turn."""
        if self.turns is not None:
            if steps is not None and self.turns and self.turns[-1] >= steps:
                raise ConfigError(
                    f"method {type(self).__name__}: the last turn must fall within the run, before "
                    f"step {steps}; got turns={self.turns}"
                )
            return self
        if steps is None:
            raise ConfigError(
                f"method {type(self).__name__} must know the run's length: give attach(steps=...), "
                f"or {type(self).__name__}(turns=...)"
            )
        return replace(self, turns=tuple(math.floor(p * steps + 1e-9) for p in self.parts))

    def begin(self, layer: Layer) -> Tensor:
        return layer.present_units

    def is_sparse(self, step: int) -> bool:
        """Whether this step is of a sparse phase: a mask holds, as many turns are behind it."""
        return self.turns is not None and bisect_right(self.turns, step) % 2 == 1

    def due(self, step: int) -> bool:
        return not self.turns or step <= self.turns[-1]

    def kept(self, layer: Layer, step: int) -> int:
        """Units of every group that the sparse phase keeps."""
        return layer.keep

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        if self._turns_at(step) and self.is_sparse(step) and self.scope == "global":
            share_by_rank(layers, "magnitude")

    def update(self, layer: Layer, step: int) -> Update | Tensor | None:
        if not self._turns_at(step):
            return None
        if self.is_sparse(step):
            return best_units(layer, "magnitude", self.kept(layer, step))
        return everything(layer, anew=self.resets)

    def _turns_at(self, step: int) -> bool:
        return self.is_sparse(step) != (step > 0 and self.is_sparse(step - 1))


def everything(layer: Layer, *, anew: bool) -> Update:
    """All units present: those that were absent at 0; anew: the optimizer forgets the others too.

    A unit that starts anew takes no part in the step that follows at once: it has no gradient.
    """
    count = layer.groups * layer.units
    units = torch.arange(count, device=layer.weight.device)
    if not anew:
        return Update(units)
    present = layer.present_units
    values, _ = layer.storage.take(places_of(layer.pattern, present, layer.shape))
    whole = values.new_zeros(count, layer.unit_size)
    whole[present] = values
    return Update(units, units, whole)
