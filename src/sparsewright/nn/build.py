"""From the choice of a kernel to the module that runs it."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ..kernels import Choice
from ..registry import Table
from .packed_linear import PackedLinear
from .prepacked_linear import PrepackedLinear

Build = Callable[[Tensor, Tensor | None, int], nn.Module]
DENSE: Table[Build] = Table("dense kernel")
"""Kernel -> (weight, bias, rows of x) -> module."""
DENSE.register("dense.onednn")(PrepackedLinear)


@DENSE.register("dense.eager")
def plain(weight: Tensor, bias: Tensor | None, rows: int) -> nn.Linear:
    """An ordinary Linear with copies of these values, frozen."""
    linear = nn.Linear(1, 1, bias is not None)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def build_linear(choice: Choice, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The module that computes x W^T + bias by the chosen kernel, in eval mode.

    >>> import torch
    >>> from sparsewright.kernels import choose
    >>> weight = torch.eye(32)
    >>> choice = choose(weight, None, torch.ones(1, 32), seconds=0.01)
    >>> torch.equal(build_linear(choice, weight, None)(torch.ones(1, 32)), torch.ones(1, 32))
    True
    """
    if choice.packed is not None:
        return PackedLinear(choice.packed, bias, choice.kernel).eval()
    return DENSE[choice.kernel](weight, bias, choice.batch).eval()
