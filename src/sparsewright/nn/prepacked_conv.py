"""A dense convolution that holds its weight as its kernel wants it: where such a way is fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..errors import KernelError
from ..kernels import KERNELS, Conv2d


class PrepackedConv2d(nn.Module):
    """F.conv2d by a dense kernel of the table, for inference.

    weight: (out, C / groups, height, width). kernel: its name. shape: of inputs that are likely.
    The plain weight stays the buffer that state_dict and torch.export see; what the kernel made of
    it is made again wherever the module is built, loaded or copied. While torch compiles or
    exports, the module is a plain F.conv2d. KernelError where the kernel cannot serve.

    >>> conv = PrepackedConv2d(torch.ones(1, 1, 1, 2), None, Conv2d((1, 2)), (1, 1, 1, 3))
    >>> conv(torch.tensor([[[[1.0, 2.0, 3.0]]]]))
    tensor([[[[3., 5.]]]])
    """

    weight: Tensor
    bias: Tensor | None
    axes = 2

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        operation: Conv2d,
        shape: tuple[int, ...],
        kernel: str = "dense.conv2d.channels_last",
    ):
        super().__init__()
        reason = KERNELS[kernel].refuses(weight)
        if reason is not None:
            raise KernelError(f"kernel {kernel} cannot serve: {reason}")
        self.kernel, self.operation, self.shape = kernel, operation, tuple(shape)
        self._op, self._numbers = KERNELS[kernel].op, operation.numbers
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().contiguous())
        self._reordered: Tensor | None = self._prepared()

    def _prepared(self) -> Tensor:
        prepared = KERNELS[self.kernel].prepare(self.weight, self.shape, self.operation)
        (weight,) = prepared.tensors.values()
        return weight

    def forward(self, x: Tensor) -> Tensor:
        return self.convolve(x) if x.dim() == self.axes + 2 else self.convolve(x[None])[0]

    def convolve(self, x: Tensor) -> Tensor:
        """x (N, C, H, W) -> (N, out, H', W')."""
        return self.run(x)

    def run(self, x: Tensor) -> Tensor:
        """The kernel, or where that cannot be traced its formula."""
        if torch.compiler.is_compiling() or (x.requires_grad and torch.is_grad_enabled()):
            return self.operation.dense(x, self.weight, self.bias)
        if self._reordered is None:
            self._reordered = self._prepared()
        return self._op(x, self._reordered, self.bias, *self._numbers)

    def extra_repr(self) -> str:
        return f"{self.operation}, bias={self.bias is not None}, kernel={self.kernel}"

    def __getstate__(self) -> dict[str, Any]:  # for deepcopy: opaque tensors do not copy
        return {**self.__dict__, "_reordered": None}

    def _apply(self, *args: Any, **kwargs: Any) -> PrepackedConv2d:
        super()._apply(*args, **kwargs)
        self._reordered = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reordered = None


class PrepackedConv1d(PrepackedConv2d):
    """F.conv1d as a PrepackedConv2d of height 1; x (N, C, L) or (C, L).

    >>> conv = PrepackedConv1d(torch.ones(1, 1, 1, 2), None, Conv2d((1, 2)), (1, 1, 1, 3))
    >>> conv(torch.tensor([[[1.0, 2.0, 3.0]]]))
    tensor([[[3., 5.]]])
    """

    axes = 1

    def convolve(self, x: Tensor) -> Tensor:
        return self.run(x.unsqueeze(2)).squeeze(2)
