"""The CPU kernels of layout window: 16 rows in lanes, their activations looked up in registers, for
single activations and a few."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..layouts.window import columns_of, padded
from ._ops import define, register
from .sell import sell_reference


def window_reference(
    x: Tensor,
    starts: Tensor,
    order: Tensor,
    columns: Tensor,
    places: Tensor,
    firsts: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out_features) = activation(x W^T + bias), W in layout window."""
    each, values = columns_of(columns, places), padded(places, values)
    return sell_reference(x, starts, order, each, values, scales, bias, out_features, activation)


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rest[9])


window_linear = define(
    "window_linear(Tensor x, Tensor starts, Tensor order, Tensor columns, Tensor places, "
    "Tensor firsts, Tensor values, Tensor? scales, Tensor? bias, int in_features, "
    "int out_features, int activation, int isa) -> Tensor",
    window_reference,
    _shape,
)
register(
    "window",
    window_linear,
    window_reference,
    ("starts", "order", "columns", "places", "firsts", "values"),
    lambda packed: (packed.shape[1], packed.shape[0]),
    chains_exactly=False,
)
