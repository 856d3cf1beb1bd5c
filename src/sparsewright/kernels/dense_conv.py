"""The dense ways of computing a convolution in torch: what every sparse kernel has to beat.

All give an output in the memory format of the input, so that what follows the layer can view it
as it could before; a way that computes in another one pays for the way back.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Packed, Shape
from .operation import Conv2d
from .table import KERNELS, Kernel, Prepared, as_dense, never


def _plain(weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
    return Prepared({"weight": as_dense(weight).detach()}, conv.numbers)


def _channels_last(weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
    last = as_dense(weight).detach().contiguous(memory_format=torch.channels_last)
    return Prepared({"weight": last}, conv.numbers)


def _reordered(weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
    given = (conv.padding, conv.stride, conv.dilation, conv.groups, list(shape))
    plain = as_dense(weight).detach().contiguous()
    ready = torch.ops.mkldnn._reorder_convolution_weight(plain, *given)
    return Prepared({"weight": ready}, conv.numbers)


def conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: int) -> Tensor:
    """F.conv2d with its numbers in the order of `Conv2d.numbers`."""
    _, _, a, b, c, d, e, f, groups = numbers
    return _as_given(x, F.conv2d(x, weight, bias, (a, b), (c, d), (e, f), groups))


def onednn_conv2d(x: Tensor, weight: Tensor, bias: Tensor | None, *numbers: int) -> Tensor:
    """The same through oneDNN; weight as it reordered it.

    Its own ReLU after the sum is not used: it turns NaN into 0, and torch's does not.
    """
    _, _, a, b, c, d, e, f, groups = numbers
    sizes = [c, d], [a, b], [e, f]
    compute = torch.ops.mkldnn._convolution_pointwise
    return _as_given(x, compute(x, weight, bias, *sizes, groups, "none", [], ""))


def _as_given(x: Tensor, y: Tensor) -> Tensor:
    return y.contiguous() if x.is_contiguous() else y


def _why_no_onednn(weight: Tensor | None = None) -> str | None:
    reason = KERNELS["dense.onednn"].refuses(weight)
    if reason is None and not hasattr(torch.ops.mkldnn, "_convolution_pointwise"):
        return "this torch has no prepacked oneDNN op (mkldnn::_convolution_pointwise)"
    return reason


for name, refuses, prepare, op in (
    ("dense.conv2d.eager", never, _plain, conv2d),
    ("dense.conv2d.channels_last", never, _channels_last, conv2d),
    ("dense.conv2d.onednn", _why_no_onednn, _reordered, onednn_conv2d),
):
    kernel = Kernel(name, "dense", "cpu", refuses, prepare, op, operation=Conv2d.name)
    KERNELS.register(name)(kernel)
