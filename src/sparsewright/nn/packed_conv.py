"""Convolutions that train with their present weights only."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ..core import Pattern
from ..errors import KernelError
from ..kernels import Conv2d, packed, packed_ops
from ..topology import Topology
from .packed import PackedModule

Sizes = int | tuple[int, ...]


class PackedConv2d(PackedModule):
    """F.conv2d of whose weight only the present values and their places are stored. It trains.

    The first arguments are those of nn.Conv2d, the others those of PackedLinear. KernelError names
    what no kernel computes: padding other than with zeros, or more of it on one side. forward:
    x (N, C, H, W) or (C, H, W); KernelError if it does not fit.

    >>> conv = PackedConv2d(16, 32, 3, padding=1, sparsity=0.9)
    >>> conv(torch.ones(2, 16, 8, 8)).shape, conv.nnz
    (torch.Size([2, 32, 8, 8]), 461)
    """

    kind: ClassVar[type[Any]] = nn.Conv2d
    axes = 2

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Sizes,
        stride: Sizes = 1,
        padding: Sizes | str = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        bias: bool = True,
        padding_mode: str = "zeros",
        *,
        sparsity: float | None = None,
        pattern: str | Pattern = "unstructured",
        places: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        sizes: Any = (in_channels, out_channels, kernel_size, stride, padding, dilation, groups)
        like = self.kind(*sizes, bias, padding_mode, device="meta")
        operation = Conv2d.of(like)
        if isinstance(operation, str):
            raise KernelError(f"{type(self).__name__}: {operation}")
        self.operation = operation
        self.in_channels, self.out_channels = in_channels, out_channels
        self.kernel_size, self.stride, self.padding = like.kernel_size, like.stride, like.padding
        self.dilation, self.groups = like.dilation, groups
        self._begin(
            like,
            sparsity=sparsity,
            pattern=pattern,
            places=places,
            generator=generator,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (self.axes + 1, self.axes + 2):
            sizes = ("H, W", "L")[self.axes == 1]
            raise KernelError(
                f"{self.who}: needs x (N, {self.in_channels}, {sizes}); got {tuple(x.shape)}"
            )
        single = x.dim() == self.axes + 1
        y = self.convolve(x.unsqueeze(0) if single else x)
        return y.squeeze(0) if single else y

    def convolve(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, out, H', W')."""
        numbers = self.operation.numbers
        return packed_ops.conv2d(
            x, self.weight, self.bias, self.topology.number, self.out_channels, numbers
        )

    @property
    def _arguments(self) -> tuple[Any, ...]:
        sizes = (self.kernel_size, self.stride, self.padding, self.dilation, self.groups)
        return (self.in_channels, self.out_channels, *sizes, self.bias is not None)

    @classmethod
    def _like(cls, module: Any, **options: Any) -> PackedConv2d:
        m = module
        sizes = (m.kernel_size, m.stride, m.padding, m.dilation, m.groups)
        own = (m.in_channels, m.out_channels, *sizes, m.bias is not None, m.padding_mode)
        return cls(*own, **options)

    def _dense(self, **options: Any) -> nn.Module:
        return self.kind(*self._arguments, **options)

    def _dense_gradient(self, x: Tensor, dy: Tensor, begin: int, end: int) -> Tensor:
        out = dy.new_zeros(end - begin, self.topology.shape[1])
        conv, share = self.operation, self.out_channels // self.groups
        for g, part in enumerate(x.chunk(self.groups, 1)):
            low, high = max(begin, g * share), min(end, (g + 1) * share)
            if low >= high or not dy.numel():
                continue
            size = (high - low, part.shape[1], *conv.kernel)
            rows = conv2d_weight(
                part, size, dy[:, low:high], conv.stride, conv.padding, conv.dilation
            )
            out[low - begin : high - begin] = rows.flatten(1)
        return out

    def _gradient_at(self, chosen: Topology, x: Tensor, dy: Tensor) -> Tensor:
        if not dy.numel():
            return dy.new_zeros(chosen.nnz)
        return packed.conv2d_weight_gradient(chosen, dy, x, self.operation)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, "
            f"stride={self.stride}, padding={self.padding!r}, dilation={self.dilation}, "
            f"groups={self.groups}, {super().extra_repr()}"
        )


class PackedConv1d(PackedConv2d):
    """F.conv1d of whose weight only the present values and their places are stored. It trains.

    A PackedConv2d of height 1; the first arguments are those of nn.Conv1d. forward: x (N, C, L) or
    (C, L); KernelError if it does not fit.

    >>> PackedConv1d(8, 4, 5, padding="same", pattern="2:4")(torch.ones(8, 10)).shape
    torch.Size([4, 10])
    """

    kind = nn.Conv1d
    axes = 1

    def convolve(self, x: Tensor) -> Tensor:
        return super().convolve(x.unsqueeze(2)).squeeze(2)
