"""The CPU kernels of depthwise convolutions, whose weight is dense: every output reads one channel
(Howard et al., "MobileNets", 2017).

Several output rows are computed at once, straight from the image, and what follows the layer is
applied while they are in cache. As an op of its own it can be traced, fused and saved.
"""

from __future__ import annotations

import functools

from torch import Tensor
from torch.nn import functional as F

from .. import library
from ..core import Packed, Shape
from . import reference
from ._ops import NO_ACTIVATION, NO_RESIDUAL, define, isa_number
from .operation import Conv2d
from .table import KERNELS, Kernel, Prepared, as_dense


def dense_conv2d_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *numbers: int,
) -> Tensor:
    """x (N, C, H, W) -> y (N, out, H', W') = activation(x * W + bias + residual), as F.conv2d.

    weight: (out, C / groups, kernel_h, kernel_w), dense. The output is contiguous.
    """
    _, _, a, b, c, d, e, f, groups, activation = numbers
    y = F.conv2d(x, weight, bias, (a, b), (c, d), (e, f), groups).contiguous()
    return reference.ACTIVATIONS[activation][1](y if residual is None else y + residual)


def _shape(
    x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None, *numbers: int
) -> tuple[int, ...]:
    per_group, *kernel = weight.shape[1:]
    if tuple(kernel) != numbers[:2] or per_group != 1 or x.shape[1] != numbers[8]:
        raise RuntimeError(
            f"a depthwise convolution needs a weight (out, 1, {numbers[0]}, {numbers[1]}) and as "
            f"many channels as groups; got {tuple(weight.shape)}, {x.shape[1]} and {numbers[8]}"
        )
    return reference.conv_shape(x, weight.shape[0], residual, numbers)


dense_conv2d = define(
    "dense_conv2d(Tensor x, Tensor weight, Tensor? bias, Tensor? residual, int kernel_h, "
    "int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, int dilation_h, "
    "int dilation_w, int groups, int activation, int isa) -> Tensor",
    dense_conv2d_reference,
    _shape,
)


def _why_not(isa: str, weight: Tensor | None = None) -> str | None:
    reason = library.why_no_isa(isa, "dense_conv2d")
    if reason is None and weight is not None and weight.shape[1] != 1:
        return f"each output must read one channel; here it reads {weight.shape[1]}"
    return reason


def _prepare(isa: str, weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
    numbers = (NO_RESIDUAL, *conv.numbers, NO_ACTIVATION, isa_number(isa))
    dense = as_dense(weight)
    return Prepared({"weight": dense if dense.is_contiguous() else dense.contiguous()}, numbers)


NAMES = tuple(f"dense.conv2d.depthwise.{isa}" for isa in library.ISAS)
for name, isa in zip(NAMES, library.ISAS, strict=True):
    refuses, prepare = functools.partial(_why_not, isa), functools.partial(_prepare, isa)
    kernel = Kernel(name, "dense", "cpu", refuses, prepare, dense_conv2d, operation=Conv2d.name)
    KERNELS.register(name)(kernel)
