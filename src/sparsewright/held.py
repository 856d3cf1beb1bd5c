"""Dense weights of a file that a kernel holds in an order of its own: from the plain operation of
the graph to the module that computes it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from .core import Shape
from .kernels import Conv2d
from .nn import Prepacked, PrepackedConv2d, PrepackedLinear


@dataclass(frozen=True)
class Held:
    """How a dense weight is held: its kernel, and what the file says of the layer's input."""

    kernel: str
    hints: tuple[int, ...]


Make = Callable[[Mapping[str, Tensor]], Prepacked]


def _hold_linear(weight: str, bias: str | None, held: Held, args: tuple[Any, ...]) -> Make | None:
    if len(held.hints) != 1:
        return None
    return lambda t: PrepackedLinear(t[weight], None if bias is None else t[bias], *held.hints)


def _hold_conv2d(weight: str, bias: str | None, held: Held, args: tuple[Any, ...]) -> Make | None:
    usual: list[Any] = [[1, 1], [0, 0], [1, 1], 1]
    *pairs, groups = [*args[3:], *usual[len(args[3:]) :]]
    if len(held.hints) != 3 or not all(isinstance(p, list) and len(p) == 2 for p in pairs):
        return None
    batch, *image = held.hints

    def make(tensors: Mapping[str, Tensor]) -> Prepacked:
        plain = tensors[weight]
        stride, padding, dilation = map(_two, pairs)
        conv = Conv2d(_two(plain.shape[2:]), stride, padding, dilation, groups)
        shape: Shape = (batch, plain.shape[1] * groups, *image)
        return PrepackedConv2d(
            plain, None if bias is None else tensors[bias], conv, shape, held.kernel
        )

    return make


def _two(sizes: Sequence[int]) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[1])


HOLD: Mapping[str, Callable[[str, str | None, Held, tuple[Any, ...]], Make | None]] = {
    "aten.linear.default": _hold_linear,
    "aten.conv2d.default": _hold_conv2d,
}
"""Operation -> (weight, bias, how it is held, arguments) -> what makes the module, if one can."""
