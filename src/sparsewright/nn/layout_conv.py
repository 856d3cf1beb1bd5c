"""Convolutions whose weight is packed: only the present values and their places are stored."""

from __future__ import annotations

from torch import Tensor

from .. import library
from ..core import Packed
from ..errors import KernelError
from ..kernels import Conv2d
from .layout import LayoutLayer


class LayoutConv2d(LayoutLayer):
    """F.conv2d over a packed weight, for inference; the output is contiguous.

    packed: the weight's (out, C / groups * height * width) matrix; validated here. operation: its
    kernel, stride, padding, dilation and groups. kernel: a name of KERNELS; None takes the best
    instruction set that this CPU has. Raises LayoutError if the weight breaks a rule, KernelError
    if it does not fit the operation, or the kernel cannot serve. forward: x (N, C, H, W) or
    (C, H, W) float32 of any strides; KernelError if x wants a gradient.

    >>> import torch
    >>> from sparsewright.layouts import pack
    >>> conv = LayoutConv2d(pack("csr", torch.tensor([[0.0, 2.0]])), Conv2d((1, 2)))
    >>> conv(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[4., 6.]]]])
    """

    operation: Conv2d
    axes = 2

    def __init__(
        self,
        packed: Packed,
        operation: Conv2d,
        bias: Tensor | None = None,
        kernel: str | None = None,
    ):
        super().__init__(packed, operation, bias, kernel)
        self.out_channels, fan_in = packed.shape
        self.in_channels = fan_in // operation.places * operation.groups
        if fan_in % operation.places or self.out_channels % operation.groups:
            raise KernelError(
                f"a convolution of {operation.kernel} in {operation.groups} groups needs a fan-in "
                f"divisible by {operation.places} and outputs divisible by {operation.groups}; "
                f"got {fan_in} and {self.out_channels}"
            )

    def to_dense(self) -> Tensor:
        """The weight with its zeros, as F.conv2d takes it."""
        return super().to_dense().unflatten(1, (-1, *self.operation.kernel[2 - self.axes :]))

    def forward(self, x: Tensor) -> Tensor:
        library.refuse_gradient(x)
        single = x.dim() == self.axes + 1
        whole = x.unsqueeze(0) if single else x
        if whole.dim() != self.axes + 2 or whole.shape[1] != self.in_channels:
            sizes = ("H, W", "L")[self.axes == 1]
            raise KernelError(
                f"{self.who}: needs x (N, {self.in_channels}, {sizes}); got {tuple(x.shape)}"
            )
        y = self.convolve(whole)
        return y.squeeze(0) if single else y

    def convolve(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, out, H', W')."""
        return self.run(x)

    def extra_repr(self) -> str:
        o = self.operation
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={o.kernel}, stride={o.stride}, "
            f"padding={o.padding}, dilation={o.dilation}, groups={o.groups}, "
            f"{super().extra_repr()}"
        )


class LayoutConv1d(LayoutConv2d):
    """F.conv1d over a packed weight: a LayoutConv2d of height 1; x (N, C, L) or (C, L).

    >>> import torch
    >>> from sparsewright.layouts import pack
    >>> conv = LayoutConv1d(pack("csr", torch.tensor([[0.0, 2.0]])), Conv2d((1, 2)))
    >>> conv(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[4., 6.]]])
    """

    axes = 1

    def convolve(self, x: Tensor) -> Tensor:
        return self.run(x.unsqueeze(2)).squeeze(2)
