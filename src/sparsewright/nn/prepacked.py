"""A dense layer that holds its weight as its kernel wants it: where such a way is the fastest."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Shape
from ..errors import KernelError
from ..kernels import KERNELS, Operation


class Prepacked(nn.Module):
    """An operation by a dense kernel of the table, for inference.

    shape: of inputs that are likely. The plain weight stays the buffer that state_dict and
    torch.export see; what the kernel made of it is made again wherever the module is built, loaded
    or copied. While torch compiles or exports, the module is the operation's plain formula; a
    kernel that is an op of its own over the plain weight stays that op. KernelError where the
    kernel cannot serve.
    """

    weight: Tensor
    bias: Tensor | None

    def __init__(
        self, weight: Tensor, bias: Tensor | None, operation: Operation, shape: Shape, kernel: str
    ):
        super().__init__()
        chosen = KERNELS[kernel]
        reason = chosen.refuses(weight)
        if reason is not None:
            raise KernelError(f"kernel {kernel} cannot serve: {reason}")
        self.kernel, self.operation, self.shape = kernel, operation, tuple(shape)
        self._op = chosen.op
        self.is_op = isinstance(chosen.op, torch._ops.OpOverload)
        self.register_buffer("weight", weight.detach().contiguous())
        self.register_buffer("bias", None if bias is None else bias.detach().contiguous())
        self._reordered: Tensor | None = None
        self._numbers: tuple[int | None, ...] = ()
        self._prepare()

    def _prepare(self) -> Tensor:
        prepared = self.operation.prepare(KERNELS[self.kernel], self.weight, self.shape)
        (weight,) = prepared.tensors.values()
        assert weight is not None
        self._reordered, self._numbers = weight, prepared.numbers
        return weight

    def run(self, x: Tensor) -> Tensor:
        """The kernel, or where that cannot be traced the formula."""
        plain = torch.compiler.is_compiling() and not self.is_op
        if plain or (x.requires_grad and torch.is_grad_enabled()):
            return self.operation.dense(x, self.weight, self.bias)
        weight = self.weight if self.is_op else self._reordered
        if weight is None:
            weight = self._prepare()
        return self._op(x, weight, self.bias, *self._numbers)

    @property
    def parts(self) -> tuple[Any, tuple[int | None, ...]]:
        """Where the kernel is an op: what is called on x, the weight and the bias; the numbers."""
        return self._op, self._numbers

    def share(self, other: Prepacked) -> None:
        """Use what another module made of the same weight for the same kernel."""
        self._reordered, self.shape = other._reordered, other.shape

    def __getstate__(self) -> dict[str, Any]:  # for deepcopy: opaque tensors do not copy
        return {**self.__dict__, "_reordered": None}

    def _apply(self, *args: Any, **kwargs: Any) -> Prepacked:
        super()._apply(*args, **kwargs)
        self._reordered = None
        return self

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        self._reordered = None
