"""Convolutions with a weight in layout csr, in plain torch: what every convolution's kernel equals.

It has groups too. As an op it can be exported and saved; `choose` leaves it to kernels that are
compiled, where there are any.
"""

from __future__ import annotations

from torch import Tensor

from ..core import Packed
from . import library
from .cpu import NO_ACTIVATION, RESERVE
from .operation import Conv2d
from .table import KERNELS, Kernel, Prepared, as_packed, never

NO_RESIDUAL = None


def _prepare(weight: Packed | Tensor, shape: tuple[int, ...], conv: Conv2d) -> Prepared:
    tensors = as_packed(weight).tensors
    names = ("rows", "columns", "values")
    numbers = (NO_RESIDUAL, *conv.numbers, NO_ACTIVATION, library.BEST)
    return Prepared({name: tensors[name] for name in names}, numbers)


KERNELS.register("csr.conv2d.reference")(
    Kernel(
        "csr.conv2d.reference",
        "csr",
        "cpu",
        never,
        _prepare,
        library.csr_conv2d,
        RESERVE if library.LIBRARY.path else None,
        Conv2d.name,
    )
)
