"""A Linear whose weight is packed: only the present values and their places are stored."""

from __future__ import annotations

from torch import Tensor

from .. import library
from ..core import Packed
from ..errors import KernelError
from ..kernels import Linear
from .layout import LayoutLayer


class LayoutLinear(LayoutLayer):
    """y = x W^T + bias over a packed weight, for inference.

    packed: the weight; validated here. kernel: a name of KERNELS for its layout; None takes the
    best instruction set that this CPU has. The packed tensors are buffers by their layout's own
    names. Raises LayoutError if the weight breaks a rule, KernelError if the kernel cannot serve.
    forward: x (..., in) float32 -> (..., out); KernelError if x wants a gradient.

    >>> import torch
    >>> from sparsewright.layouts import pack
    >>> layer = LayoutLinear(pack("csr", 2 * torch.eye(3)), torch.ones(3), "csr.reference")
    >>> layer(torch.tensor([1., 2., 3.]))
    tensor([3., 5., 7.])
    """

    def __init__(self, packed: Packed, bias: Tensor | None = None, kernel: str | None = None):
        super().__init__(packed, Linear(), bias, kernel)
        self.out_features, self.in_features = packed.shape

    def forward(self, x: Tensor) -> Tensor:
        library.refuse_gradient(x)
        if not x.dim() or x.shape[-1] != self.in_features:
            raise KernelError(
                f"{self.who}: needs x (..., {self.in_features}); got {tuple(x.shape)}"
            )
        return self.run(x)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {super().extra_repr()}"
