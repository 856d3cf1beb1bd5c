"""What a file may ask of sparsewright's own operations: the numbers of a call must be those of the
layer that the file declares, and what a kernel's indices rely on is checked at every call."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from .core import Packed
from .errors import ArtifactError
from .kernels import Conv2d, Linear
from .kernels import Operation as Product
from .operations import Operation, expect_channels, expect_width

MAX_SIZE = 4096
"""Of a kernel, a stride, a padding or a dilation: no sum of a few products leaves 64 bits."""
CONV_NUMBERS = (
    *("kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w"),
    *("dilation_h", "dilation_w", "groups"),
)


@dataclass(frozen=True)
class Rule:
    """What holds for a call on a packed weight.

    product: what it computes. guard, size: guard(x, size) raises KernelError unless x fits.
    width: the last size of every output, None if inputs decide it.
    """

    product: Product
    guard: Operation
    size: int
    width: int | None


def _linear(packed: Packed, numbers: Mapping[str, Any]) -> Rule:
    _check_declared(packed, numbers)
    out, width = packed.shape
    return Rule(Linear(), expect_width, width, out)


def _conv2d(packed: Packed, numbers: Mapping[str, Any]) -> Rule:
    _check_declared(packed, {k: v for k, v in numbers.items() if k not in CONV_NUMBERS})
    for name in CONV_NUMBERS:
        least = 0 if name.startswith("padding") else 1
        most = packed.shape[0] if name == "groups" else MAX_SIZE
        value = numbers.get(name)
        if type(value) is not int or not least <= value <= max(most, 1):
            raise ArtifactError(f"{name} must be in [{least}, {most}]; got {str(value)[:40]}")
    conv = Conv2d.from_numbers([numbers[name] for name in CONV_NUMBERS])
    out, fan_in = packed.shape[0], math.prod(packed.shape[1:])
    if fan_in % conv.places or out % conv.groups:
        raise ArtifactError(
            f"a kernel of {conv.kernel} and {conv.groups} groups do not divide the layer's fan-in "
            f"{fan_in} and its {out} outputs"
        )
    return Rule(conv, expect_channels, fan_in // conv.places * conv.groups, None)


def _check_declared(packed: Packed, numbers: Mapping[str, Any]) -> None:
    """ArtifactError unless the layout's own numbers are those of the layer."""
    known = {**packed.meta, "out_features": packed.shape[0], "in_features": packed.shape[1]}
    expected = {key: known[key] for key in numbers if key in known}
    if dict(numbers) != expected or any(type(n) is not int for n in numbers.values()):
        raise ArtifactError(f"must be called with isa 0 and {expected}, as declared")


def rule_of(product: str, packed: Packed, numbers: Mapping[str, Any]) -> Rule:
    """What holds for a call, by the numbers that a file gives it; ArtifactError if it may not be.

    >>> import torch
    >>> from sparsewright.layouts import pack
    >>> rule_of("linear", pack("csr", torch.eye(3)), {}).size
    3
    """
    return RULES[product](packed, numbers)


RULES: Mapping[str, Callable[[Packed, Mapping[str, Any]], Rule]] = {
    Linear.name: _linear,
    Conv2d.name: _conv2d,
}
"""Product -> (packed weight, numbers as the file has them) -> what holds, or ArtifactError."""
