"""The specification of every kernel, in plain torch: absent weights take no part at all.

So an infinite or missing (NaN) activation reaches exactly those outputs that have a weight
present for it. Works in the dtype of its arguments: in float64 it is what float32 is held against.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

LANES = 16
PIECE = 2**24
"""Products held in memory at once."""


def gelu(y: Tensor) -> Tensor:
    """torch's GELU, which says NaN of positive infinity where its float32 code runs on AVX-512."""
    return F.gelu(y).where(y != math.inf, y)


ACTIVATIONS: tuple[tuple[str, Callable[[Tensor], Tensor]], ...] = (
    ("none", lambda y: y),
    ("relu", F.relu),
    ("gelu", gelu),
    ("silu", F.silu),
    ("relu6", F.relu6),
    ("hardswish", F.hardswish),
)
"""What an op may apply to its output: its `activation` is the place in this tuple."""


def csr_linear(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out) = activation(x W^T + bias), W in layout csr.

    >>> rows, columns = torch.tensor([0, 1]), torch.tensor([2])
    >>> csr_linear(torch.tensor([1., 2., 3.]), rows, columns, torch.tensor([10.]), None, None)
    tensor([30.])
    """
    out = rows.shape[0] - 1
    row_of = torch.repeat_interleave(torch.arange(out), rows.long().diff())
    return product(x, row_of, columns.long(), values, bias, out, activation, scales)


def nm_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    activation: int = 0,
) -> Tensor:
    """x (..., in) -> y (..., out_features) = activation(x W^T + bias), W in layout nm."""
    tile, at, slot, lane = torch.nonzero(values, as_tuple=True)
    places = columns[tile, at, slot, lane].long()
    rows, present = tile * LANES + lane, values[tile, at, slot, lane]
    columns_of = at * chunk + places
    return product(x, rows, columns_of, present, bias, out_features, activation, scales)


def csr_conv2d(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    scales: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
    groups: int,
    activation: int = 0,
) -> Tensor:
    """x (N, C, H, W) -> y (N, out, H', W') = activation(x * W + bias + residual), as F.conv2d.

    W (out, C / groups, kernel_h, kernel_w) as layout csr of its (out, C / groups * kernel_h *
    kernel_w) matrix. The patches of x stand side by side, and a group is a csr_linear of them.

    >>> rows, columns = torch.tensor([0, 1]), torch.tensor([3])
    >>> x = torch.arange(9.0).reshape(1, 1, 3, 3)
    >>> csr_conv2d(x, rows, columns, torch.ones(1), None, None, None, 2, 2, 1, 1, 0, 0, 1, 1, 1)
    tensor([[[[4., 5.],
              [7., 8.]]]])
    """
    kernel, stride = (kernel_h, kernel_w), (stride_h, stride_w)
    padding, dilation = (padding_h, padding_w), (dilation_h, dilation_w)
    size = conv_size(x, *kernel, *stride, *padding, *dilation)
    out = rows.shape[0] - 1
    y = x.new_zeros(x.shape[0], out, *size)
    ends = rows.long()[:: max(1, out // groups)].tolist() if out else [0] * (groups + 1)
    if x.shape[0]:  # unfold takes no empty batch
        for g, part in enumerate(x.chunk(groups, dim=1)):
            begin, end = ends[g], ends[g + 1]
            own = slice(g * out // groups, (g + 1) * out // groups)
            patches = F.unfold(part, kernel, dilation, padding, stride).transpose(1, 2)
            starts = rows[own.start : own.stop + 1].long() - begin
            steps = None if scales is None else scales[own]
            z = csr_linear(patches, starts, columns[begin:end], values[begin:end], steps, None)
            y[:, own] = z.transpose(1, 2).reshape(x.shape[0], -1, *size)
    if bias is not None:
        y += bias[:, None, None]
    if residual is not None:
        if residual.shape != y.shape:
            raise RuntimeError(f"residual must be {tuple(y.shape)}; got {tuple(residual.shape)}")
        y += residual
    return ACTIVATIONS[activation][1](y)


def conv_size(
    x: Tensor,
    kernel_h: int,
    kernel_w: int,
    stride_h: int,
    stride_w: int,
    padding_h: int,
    padding_w: int,
    dilation_h: int,
    dilation_w: int,
) -> tuple[int, int]:
    """(height, width) of the output of a convolution; RuntimeError if the kernel exceeds x.

    >>> conv_size(torch.ones(1, 1, 7, 5), 3, 3, 2, 2, 1, 1, 1, 1)
    (4, 3)
    """
    if x.dim() != 4:
        raise RuntimeError(f"x must have shape (N, C, H, W); got {x.dim()} dimensions")
    height = x.shape[2] + 2 * padding_h - dilation_h * (kernel_h - 1)
    width = x.shape[3] + 2 * padding_w - dilation_w * (kernel_w - 1)
    if height < 1 or width < 1:
        raise RuntimeError(
            f"a kernel of {kernel_h} x {kernel_w} does not fit into x of {tuple(x.shape[2:])}"
        )
    return (height - 1) // stride_h + 1, (width - 1) // stride_w + 1


def product(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    out: int,
    activation: int,
    scales: Tensor | None = None,
) -> Tensor:
    """Weight i connects column columns[i] to row rows[i].

    values: float32, or bf16, or int8 steps: then a row's sum is multiplied by its scale.
    """
    flat = x.reshape(x.shape[:-1].numel(), x.shape[-1])
    y = flat.new_zeros(flat.shape[0], out)
    wide = values.to(x.dtype)
    step = max(1, PIECE // max(1, values.shape[0]))
    for begin in range(0, flat.shape[0], step):
        part = flat[begin : begin + step]
        y[begin : begin + step].index_add_(1, rows, part[:, columns] * wide)
    if scales is not None:
        y *= scales
    if bias is not None:
        y += bias
    return ACTIVATIONS[activation][1](y).reshape(*x.shape[:-1], out)


def conv_shape(
    x: Tensor, out: int, residual: Tensor | None, numbers: Sequence[int]
) -> tuple[int, ...]:
    """The output's shape; numbers begin with those of `conv_size`. RuntimeError unless a residual
    has it too."""
    shape = (x.shape[0], out, *conv_size(x, *numbers[:8]))
    if residual is not None and tuple(residual.shape) != shape:
        raise RuntimeError(f"residual must have shape {shape}; got {tuple(residual.shape)}")
    return shape
