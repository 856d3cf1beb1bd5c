"""The specification of every kernel, in plain torch: absent weights take no part at all.

So an infinite or missing (NaN) activation reaches exactly those outputs that have a weight
present for it. Works in the dtype of its arguments: in float64 it is what float32 is held against.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

LANES = 16
PIECE = 2**24
"""Products held in memory at once."""


ACTIVATIONS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("none", lambda y: y),
    ("relu", F.relu),
    ("gelu", F.gelu),
    ("silu", F.silu),
)
"""What an op may apply to its output: its `activation` is the place in this tuple."""


def csr_linear(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out) = activation(x W^T + bias), W in layout csr.

    >>> rows, columns = torch.tensor([0, 1]), torch.tensor([2])
    >>> csr_linear(torch.tensor([1., 2., 3.]), rows, columns, torch.tensor([10.]), None)
    tensor([30.])
    """
    out = rows.shape[0] - 1
    row_of = torch.repeat_interleave(torch.arange(out), rows.long().diff())
    return product(x, row_of, columns.long(), values, bias, out, activation)


def nm_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out_features) = activation(x W^T + bias), W in layout nm."""
    tile, at, slot, lane = torch.nonzero(values, as_tuple=True)
    places = columns[tile, at, slot, lane].long()
    rows, present = tile * LANES + lane, values[tile, at, slot, lane]
    columns_of = at * chunk + places
    return product(x, rows, columns_of, present, bias, out_features, activation)


def product(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    out: int,
    activation: int,
) -> Tensor:
    """Weight i connects column columns[i] to row rows[i]."""
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y = flat.new_zeros(flat.shape[0], out)
    step = max(1, PIECE // max(1, values.shape[0]))
    for begin in range(0, flat.shape[0], step):
        part = flat[begin : begin + step]
        y[begin : begin + step].index_add_(1, rows, part[:, columns] * values)
    if bias is not None:
        y += bias
    return ACTIVATIONS[activation][1](y).reshape(*x.shape[:-1], out)
