"""Max pooling by whole rows: the maximum of a window's rows first, then along the row they give.

torch walks over a contiguous image's windows one number at a time. The results are the same
numbers, and NaN goes the same way.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .kernels._ops import define
from .library import BEST

Pair = tuple[int, int]
plain = torch.ops.aten.max_pool2d.default
FEW = 8
"""Windows up to this long in each direction: each of a window's places costs a pass over a row."""


def max_pool2d(
    x: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Tensor:
    """aten's max_pool2d; x (N, C, H, W) or (C, H, W).

    Images that are not contiguous or whose gradient is wanted, dilation, ceil_mode and long windows
    are torch's own business.

    >>> x = torch.arange(16.0).reshape(1, 1, 4, 4)
    >>> max_pool2d(x, [2, 2])
    tensor([[[[ 5.,  7.],
              [13., 15.]]]])
    """
    usual = (
        x.dim() == 4 and x.is_contiguous() and x.dtype == torch.float32 and x.device.type == "cpu"
    )
    usual = usual and not (x.requires_grad and torch.is_grad_enabled())
    windows = plain_pool(kernel_size, stride, padding, dilation, ceil_mode)
    if not usual or windows is None:
        return plain(x, kernel_size, stride, padding, dilation, ceil_mode)
    (h, w), (down, right), (above, left) = windows
    if min(x.shape[2] + 2 * above - h, x.shape[3] + 2 * left - w) < 0:
        return plain(x, kernel_size, stride, padding, dilation, ceil_mode)  # raises its own error
    most: Tensor = by_rows(x, h, w, down, right, above, left, BEST)
    return most


def plain_pool(
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> tuple[Pair, Pair, Pair] | None:
    """Kernel, stride and padding, down and right, of windows that our kernels serve; else None.

    >>> plain_pool([3], [2], [1])
    ((3, 3), (2, 2), (1, 1))
    """
    if ceil_mode or set(dilation) != {1} or max(kernel_size) > FEW:
        return None
    kernel, step, edge = map(_pair, (kernel_size, stride or kernel_size, padding))
    fits = all(2 * e <= k and s >= 1 and e >= 0 for e, k, s in zip(edge, kernel, step, strict=True))
    return (kernel, step, edge) if fits else None


def by_slices(x: Tensor, h: int, w: int, down: int, right: int, above: int, left: int) -> Tensor:
    """The reference: the maximum of shifted slices. x (N, C, H, W), float32."""
    if above or left:
        x = F.pad(x, (left, left, above, above), value=float("-inf"))
    rows = _most(x, 2, h, down)
    return _most(rows, 3, w, right).contiguous()


def _shape(
    x: Tensor, h: int, w: int, down: int, right: int, above: int, left: int, isa: int
) -> list[int]:
    high, wide = (x.shape[2] + 2 * above - h) // down + 1, (x.shape[3] + 2 * left - w) // right + 1
    return [*x.shape[:2], high, wide]


by_rows = define(
    "max_pool2d(Tensor x, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, "
    "int padding_w, int isa) -> Tensor",
    by_slices,
    _shape,
)


def _most(x: Tensor, axis: int, size: int, step: int) -> Tensor:
    """The maximum of every `size` places in a row along an axis, at every `step`-th place."""
    length = (x.shape[axis] - size) // step * step + 1
    at = [slice(None)] * axis
    most = x[(*at, slice(0, length, step))]
    for i in range(1, size):
        most = torch.maximum(most, x[(*at, slice(i, i + length, step))])
    return most


def _pair(sizes: Sequence[int]) -> tuple[int, int]:
    return int(sizes[0]), int(sizes[-1])
