"""Masking: zeros where weights are absent, in one pass of vectors where compiled kernels serve.

They take contiguous float32 on a CPU; torch's masked_fill does all else, weight by weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import library
from ..library import BEST


def zero_(values: Tensor, where: Tensor) -> None:
    """Put values to 0 where `where` (bool, the same shape) is True, in place, outside autograd.

    >>> values = torch.tensor([1.0, float("nan")])
    >>> zero_(values, torch.tensor([False, True]))
    >>> values
    tensor([1., 0.])
    """
    with torch.no_grad():
        if _served(values, where):
            _ops().zero_where_(values, where, BEST)
            torch.autograd.graph.increment_version(values)
        else:
            values.masked_fill_(where, 0.0)


def zeroed(values: Tensor, where: Tensor) -> Tensor:
    """A copy of the values with 0 where `where` is True.

    >>> zeroed(torch.ones(2), torch.tensor([False, True]))
    tensor([1., 0.])
    """
    follows = values.requires_grad and torch.is_grad_enabled()
    if not follows and _served(values, where):
        return _ops().zero_where(values, where, BEST)
    return values.masked_fill(where, 0.0)


def _ops() -> Any:
    return torch.ops.sparsewright


def _served(values: Tensor, where: Tensor) -> bool:
    return (
        values.dtype == torch.float32
        and type(values) in PLAIN
        and values.device.type == where.device.type == "cpu"
        and values.shape == where.shape
        and values.is_contiguous()
        and where.is_contiguous()
        and library.why_not_compiled("zero_where") is None
        and not torch.compiler.is_compiling()
    )


PLAIN = (Tensor, torch.nn.Parameter)
"""Not tensors that stand for others (DTensor, FakeTensor)."""
