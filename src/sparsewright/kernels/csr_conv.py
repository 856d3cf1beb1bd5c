"""Convolutions with a weight in layout csr, in plain torch: what every convolution's kernel equals.

They have groups too. As an op it can be exported and saved; `choose` leaves it to kernels that are
compiled, where there are any.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .. import library
from ..core import Packed, Shape
from ..layouts import VALUES
from . import reference
from ._ops import NO_ACTIVATION, NO_RESIDUAL, RESERVE, define, held
from .csr import TENSORS
from .operation import Conv2d
from .table import KERNELS, Kernel, Prepared, as_packed, never


def _shape(x: Tensor, rows: Tensor, *rest: Any) -> tuple[int, ...]:
    return reference.conv_shape(x, rows.shape[0] - 1, rest[4], rest[5:])


csr_conv2d = define(
    "csr_conv2d(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? scales, "
    "Tensor? bias, Tensor? residual, int kernel_h, int kernel_w, int stride_h, int stride_w, "
    "int padding_h, int padding_w, int dilation_h, int dilation_w, int groups, int activation, "
    "int isa) -> Tensor",
    reference.csr_conv2d,
    _shape,
)


def _prepare(weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
    packed = as_packed(weight)
    numbers = (NO_RESIDUAL, *conv.numbers, NO_ACTIVATION, library.BEST)
    return Prepared(held(packed, TENSORS), numbers)


KERNELS.register("csr.conv2d.reference")(
    Kernel(
        "csr.conv2d.reference",
        "csr",
        "cpu",
        never,
        _prepare,
        csr_conv2d,
        RESERVE if library.LIBRARY.path else None,
        Conv2d.name,
        values=tuple(VALUES),
    )
)
