"""What modules over a packed weight share: its tensors as buffers, its kernel, its bias."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .. import library
from ..core import Packed
from ..errors import KernelError
from ..kernels import KERNELS, Operation
from ..kernels.table import Kernel
from ..layouts import count_present, unpack, validate, values_name


class LayoutLayer(nn.Module):
    """A layer of which only the present weights and their places are stored, for inference.

    packed: the (out, fan-in) weight; validated here. operation: what the layer computes. kernel:
    a name of KERNELS for its layout; None takes the best instruction set that this CPU has. shape:
    of inputs that are likely. The packed tensors are buffers by their layout's own names. name: the
    layer's own in the model that was deployed; errors say it. Raises LayoutError if the weight
    breaks a rule, KernelError if the kernel cannot serve.
    """

    bias: Tensor | None
    name: str = ""

    def __init__(
        self, packed: Packed, operation: Operation, bias: Tensor | None, kernel: str | None
    ):
        super().__init__()
        library.warn_if_missing()
        validate(packed)
        rows = packed.shape[0]
        if bias is not None and (bias.shape != (rows,) or bias.dtype != torch.float32):
            raise KernelError(
                f"bias must be float32 of shape ({rows},); got {bias.dtype} of "
                f"shape {tuple(bias.shape)}"
            )
        chosen = KERNELS[kernel] if kernel else best_kernel(packed.layout, operation)
        if (chosen.layout, chosen.operation) != (packed.layout, operation.name):
            raise KernelError(
                f"kernel {chosen.name} serves {chosen.operation} in layout {chosen.layout}; "
                f"this weight is in layout {packed.layout}, of a {operation.name}"
            )
        reason = chosen.refuses() or chosen.refuses_values(values_name(packed))
        if reason is not None:
            raise KernelError(f"kernel {chosen.name} cannot serve: {reason}")
        prepared = operation.prepare(chosen, packed, ())
        self.kernel, self.layout, self.operation = chosen.name, packed.layout, operation
        self._shape, self._meta = packed.shape, dict(packed.meta)
        self._op, self._numbers = chosen.op, prepared.numbers
        self._names = tuple(prepared.tensors)
        for name, tensor in prepared.tensors.items():
            self.register_buffer(name, tensor)
        self.register_buffer("bias", None if bias is None else bias.detach().contiguous())

    @property
    def who(self) -> str:
        """The layer as errors name it."""
        return f"layer {self.name!r}" if self.name else type(self).__name__

    def run(self, x: Tensor) -> Tensor:
        """The kernel on an input that has been checked."""
        own = self._buffers
        return self._op(x, *[own[name] for name in self._names], own["bias"], *self._numbers)

    @property
    def parts(self) -> tuple[Any, tuple[str, ...], tuple[int | None, ...]]:
        """A call: what is called on x, the tensors that follow by name, the bias, the numbers."""
        return self._op, self._names, self._numbers

    @property
    def packed(self) -> Packed:
        """The packed weight; it shares memory with the buffers."""
        own = {name: self._buffers[name] for name in self._names}
        tensors = {name: tensor for name, tensor in own.items() if tensor is not None}
        return Packed(self.layout, self._shape, tensors, self._meta)

    @property
    def nnz(self) -> int:
        """Number of weights present."""
        return count_present(self.packed)

    def to_dense(self) -> Tensor:
        """The (out, fan-in) weight with its zeros."""
        return unpack(self.packed)

    def extra_repr(self) -> str:
        return (
            f"bias={self.bias is not None}, layout={self.layout}, kernel={self.kernel}, "
            f"values={values_name(self.packed)}, nnz={self.nnz}"
        )

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        validate(self.packed)  # a kernel follows these indices


def best_kernel(layout: str, operation: Operation) -> Kernel:
    """The kernel of the best instruction set here; the reference where none is compiled."""
    ours = [k for _, k in KERNELS.items() if (k.layout, k.operation) == (layout, operation.name)]
    compiled = [k for k in ours if k.name.endswith(f".{library.best_isa()}") and not k.refuses()]
    serve = sorted((k for k in ours if not k.refuses()), key=lambda k: k.reserve is not None)
    return (compiled or serve)[0]
