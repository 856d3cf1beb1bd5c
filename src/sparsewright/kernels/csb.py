"""The CPU kernels of layout csb: a chunk of the activations in the nearest cache, for batches."""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from torch import Tensor

from .. import library
from ..core import Packed
from ..layouts import VALUES
from . import reference
from ._ops import NO_ACTIVATION, define, held, register
from .table import KERNELS, Kernel, Prepared, as_packed

BATCHES = {16: (9, math.inf), 8: (2, 8)}
"""Rows of the batch side by side, and for which batches: of fewer, most of sixteen would be empty,
and one row alone is better served by layouts whose lanes hold rows of the weight."""
MOST_WEIGHTS = 2**19
"""As csrc/csb_code.cpp has it: code of more comes from afar, and slower than what loops read."""
MOST_PRESENT = 0.75
"""The same: of nearly dense weights, loops are as fast."""


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
TENSORS = ("starts", "pairs", "columns", "values")


def _numbers(packed: Packed) -> tuple[int, ...]:
    return packed.shape[0], packed.meta["chunk"], packed.meta["block"]


register("csb", csb_linear, csb_reference, TENSORS, _numbers, chains_exactly=False)


def _prepare(lanes: int, weight: Packed | Tensor, rows: int) -> Prepared:
    packed = as_packed(weight)
    numbers = (*_numbers(packed), NO_ACTIVATION, library.CODE[lanes])
    return Prepared(held(packed, TENSORS), numbers)


def _why_no_code(weight: Tensor | None = None) -> str | None:
    reason = library.why_no_code()
    if reason is not None or weight is None:
        return reason
    count = int(weight.count_nonzero())
    if count > MOST_WEIGHTS:
        return f"at most {MOST_WEIGHTS} weights are made code; this layer has {count}"
    if count > MOST_PRESENT * weight.numel():
        return (
            f"{count / weight.numel():.0%} of the weights are present; of more than "
            f"{MOST_PRESENT:.0%} loops are as fast"
        )
    return None


# The same op: bound, it runs the weight as instructions of its own (csrc/code_linear.h), which are
# a copy of the values; called in any other way, as in an exported program, it is csb's best loops.
for _lanes, _batches in BATCHES.items():
    _name = f"csb.code{_lanes}"
    KERNELS.register(_name)(
        Kernel(
            _name,
            "csb",
            "cpu",
            _why_no_code,
            functools.partial(_prepare, _lanes),
            csb_linear,
            values=tuple(VALUES),
            batches=_batches,
            runs_code=True,
            chains_exactly=False,
        )
    )
