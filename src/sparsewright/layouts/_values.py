"""A weight's values in fewer bytes: bf16, or int8 with one scale for every row.

int8: symmetric steps of absmax / 127 of the row (Jacob et al. 2018, section 2.1, without a zero
point). Whatever rounds to nothing becomes the smallest number that the type has, since a layout
tells an absent weight by its 0. A weight is rounded once, here, before it is packed; so all
layouts hold the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..registry import Table

FP32 = "fp32"
STORED = (torch.float32, torch.bfloat16, torch.int8)
"""What a layout's `values` may be; int8 ones come with `scales`."""
STEPS = 127
SHORT = ~0x7F
"""Scales end in 7 zero bits: a step (7 bits) times a scale (17 bits) is exact in float32."""
LEAST_SCALE = torch.finfo(torch.float32).tiny
BF16 = torch.finfo(torch.bfloat16)
LEAST_BF16 = 2.0**-133
BF16_ERROR = 2.0**-8
"""Of a number, at most: bf16 keeps 8 bits of it, and rounds to the nearest."""


@dataclass(frozen=True)
class Values:
    """One type of values.

    dtype: of the tensor `values`. split: weight (out, in) -> (numbers as float32 that the dtype
    holds exactly, scales (out,) or None). error: weight -> the most that rounding changes each of
    its entries by, from the type alone.
    """

    name: str
    dtype: torch.dtype
    split: Callable[[Tensor], tuple[Tensor, Tensor | None]]
    error: Callable[[Tensor], Tensor]


VALUES: Table[Values] = Table("type of values")


def _fp32(weight: Tensor) -> tuple[Tensor, None]:
    return weight, None


def _bf16(weight: Tensor) -> tuple[Tensor, None]:
    near = weight.to(torch.bfloat16).float()
    beyond = near.isinf() & weight.isfinite()  # the last half step before infinity rounds up
    near = torch.where(beyond, weight.sign() * BF16.max, near)
    return torch.where((near == 0) & (weight != 0), weight.sign() * LEAST_BF16, near), None


def _bf16_error(weight: Tensor) -> Tensor:
    return torch.where(weight != 0, BF16_ERROR * weight.abs() + LEAST_BF16, 0.0)


def _int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    scales = _scales(weight)
    near = (weight / scales[:, None]).round().clamp(-STEPS, STEPS)
    return torch.where((near == 0) & (weight != 0), weight.sign(), near), scales


def _int8_error(weight: Tensor) -> Tensor:
    """Half a step, and as much as the quotient is off by; a whole step where less than half was."""
    half = 0.5 * _scales(weight)[:, None].expand_as(weight)
    most = torch.where(weight.abs() < half, 2 * half, half * (1 + 2.0**-15))
    return torch.where(weight != 0, most, 0.0)


def _scales(weight: Tensor) -> Tensor:
    """(out, in) -> (out,): a step of every row; 1 for a row without weights."""
    if not bool(weight.isfinite().all()):
        raise LayoutError("int8 values need a finite weight: a row's largest is 127 steps")
    most = weight.abs().amax(dim=1) if weight.numel() else weight.new_zeros(len(weight))
    short = ((most / STEPS).view(torch.int32) & SHORT).view(torch.float32)
    return torch.where(most > 0, short.clamp(min=LEAST_SCALE), 1.0)


for _part in (
    Values(FP32, torch.float32, _fp32, torch.zeros_like),
    Values("bf16", torch.bfloat16, _bf16, _bf16_error),
    Values("int8", torch.int8, _int8, _int8_error),
):
    VALUES.register(_part.name)(_part)


def rounded(weight: Tensor, values: str) -> Tensor:
    """The float32 weight (out, in) that kernels compute with where its values are stored so.

    UnknownNameError for another name than "fp32", "bf16" and "int8"; LayoutError for int8 values
    of a weight that is not finite.

    >>> rounded(torch.tensor([[127.0, 1.4, 0.1, 0.0]]), "int8")
    tensor([[127.,   1.,   1.,   0.]])
    """
    numbers, scales = VALUES[values].split(weight)
    return numbers if scales is None else numbers * scales[:, None]


def store(pack: Callable[[Tensor], Packed], weight: Tensor, values: str) -> Packed:
    """A weight packed by a layout, its values in a type by name.

    >>> from sparsewright.layouts import LAYOUTS
    >>> packed = store(LAYOUTS["csr"].pack, 2 * torch.eye(2), "int8")
    >>> packed.tensors["values"].tolist(), packed.tensors["values"].dtype
    ([127, 127], torch.int8)
    """
    kind = VALUES[values]
    numbers, scales = kind.split(weight.detach().cpu())
    packed = pack(numbers)
    tensors = {**packed.tensors, "values": packed.tensors["values"].to(kind.dtype)}
    if scales is not None:
        tensors["scales"] = scales
    return Packed(packed.layout, packed.shape, tensors, packed.meta)


def widen(unpack: Callable[[Packed], Tensor], packed: Packed) -> Tensor:
    """The dense float32 weight (out, in) of a packed one, valid whatever its values' type."""
    tensors = dict(packed.tensors)
    scales = tensors.pop("scales", None)
    tensors["values"] = tensors["values"].float()
    weight = unpack(Packed(packed.layout, packed.shape, tensors, packed.meta))
    return weight if scales is None else weight * scales[:, None]


def values_name(packed: Packed) -> str:
    """The type of a packed weight's values, by its name.

    >>> from sparsewright.layouts import pack
    >>> values_name(pack("csr", torch.eye(2), "bf16"))
    'bf16'
    """
    held = packed.tensors["values"].dtype
    return next(name for name, kind in VALUES.items() if kind.dtype == held)


def why_not_scales(scales: Tensor, out: int) -> str | None:
    """The rule that the scales of int8 values break, or None."""
    if scales.shape != (out,):
        return f"scales must have {out} entries; got shape {tuple(scales.shape)}"
    if not bool((scales.isfinite() & (scales > 0)).all()):
        return "scales must be finite and greater than 0"
    return None
