"""The specification of every kernel, in plain torch: absent weights take no part at all.

So an infinite or missing (NaN) activation reaches exactly those outputs that have a weight
present for it. Works in the dtype of its arguments: in float64 it is what float32 is held against.
"""

from __future__ import annotations

import torch
from torch import Tensor

LANES = 16
PIECE = 2**24
"""Products held in memory at once."""


def csr_linear(
    x: Tensor, rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None
) -> Tensor:
    """x (..., in) -> y (..., out) = x W^T + bias, W in layout csr.

    >>> rows, columns = torch.tensor([0, 1]), torch.tensor([2])
    >>> csr_linear(torch.tensor([1., 2., 3.]), rows, columns, torch.tensor([10.]), None)
    tensor([30.])
    """
    out = rows.shape[0] - 1
    row_of = torch.repeat_interleave(torch.arange(out), rows.long().diff())
    return _product(x, row_of, columns.long(), values, bias, out)


def nm_linear(
    x: Tensor, values: Tensor, columns: Tensor, bias: Tensor | None, out_features: int, chunk: int
) -> Tensor:
    """x (..., in) -> y (..., out_features) = x W^T + bias, W in layout nm."""
    tile, at, slot, lane = torch.nonzero(values, as_tuple=True)
    places = columns[tile, at, slot, lane].long()
    rows, present = tile * LANES + lane, values[tile, at, slot, lane]
    return _product(x, rows, at * chunk + places, present, bias, out_features)


def _product(
    x: Tensor, rows: Tensor, columns: Tensor, values: Tensor, bias: Tensor | None, out: int
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
    return y.reshape(*x.shape[:-1], out)
