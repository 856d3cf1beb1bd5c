"""Layouts: how a packed weight lies in memory. One file each; found by folder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..registry import Table


class Layout(Protocol):
    """What a file of this folder registers: an object that packs, unpacks and validates."""

    name: str

    def refuses(self, weight: Tensor) -> str | None:
        """Why this weight cannot be packed, or should not be, or None."""

    def pack(self, weight: Tensor) -> Packed:
        """(out, in) float32 weight -> packed; present is what is not 0. LayoutError if refused."""

    def unpack(self, packed: Packed) -> Tensor:
        """The dense weight (out, in) again, bit for bit, but for -0.0, which becomes 0.0."""

    def validate(self, packed: Packed) -> None:
        """Raise LayoutError unless every size and every index is right; safe on hostile input."""


LAYOUTS: Table[Layout] = Table("layout", __name__)

MAX_SIDE = 2**31 - 2
"""Largest out_features and in_features: what a 32-bit index holds, with room for one more."""


def validate(packed: Packed) -> None:
    """Raise LayoutError unless the packed weight keeps every rule of its layout.

    It neither follows an index nor allocates by a number that it has not checked.

    >>> validate(pack("csr", torch.eye(3)))
    """
    LAYOUTS[packed.layout].validate(packed)


def pack(layout: str, weight: Tensor) -> Packed:
    """Pack a (out, in) float32 weight in a layout by its name.

    >>> pack("csr", torch.eye(3)).nbytes  # 4 rows of 4 bytes, 3 weights of 2 + 4
    34
    """
    return LAYOUTS[layout].pack(weight)


def unpack(packed: Packed) -> Tensor:
    """The dense (out, in) weight of a packed one.

    >>> unpack(pack("csr", torch.eye(2)))
    tensor([[1., 0.],
            [0., 1.]])
    """
    return LAYOUTS[packed.layout].unpack(packed)


def count_present(packed: Packed) -> int:
    """Number of weights that are present: every layout keeps absent ones and padding at 0.

    >>> count_present(pack("csr", torch.eye(3)))
    3
    """
    return int((packed.tensors["values"] != 0).sum())


def not_a_matrix(weight: Tensor) -> str | None:
    """Why a tensor is no weight that a layout can hold, or None."""
    if weight.dim() != 2:
        return f"needs a matrix (out, in); got {weight.dim()} dimensions"
    if weight.dtype != torch.float32:
        return f"needs float32; got {str(weight.dtype).removeprefix('torch.')}"
    if weight.layout != torch.strided:
        return f"needs a dense tensor; got {weight.layout}"
    if max(weight.shape) > MAX_SIDE or weight.numel() > 2**40:
        return f"needs at most {MAX_SIDE} rows and columns; got {tuple(weight.shape)}"
    return None


def check(holds: bool, packed: Packed, rule: str) -> None:
    """LayoutError naming the layout, the shape and the rule, unless it holds."""
    if not holds:
        raise LayoutError(f"layout {packed.layout} of a {_shape(packed)} weight: {rule}")


def _shape(packed: Packed) -> str:
    return " x ".join(str(side) for side in packed.shape)


def check_form(packed: Packed, layout: str, dtypes: Mapping[str, tuple[torch.dtype, ...]]) -> None:
    """The rules of every layout: its own name, a sane shape, exactly its tensors, their dtypes."""
    check(packed.layout == layout, packed, f"is not {layout}")
    sides = packed.shape
    sane = len(sides) == 2 and all(type(s) is int and 0 <= s <= MAX_SIDE for s in sides)
    check(sane, packed, f"shape must be two sizes in [0, {MAX_SIDE}]; got {sides!r}")
    names = sorted(packed.tensors)
    check(names == sorted(dtypes), packed, f"needs tensors {sorted(dtypes)}; got {names}")
    for name, tensor in packed.tensors.items():
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes[name])
        got = str(tensor.dtype).removeprefix("torch.")
        check(tensor.dtype in dtypes[name], packed, f"{name} must be {wanted}; got {got}")
        plain = tensor.layout == torch.strided and tensor.is_contiguous()
        check(plain, packed, f"{name} must be contiguous")
