"""The CPU kernels of layout csb: a chunk of the activations in the nearest cache, for batches."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import reference
from ._ops import define, register


def csb_reference(
    x: Tensor,
    starts: Tensor,
    pairs: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    block: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out_features) = activation(x W^T + bias), W in layout csb."""
    chunks, coded = max(1, -(-x.shape[-1] // chunk)), pairs.long()
    cell = torch.repeat_interleave(torch.arange(len(starts) - 1), starts[:, 0].long().diff())
    step, lane = torch.nonzero(values, as_tuple=True)
    pair = torch.repeat_interleave(torch.arange(len(coded)), coded >> 16)[step]
    rows = cell[pair] // chunks * block + (coded[pair] >> 8 * lane & 255)
    at = cell[pair] % chunks * chunk + columns[step, lane].long()
    present = values[step, lane]
    return reference.product(x, rows, at, present, bias, out_features, activation, scales)


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return (*x.shape[:-1], rest[6])


csb_linear = define(
    "csb_linear(Tensor x, Tensor starts, Tensor pairs, Tensor columns, Tensor values, "
    "Tensor? scales, Tensor? bias, int out_features, int chunk, int block, int activation, "
    "int isa) -> Tensor",
    csb_reference,
    _shape,
)
register(
    "csb",
    csb_linear,
    csb_reference,
    ("starts", "pairs", "columns", "values"),
    lambda packed: (packed.shape[0], packed.meta["chunk"], packed.meta["block"]),
)
