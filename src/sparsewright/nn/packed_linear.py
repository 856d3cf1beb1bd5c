"""A Linear whose weight is packed: only the present values and their places are stored."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Packed
from ..errors import KernelError
from ..kernels import KERNELS, library
from ..layouts import count_present, unpack, validate


class PackedLinear(nn.Module):
    """y = x W^T + bias over a packed weight, for inference.

    packed: the weight; validated here. kernel: a name of KERNELS for its layout; None takes the
    best instruction set that this CPU has. The packed tensors are buffers by their layout's own
    names. Raises LayoutError if the weight breaks a rule, KernelError if the kernel cannot serve.
    forward: x (..., in) float32 -> (..., out); KernelError if x wants a gradient.

    >>> from sparsewright.layouts import pack
    >>> layer = PackedLinear(pack("csr", 2 * torch.eye(3)), torch.ones(3), "csr.reference")
    >>> layer(torch.tensor([1., 2., 3.]))
    tensor([3., 5., 7.])
    """

    bias: Tensor | None

    def __init__(self, packed: Packed, bias: Tensor | None = None, kernel: str | None = None):
        super().__init__()
        library.warn_if_missing()
        validate(packed)
        self.out_features, self.in_features = packed.shape
        if bias is not None and (bias.shape != packed.shape[:1] or bias.dtype != torch.float32):
            raise KernelError(
                f"bias must be float32 of shape ({self.out_features},); got {bias.dtype} of "
                f"shape {tuple(bias.shape)}"
            )
        chosen = KERNELS[kernel or _default(packed.layout)]
        if chosen.layout != packed.layout:
            raise KernelError(
                f"kernel {chosen.name} serves layout {chosen.layout}; "
                f"this weight is in layout {packed.layout}"
            )
        reason = chosen.refuses()
        if reason is not None:
            raise KernelError(f"kernel {chosen.name} cannot serve: {reason}")
        prepared = chosen.prepare(packed, 0)
        self.kernel, self.layout = chosen.name, packed.layout
        self._meta = dict(packed.meta)
        self._op, self._numbers = chosen.op, prepared.numbers
        self._names = tuple(prepared.tensors)
        for name, tensor in prepared.tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().contiguous())

    def forward(self, x: Tensor) -> Tensor:
        library.refuse_gradient(x)
        if x.shape[-1] != self.in_features:
            raise KernelError(f"needs x (..., {self.in_features}); got {tuple(x.shape)}")
        own = self._buffers
        return self._op(x, *[own[name] for name in self._names], own["bias"], *self._numbers)

    @property
    def packed(self) -> Packed:
        """The packed weight; it shares memory with the buffers."""
        tensors = {name: self.get_buffer(name) for name in self._names}
        return Packed(self.layout, (self.out_features, self.in_features), tensors, self._meta)

    @property
    def nnz(self) -> int:
        """Number of weights present."""
        return count_present(self.packed)

    def to_dense(self) -> Tensor:
        """The (out, in) weight with its zeros."""
        return unpack(self.packed)

    def extra_repr(self) -> str:
        return (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}, layout={self.layout}, kernel={self.kernel}, "
            f"nnz={self.nnz}"
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        validate(self.packed)  # a kernel follows these indices


def _default(layout: str) -> str:
    missing = library.LIBRARY.path is None
    return f"{layout}.{'reference' if missing else library.best_isa()}"
