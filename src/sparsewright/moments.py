"""Moments: what a layer's inputs on data say of it: X X^T and the inputs' squared norms.

X holds one column for each row of a Linear's input, or for each patch that a convolution multiplies
its filters with; the order of its rows is that of `weight.flatten(1)`.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .errors import ConfigError, StateError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
MEASURED = (nn.Linear, *CONVOLUTIONS)
AT_ONCE = 2**24
"""Entries of X made at a time."""


class Moments:
    """Of one layer: sums over all inputs that it was shown.

    second: (groups, in, in) X X^T of each group of a convolution, of a Linear's one, or None where
    only norms are wanted. squares: (groups, in) its diagonal. count: columns of X.

    >>> moments = Moments(nn.Linear(2, 1))
    >>> moments.add(torch.tensor([[1., 2.], [3., 0.]]))
    >>> moments.second.tolist(), moments.squares.tolist(), moments.count
    ([[[10.0, 2.0], [2.0, 4.0]]], [[10.0, 4.0]], 2)
    """

    def __init__(
        self, module: nn.Module, dtype: torch.dtype = torch.float64, second: bool = True
    ) -> None:
        if dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"moments are summed in torch.float64 or float32; got {dtype}")
        self.module, self.dtype, self.count = module, dtype, 0
        groups, inputs = sizes(module)
        device = next(module.parameters()).device
        self.second: Tensor | None = None
        if second:
            self.second = torch.zeros(groups, inputs, inputs, dtype=dtype, device=device)
        self._squares = torch.zeros(groups, inputs, dtype=dtype, device=device)

    @property
    def squares(self) -> Tensor:
        if self.second is None:
            return self._squares
        return self.second.diagonal(dim1=1, dim2=2)

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take in one input of the layer, in the shape in which the layer is given it."""
        x, each = as_batch(self.module, x.detach())
        step = max(1, AT_ONCE // max(1, each))
        for i in range(0, len(x), step):
            rows = patches(self.module, x[i : i + step]).to(self._squares)  # (groups, n, in)
            self.count += rows.shape[1]
            if self.second is None:
                self._squares += rows.square().sum(dim=1)
            else:
                self.second.baddbmm_(rows.mT, rows)

    def check(self, name: str) -> None:
        """StateError if the inputs were not finite."""
        if not torch.isfinite(self.squares).all():
            raise StateError(f"layer {name!r}: its inputs on the data are not finite")


def sizes(module: nn.Module) -> tuple[int, int]:
    """(groups, inputs of one output neuron or filter)."""
    weight: Any = module.weight
    return getattr(module, "groups", 1), math.prod(weight.shape[1:])


def way(module: nn.Module) -> tuple[Any, ...]:
    """What decides X besides the input: two layers of one input and one way have the same X."""
    if not isinstance(module, CONVOLUTIONS):
        return ("linear", *sizes(module))
    geometry = (module.kernel_size, module.stride, module.padding, module.dilation)
    return (type(module).__name__, *sizes(module), *geometry, module.padding_mode)


def as_batch(module: nn.Module, x: Tensor) -> tuple[Tensor, int]:
    """The input with one first axis along which it may be cut, and entries of X of each part."""
    _, inputs = sizes(module)
    if not isinstance(module, CONVOLUTIONS):
        if not x.dim() or x.shape[-1] != inputs:
            raise ConfigError(
                f"the data give a layer of {inputs} inputs a tensor of shape {tuple(x.shape)}"
            )
        return x.reshape(-1, inputs), inputs
    if x.dim() == len(module.kernel_size) + 1:  # one image
        x = x[None]
    return x, math.prod(x.shape[2:]) * inputs * module.groups


def patches(module: nn.Module, x: Tensor) -> Tensor:
    """(groups, n, in): every column of X as a row.

    >>> conv = nn.Conv1d(1, 1, 2)
    >>> patches(conv, torch.tensor([[[1., 2., 3.]]])).tolist()
    [[[1.0, 2.0], [2.0, 3.0]]]
    """
    if not isinstance(module, CONVOLUTIONS):
        return x[None]
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, _padding(module), mode=mode)
    axes = len(module.kernel_size)
    for axis in range(axes):
        size, dilation = module.kernel_size[axis], module.dilation[axis]
        x = x.unfold(axis + 2, (size - 1) * dilation + 1, module.stride[axis])[..., ::dilation]
    x = x.unflatten(1, (module.groups, -1))  # (batch, groups, channels, *places, *kernel)
    places, kernel = range(3, 3 + axes), range(3 + axes, 3 + 2 * axes)
    x = x.permute(1, 0, *places, 2, *kernel)
    return x.reshape(module.groups, -1, sizes(module)[1])


def _padding(module: nn.Module) -> list[int]:
    """As F.pad has it: from the last axis on, in front and behind."""
    assert isinstance(module, CONVOLUTIONS)
    if module.padding == "valid":
        return [0, 0] * len(module.kernel_size)
    if module.padding == "same":
        extents = zip(module.kernel_size, module.dilation, strict=True)
        totals = [dilation * (size - 1) for size, dilation in extents]
        pairs = [(total // 2, total - total // 2) for total in totals]
    else:
        pairs = [(int(size), int(size)) for size in module.padding]
    return list(itertools.chain.from_iterable(reversed(pairs)))
