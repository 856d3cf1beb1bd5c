"""Sums over a pattern's units of anything that lies beside a weight, in either storage."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer, View
from ..patterns import places_of
from ..scores._wide import wide


@dataclass(frozen=True)
class Square:
    """w^2 of every weight: the best units are those whose loss changes a weight least in L2."""

    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return wide(layer.weight).square()


def folded(layer: Layer, values: Tensor) -> Tensor:
    """Values in the shape of `layer.weight` -> (groups, units), summed inside each unit.

    The units of a packed weight are the present ones.
    """
    if values.shape == layer.shape:
        return layer.pattern.fold(values)
    total = values.new_zeros(layer.storage.count()).index_add_(0, _unit_of_each(layer), values)
    return total.view(layer.groups, len(total) // max(1, layer.groups))


def unfolded(layer: Layer, table: Tensor) -> Tensor:
    """(groups, units) as `folded` gives them -> the shape of `layer.weight`, repeated."""
    if layer.weight.shape == layer.shape:
        return layer.pattern.unfold(table, layer.shape)
    return table.reshape(-1)[_unit_of_each(layer)]


def unit_norms(layer: Layer) -> Tensor:
    """The L2 norm of the unit that each weight lies in, in the shape of `layer.weight`, float32 or
    wider: squares of half-precision weights would vanish."""
    weight = wide(layer.weight)
    if layer.unit_size == 1:
        return weight.abs()
    return unfolded(layer, folded(layer, weight.square()).sqrt())


def _unit_of_each(layer: Layer) -> Tensor:
    """Of every value of a packed weight, which of the present units it lies in: 0, 1, ..."""
    places = places_of(layer.pattern, layer.present_units, layer.shape)
    return torch.div(places.reshape(-1).argsort(), layer.unit_size, rounding_mode="floor")
