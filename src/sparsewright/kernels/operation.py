"""What a layer computes, whichever kernel serves it: its dense formula, and what kernels are told.

A convolution is a product of its weight's (out, fan-in) matrix with patches of the image
(Chellapilla, Puri and Simard, "High performance convolutional neural networks for document
processing", 2006), so packed weights are matrices here and there.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from itertools import chain
from typing import ClassVar, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from ..core import Packed, Shape
from .table import Kernel, Prepared

Pair = tuple[int, int]


class Operation(Protocol):
    """One operation on a weight; `name` is what `Kernel.operation` says."""

    @property
    def name(self) -> str: ...

    def misfit(self, weight: Tensor, x: Tensor) -> str | None:
        """Why the weight and the input do not fit together ("needs ..., got ..."), or None."""

    def matrix(self, weight: Tensor) -> Tensor:
        """The weight as the (out, fan-in) matrix that layouts pack; a view."""

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The formula, in the float type of its arguments."""

    def prepare(self, kernel: Kernel, weight: Packed | Tensor, shape: Shape) -> Prepared:
        """The weight as a kernel wants it for inputs of about this shape."""

    def batch(self, shape: Shape) -> int:
        """How many inputs an x of this shape holds."""


@dataclass(frozen=True)
class Linear:
    """y = x W^T + bias; x (..., in), W (out, in)."""

    name: ClassVar[str] = "linear"

    def misfit(self, weight: Tensor, x: Tensor) -> str | None:
        if weight.dim() == 2 and x.dim() >= 1 and x.shape[-1] == weight.shape[1]:
            return None
        return (
            "needs a weight (out, in) and an example (..., in); got "
            f"{tuple(weight.shape)} and {tuple(x.shape)}"
        )

    def matrix(self, weight: Tensor) -> Tensor:
        return weight

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def prepare(self, kernel: Kernel, weight: Packed | Tensor, shape: Shape) -> Prepared:
        return kernel.prepare(weight, self.batch(shape))

    def batch(self, shape: Shape) -> int:
        return math.prod(shape[:-1])

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Conv2d:
    """F.conv2d with zeros around x; x (N, C, H, W), W (out, C / groups, height, width).

    kernel, stride, padding, dilation: (vertical, horizontal). A Conv1d is one of height 1.

    >>> Conv2d.of(nn.Conv1d(4, 8, 3, padding="same")).numbers
    (1, 3, 1, 1, 0, 1, 1, 1, 1)
    """

    kernel: Pair
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    name: ClassVar[str] = "conv2d"

    @classmethod
    def of(cls, module: nn.Conv1d | nn.Conv2d) -> Conv2d | str:
        """The operation of a module, or why kernels cannot compute it."""
        if module.padding_mode != "zeros":
            return f"padding_mode {module.padding_mode!r} stays dense: kernels pad with zeros"
        padding = _padding(module)
        if isinstance(padding, str):
            return padding
        flat = module.weight.dim() == 3
        return cls(
            _pair(module.kernel_size, flat, 1),
            _pair(module.stride, flat, 1),
            _pair(padding, flat, 0),
            _pair(module.dilation, flat, 1),
            module.groups,
        )

    @classmethod
    def from_numbers(cls, numbers: Sequence[int]) -> Conv2d:
        """The operation of which these are the `numbers`.

        >>> Conv2d.from_numbers(Conv2d((3, 5), groups=2).numbers) == Conv2d((3, 5), groups=2)
        True
        """
        a, b, c, d, e, f, g, h, groups = numbers
        return cls((a, b), (c, d), (e, f), (g, h), groups)

    @property
    def numbers(self) -> tuple[int, ...]:
        """As the ops take them: kernel, stride, padding, dilation (each twice), groups."""
        *pairs, groups = astuple(self)
        return (*chain(*pairs), groups)

    @property
    def places(self) -> int:
        """Weights of one channel."""
        return self.kernel[0] * self.kernel[1]

    def misfit(self, weight: Tensor, x: Tensor) -> str | None:
        fits = weight.dim() == x.dim() == 4 and tuple(weight.shape[2:]) == self.kernel
        if fits and x.shape[1] == self.groups * weight.shape[1]:
            return None
        return (
            f"needs a weight (out, C / {self.groups}, {self.kernel[0]}, {self.kernel[1]}) and an "
            f"example (N, C, H, W); got {tuple(weight.shape)} and {tuple(x.shape)}"
        )

    def matrix(self, weight: Tensor) -> Tensor:
        return weight.flatten(1)

    def dense(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.conv2d(x, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def prepare(self, kernel: Kernel, weight: Packed | Tensor, shape: Shape) -> Prepared:
        return kernel.prepare(weight, shape, self)

    def batch(self, shape: Shape) -> int:
        return shape[0]

    def __str__(self) -> str:
        """
        >>> str(Conv2d((3, 3), stride=(2, 2), padding=(1, 1)))
        'conv2d 3x3 stride 2 padding 1'
        """
        words = [f"{self.name} {self.kernel[0]}x{self.kernel[1]}"]
        for word, sizes, usual in (
            ("stride", self.stride, 1),
            ("padding", self.padding, 0),
            ("dilation", self.dilation, 1),
        ):
            if sizes != (usual, usual):
                words.append(
                    f"{word} {sizes[0] if len(set(sizes)) == 1 else f'{sizes[0]}x{sizes[1]}'}"
                )
        return " ".join([*words, *([f"groups {self.groups}"] if self.groups > 1 else [])])


def _padding(module: nn.Conv1d | nn.Conv2d) -> tuple[int, ...] | str:
    """The zeros on either side of each axis, or why they are not as many on both."""
    if not isinstance(module.padding, str):
        return tuple(module.padding)
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    pairs = zip(module.kernel_size, module.dilation, strict=True)
    total = [dilation * (size - 1) for size, dilation in pairs]
    if any(t % 2 for t in total):
        return "padding 'same' stays dense here: it pads one side more than the other"
    return tuple(t // 2 for t in total)


def _pair(sizes: tuple[int, ...], flat: bool, above: int) -> Pair:
    """The two sizes of an axis pair; `above` is the vertical one of a Conv1d."""
    return (above, sizes[0]) if flat else (sizes[0], sizes[1])
