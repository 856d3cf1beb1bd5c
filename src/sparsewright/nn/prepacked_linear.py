"""A dense Linear whose weight oneDNN has reordered once: the dense way where it is the fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import KernelError
from ..kernels import KERNELS
from ..kernels.dense import onednn_linear, prepack


class PrepackedLinear(nn.Module):
    """y = x W^T + bias through oneDNN's own order of the weight, for inference.

    The plain weight stays the buffer that state_dict and torch.export see; the reordered copy is
    made again wherever the module is built, loaded or copied. While torch compiles or exports, the
    module is a plain F.linear. rows: about how many rows x will have. KernelError without oneDNN.

    >>> layer = PrepackedLinear(torch.eye(3), None)
    >>> layer(torch.ones(1, 3))
    tensor([[1., 1., 1.]])
    """

    weight: Tensor
    bias: Tensor | None
    kernel = "dense.onednn"

    def __init__(self, weight: Tensor, bias: Tensor | None = None, rows: int = 1):
        super().__init__()
        reason = KERNELS[self.kernel].refuses(weight)
        if reason is not None:
            raise KernelError(f"kernel {self.kernel} cannot serve: {reason}")
        self.out_features, self.in_features = weight.shape
        self.rows = rows
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().contiguous())
        self._reordered: Tensor | None = prepack(self.weight, rows)

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            return F.linear(x, self.weight, self.bias)
        if self._reordered is None:
            self._reordered = prepack(self.weight, self.rows)
        return onednn_linear(x, self._reordered, self.bias)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, kernel={self.kernel}"
        )

    def __getstate__(self) -> dict[str, Any]:  # for deepcopy: opaque tensors do not copy
        return {**self.__dict__, "_reordered": None}

    def _apply(self, *args: Any, **kwargs: Any) -> PrepackedLinear:
        super()._apply(*args, **kwargs)
        self._reordered = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reordered = None
