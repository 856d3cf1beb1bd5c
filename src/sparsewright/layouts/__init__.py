"""Layouts: how a packed weight lies in memory. One file each; found by folder.

A layout packs float32 values. `pack` stores them in fewer bytes, if asked (_values.py), which
leaves their places as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..registry import Table
from ._values import FP32, STORED, VALUES, rounded, store, values_name, why_not_scales, widen

__all__ = [
    "FP32",
    "LAYOUTS",
    "MAX_SIDE",
    "STORED",
    "VALUES",
    "Layout",
    "check",
    "check_form",
    "count_present",
    "not_a_matrix",
    "pack",
    "rounded",
    "store",
    "unpack",
    "validate",
    "values_name",
]


class Layout(Protocol):
    """What a file of this folder registers: an object that packs, unpacks and validates."""

    name: str

    def refuses(self, weight: Tensor) -> str | None:
        """Why this weight cannot be packed, or should not be, or None."""

    def pack(self, weight: Tensor) -> Packed:
        """(out, in) float32 weight -> packed; present is what is not 0. LayoutError if refused."""

    def unpack(self, packed: Packed) -> Tensor:
        """The dense weight (out, in) again, bit for bit, but for -0.0, which becomes 0.0; of a
        packed weight whose values are float32."""

    def validate(self, packed: Packed) -> None:
        """Raise LayoutError unless every size and every index is right; safe on hostile input.
        What is present is what is not 0, whatever the values' type."""


LAYOUTS: Table[Layout] = Table("layout", __name__)

MAX_SIDE = 2**31 - 2
"""Largest out_features and in_features: what a 32-bit index holds, with room for one more."""


def validate(packed: Packed) -> None:
    """Raise LayoutError unless the packed weight keeps every rule of its layout.

    It neither follows an index nor allocates by a number that it has not checked.

    >>> validate(pack("csr", torch.eye(3)))
    """
    LAYOUTS[packed.layout].validate(packed)


def pack(layout: str, weight: Tensor, values: str = FP32) -> Packed:
    """Pack a (out, in) float32 weight in a layout by its name.

    values: how they are stored: "fp32", exactly; "bf16", each rounded to 8 bits; "int8", rounded
    to whole steps of its row's largest / 127, with a float32 tensor `scales` (out,) of these
    steps. A present weight stays present: what would round to 0 becomes the type's smallest
    number, in int8 one step. LayoutError if the layout cannot hold the weight or the type.

    >>> pack("csr", torch.eye(3)).nbytes  # 4 rows of 4 bytes, 3 weights of 2 + 4
    34
    >>> pack("csr", torch.eye(3), "bf16").nbytes
    28
    """
    if VALUES[values].dtype == torch.float32:
        return LAYOUTS[layout].pack(weight)
    reason = not_a_matrix(weight)
    if reason:
        raise LayoutError(f"layout {layout}: {reason}")
    packed = store(LAYOUTS[layout].pack, weight, values)
    validate(packed)  # a layout may hold float32 alone
    return packed


def unpack(packed: Packed) -> Tensor:
    """The dense (out, in) float32 weight of a packed one: the one that kernels compute with.

    >>> unpack(pack("csr", torch.eye(2)))
    tensor([[1., 0.],
            [0., 1.]])
    """
    layout = LAYOUTS[packed.layout]
    values = packed.tensors.get("values")
    if values is None or values.dtype == torch.float32:
        return layout.unpack(packed)
    layout.validate(packed)
    return widen(layout.unpack, packed)


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
    """The rules of every layout: its own name, a sane shape, exactly its tensors, their dtypes.

    Where `values` are int8, as `dtypes` allow them to be, `scales` (out,) belong to them.
    """
    check(packed.layout == layout, packed, f"is not {layout}")
    sides = packed.shape
    sane = len(sides) == 2 and all(type(s) is int and 0 <= s <= MAX_SIDE for s in sides)
    check(sane, packed, f"shape must be two sizes in [0, {MAX_SIDE}]; got {sides!r}")
    held = packed.tensors.get("values")
    stepped = held is not None and held.dtype == torch.int8 and torch.int8 in dtypes["values"]
    if stepped:
        dtypes = {**dtypes, "scales": (torch.float32,)}
    names = sorted(packed.tensors)
    check(names == sorted(dtypes), packed, f"needs tensors {sorted(dtypes)}; got {names}")
    for name, tensor in packed.tensors.items():
        wanted = " or ".join(str(d).removeprefix("torch.") for d in dtypes[name])
        got = str(tensor.dtype).removeprefix("torch.")
        check(tensor.dtype in dtypes[name], packed, f"{name} must be {wanted}; got {got}")
        plain = tensor.layout == torch.strided and tensor.is_contiguous()
        check(plain, packed, f"{name} must be contiguous")
    broken = why_not_scales(packed.tensors["scales"], sides[0]) if stepped else None
    check(broken is None, packed, str(broken))
