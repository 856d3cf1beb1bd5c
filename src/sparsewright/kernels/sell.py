"""The CPU kernels of layout sell: 16 rows in lanes, for single activations above all."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._ops import define, register


def sell_reference(
    x: Tensor,
    starts: Tensor,
    order: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out_features) = activation(x W^T + bias), W in layout sell."""
    slice_of = torch.repeat_interleave(torch.arange(len(order)), starts.long().diff())
    step, lane = torch.nonzero(values, as_tuple=True)
    rows = order.long()[slice_of[step], lane]
    at, present = columns.to(torch.int32)[step, lane].long(), values[step, lane]
    return reference.product(x, rows, at, present, bias, out_features, activation, scales)


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rest[6])


sell_linear = define(
    "sell_linear(Tensor x, Tensor starts, Tensor order, Tensor columns, Tensor values, "
    "Tensor? scales, Tensor? bias, int out_features, int activation, int isa) -> Tensor",
    sell_reference,
    _shape,
)
register(
    "sell",
    sell_linear,
    sell_reference,
    ("starts", "order", "columns", "values"),
    lambda packed: (packed.shape[0],),
)
