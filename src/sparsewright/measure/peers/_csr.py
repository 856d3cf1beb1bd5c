"""What all csr libraries are given: int32 places, and activations with the batch along the rows.

The example is transposed before the clock runs, so no peer is charged for it.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..chain import chain
from ..timing import Call
from . import FEATURE_MAJOR, Case, Ready


@dataclass(frozen=True)
class Csr:
    """A weight (out, in): rows (out + 1), columns (nnz) int32, values (nnz) float32."""

    shape: tuple[int, int]
    rows: Tensor
    columns: Tensor
    values: Tensor


Product = Callable[[Csr, Tensor, Tensor], Call]
"""(W, x (in, batch), y (out, batch)) -> a call that writes W x into y."""


def csr_of(weight: Tensor) -> Csr:
    """
    >>> csr_of(torch.tensor([[0., 5.], [7., 0.]])).columns
    tensor([1, 0], dtype=torch.int32)
    """
    present = weight != 0
    counts = torch.cat([torch.zeros(1, dtype=torch.int64), present.sum(dim=1).cumsum(0)])
    columns = present.nonzero()[:, 1].int()
    return Csr((weight.shape[0], weight.shape[1]), counts.int(), columns, weight[present])


def run_chain(case: Case, product: Product, *notes: str) -> Ready | str:
    """The case as products that write into buffers of their own, if it is a chain of them. notes:
    what else a reader must know."""
    steps = chain(case.model, case.example)
    if isinstance(steps, str):
        return steps
    x = case.example.flatten(1).T.contiguous()
    calls: list[Call] = []
    for step in steps:
        if isinstance(step, nn.Linear):
            y = torch.zeros(step.out_features, x.shape[1])
            calls.append(product(csr_of(step.weight.detach()), x, y))
            if step.bias is not None:
                calls.append(functools.partial(y.add_, step.bias.detach()[:, None]))
        else:
            y = torch.zeros_like(x)
            calls.append(functools.partial(torch.clamp, x, min=0, out=y))
        x = y
    run = calls[0] if len(calls) == 1 else _in_turn(calls)
    return Ready(run, read=lambda: x.T.contiguous(), note="; ".join((FEATURE_MAJOR, *notes)))


def _in_turn(calls: list[Call]) -> Call:
    def run() -> None:
        for call in calls:
            call()

    return run
