"""The CPU kernels of layout block: a column of the activations is loaded for several rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._ops import define, register


def block_reference(
    x: Tensor,
    starts: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    in_features: int,
    out_features: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in_features) -> y (..., out_features) = activation(x W^T + bias), W in layout
    block. RuntimeError if x has another number of features."""
    if x.shape[-1] != in_features:
        raise RuntimeError(f"x must have {in_features} in_features; got {x.shape[-1]}")
    place = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.long().diff())
    step, lane = torch.nonzero(values, as_tuple=True)
    rows, at = place[step] // 2 * values.shape[1] + lane, columns.to(torch.int32)[step].long()
    present = values[step, lane]
    return reference.product(x, rows, at, present, bias, out_features, activation, scales)


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rest[6])


block_linear = define(
    "block_linear(Tensor x, Tensor starts, Tensor columns, Tensor values, Tensor? scales, "
    "Tensor? bias, int in_features, int out_features, int activation, int isa) -> Tensor",
    block_reference,
    _shape,
)
register(
    "block",
    block_linear,
    block_reference,
    ("starts", "columns", "values"),
    lambda packed: (packed.shape[1], packed.shape[0]),
)
