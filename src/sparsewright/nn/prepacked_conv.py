"""A dense convolution that holds its weight as its kernel wants it: oneDNN's order, or channels
last."""

from __future__ import annotations

from torch import Tensor

from ..core import Shape
from ..kernels import Conv2d
from .prepacked import Prepacked


class PrepackedConv2d(Prepacked):
    """F.conv2d by a dense kernel of the table, for inference.

    weight: (out, C / groups, height, width). shape: of inputs that are likely. forward: x
    (N, C, H, W) or (C, H, W). KernelError where the kernel cannot serve.

    >>> import torch
    >>> name = "dense.conv2d.channels_last"
    >>> conv = PrepackedConv2d(torch.ones(1, 1, 1, 2), None, Conv2d((1, 2)), (1, 1, 1, 3), name)
    >>> conv(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[3., 5.]]]])
    """

    axes = 2

    def __init__(
        self, weight: Tensor, bias: Tensor | None, operation: Conv2d, shape: Shape, kernel: str
    ):
        super().__init__(weight, bias, operation, shape, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x) if x.dim() == self.axes + 2 else self.convolve(x[None])[0]

    def convolve(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, out, H', W')."""
        return self.run(x)

    def extra_repr(self) -> str:
        return f"{self.operation}, bias={self.bias is not None}, kernel={self.kernel}"


class PrepackedConv1d(PrepackedConv2d):
    """F.conv1d as a PrepackedConv2d of height 1; x (N, C, L) or (C, L).

    >>> import torch
    >>> name = "dense.conv2d.channels_last"
    >>> conv = PrepackedConv1d(torch.ones(1, 1, 1, 2), None, Conv2d((1, 2)), (1, 1, 1, 3), name)
    >>> conv(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[3., 5.]]])
    """

    axes = 1

    def convolve(self, x: Tensor) -> Tensor:
        return self.run(x.unsqueeze(2)).squeeze(2)
