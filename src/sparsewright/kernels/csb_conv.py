"""The CPU kernels of convolutions over layout csb: shifted rows of the image, no im2col.

Every weight multiplies a whole row of positions of the padded image (Park et al. 2017; Elsen et
al. 2020), a chunk of the weight's columns after the other, as csb's products do. In groups a row of
the weight reads its own group's channels.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..core import Packed
from ..layouts import LAYOUTS, unpack
from . import reference
from ._ops import define, register_conv

TENSORS = ("starts", "pairs", "columns", "values")


def csb_conv2d_reference(
    x: Tensor,
    starts: Tensor,
    pairs: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    out_features: int,
    chunk: int,
    block: int,
    *numbers: int,
) -> Tensor:
    """As reference.csr_conv2d, with W in layout csb."""
    width = x.shape[1] // numbers[8] * numbers[0] * numbers[1]
    tensors = dict(zip(TENSORS, (starts, pairs, columns, values), strict=True))
    if scales is not None:
        tensors["scales"] = scales
    packed = Packed("csb", (out_features, width), tensors, {"chunk": chunk, "block": block})
    rows, at, present = LAYOUTS["csr"].pack(unpack(packed)).tensors.values()
    return reference.csr_conv2d(x, rows, at, present, None, bias, residual, *numbers)


def _shape(x: Tensor, *rest: Any) -> tuple[int, ...]:
    return reference.conv_shape(x, rest[7], rest[6], rest[10:])


csb_conv2d = define(
    "csb_conv2d(Tensor x, Tensor starts, Tensor pairs, Tensor columns, Tensor values, "
    "Tensor? scales, Tensor? bias, Tensor? residual, int out_features, int chunk, int block, "
    "int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, "
    "int dilation_h, int dilation_w, int groups, int activation, int isa) -> Tensor",
    csb_conv2d_reference,
    _shape,
)
register_conv(
    "csb",
    csb_conv2d,
    csb_conv2d_reference,
    TENSORS,
    lambda packed: (packed.shape[0], packed.meta["chunk"], packed.meta["block"]),
)
