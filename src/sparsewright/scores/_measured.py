"""What measured scores share: what they found, and a score that has not measured yet."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..calibration import Calibration
from ..core import Layer, Pattern, View, table_size
from ..errors import MisfitError, StateError
from ..weights import is_packed


class ToMeasure:
    """A score that must measure before it can judge: called before, it says how."""

    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "all"
    rounds: ClassVar[int] = 1

    def __call__(self, layer: View) -> Tensor:
        raise StateError(
            f"layer {layer.name!r}: score {self} measures the model before it judges weights: let "
            "sw.prune call it, and train on under its masks with "
            "sw.attach(..., method='static', masks=sw.masks_of(model))"
        )


@dataclass(frozen=True, eq=False)
class Found:
    """Scores that were measured: layer name -> scores in the dense weight's shape."""

    scores: Mapping[str, Tensor] = field(repr=False)
    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "all"

    def __call__(self, layer: View) -> Tensor:
        return self.scores[layer.name]


@dataclass(frozen=True, eq=False)
class FoundUnits:
    """Scores of whole units that were measured: layer name -> (groups, units)."""

    tables: Mapping[str, Tensor] = field(repr=False)
    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "all"

    def of_units(self, layer: View, pattern: Pattern) -> Tensor:
        return self.tables[layer.name]

    def __call__(self, layer: View) -> Tensor:
        raise StateError(f"layer {layer.name!r}: units were measured, and no single weights")


def dense(layer: Layer, values: Tensor) -> Tensor:
    """Values, or gradients, that belong to `layer.weight`, in the dense weight's shape; wide.

    A packed weight's are put to their places, 0 elsewhere.
    """
    found = values.detach()
    found = found if found.layout == torch.strided else found.to_dense()
    found = found.to(torch.promote_types(found.dtype, torch.float32))
    if found.shape == layer.shape:
        return found
    out = found.new_zeros(layer.shape)
    out[layer.mask] = found
    return out


def is_whole_rows(pattern: Pattern, shape: tuple[int, ...]) -> bool:
    """Whether the units are the rows of the weight, in order: output neurons or filters."""
    size = table_size(pattern, shape)
    if size[0] * size[1] != shape[0]:
        return False
    rows = torch.arange(shape[0], dtype=torch.int32)
    spread = pattern.unfold(rows.view(size), shape)
    return bool((spread == rows.view(-1, *[1] * (len(shape) - 1))).all())


def check_rows(score: object, name: str, pattern: Pattern, shape: tuple[int, ...]) -> None:
    """MisfitError unless the pattern's units are whole output neurons or filters."""
    if not is_whole_rows(pattern, shape):
        raise MisfitError(
            f"layer {name!r}: score {score} judges whole output neurons or filters, which are the "
            f"units of pattern 'channel'; got pattern {str(pattern)!r}"
        )


def check_reached(names: Mapping[str, bool], score: object) -> None:
    """StateError if what was measured does not depend on some layer's weight."""
    for name, reached in names.items():
        if not reached:
            raise StateError(
                f"layer {name!r}: score {score} measures how much depends on its weight, and "
                f"nothing does: no batch reaches it; leave it out (skip=[{name!r}])"
            )


def refuse_packed(calibration: Calibration, score: object) -> None:
    """StateError if a layer is packed."""
    for name, module in calibration.modules().items():
        if is_packed(module):
            raise StateError(
                f"layer {name!r} is packed, and score {score} needs what only dense layers have: "
                "sw.unpack first"
            )
