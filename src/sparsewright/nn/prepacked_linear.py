"""A dense Linear whose weight oneDNN has reordered once: the dense way where it is the fastest."""

from __future__ import annotations

from torch import Tensor

from ..kernels import Linear
from .prepacked import Prepacked


class PrepackedLinear(Prepacked):
    """y = x W^T + bias through oneDNN's own order of the weight, for inference.

    rows: about how many rows x will have. KernelError without oneDNN.

    >>> import torch
    >>> layer = PrepackedLinear(torch.eye(3), None)
    >>> layer(torch.ones(1, 3))
    tensor([[1., 1., 1.]])
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, rows: int = 1):
        self.out_features, self.in_features = weight.shape
        super().__init__(weight, bias, Linear(), (rows, self.in_features), "dense.onednn")

    forward = Prepacked.run

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kernel={self.kernel}"
        )
