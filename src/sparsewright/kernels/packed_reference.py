"""The specification of the products of training on a packed weight, in plain torch.

For every device and float type. A product takes memory for `PIECE` numbers at most.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_input

from ..topology import Topology
from .operation import Conv2d
from .reference import PIECE, product


def linear(topology: Topology, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) -> y (..., out) = x W^T + bias.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))  # W = [[0, 5]]
    >>> linear(w, torch.tensor([[1.0, 2.0]]), torch.tensor([5.0]), None)
    tensor([[10.]])
    """
    columns = topology.columns.long()
    return product(x, topology.rows(), columns, values, bias, topology.shape[0], 0)


def linear_input_gradient(topology: Topology, dy: Tensor, values: Tensor) -> Tensor:
    """dy (..., out) -> dx (..., in) = dy W.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> linear_input_gradient(w, torch.tensor([[3.0]]), torch.tensor([5.0]))
    tensor([[ 0., 15.]])
    """
    columns = topology.columns.long()
    return product(dy, columns, topology.rows(), values, None, topology.shape[1], 0)


def linear_weight_gradient(topology: Topology, dy: Tensor, x: Tensor) -> Tensor:
    """dy (..., out), x (..., in) -> (nnz), the sum over the batch of dy[row] * x[column].

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> linear_weight_gradient(w, torch.tensor([[3.0]]), torch.tensor([[1.0, 2.0]]))
    tensor([6.])
    """
    dy, x = (t.reshape(t.shape[:-1].numel(), t.shape[-1]) for t in (dy, x))
    rows, columns = topology.rows(), topology.columns.long()
    out = dy.new_empty(topology.nnz)
    step = max(1, PIECE // max(1, dy.shape[0]))
    for i in range(0, topology.nnz, step):
        part = slice(i, i + step)
        out[part] = (dy[:, rows[part]] * x[:, columns[part]]).sum(0)
    return out


def conv2d(
    topology: Topology, x: Tensor, values: Tensor, bias: Tensor | None, conv: Conv2d
) -> Tensor:
    """F.conv2d of x (N, C, H, W); the topology is of the (out, C / groups * kh * kw) matrix.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> conv2d(w, torch.ones(1, 1, 1, 3), torch.tensor([5.0]), None, Conv2d((1, 2)))
    tensor([[[[5., 5.]]]])
    """
    weight = _dense(topology, values, x, conv)
    return conv.dense(x, weight, bias)


def conv2d_input_gradient(
    topology: Topology, dy: Tensor, values: Tensor, conv: Conv2d, shape: torch.Size
) -> Tensor:
    """dy (N, out, H', W') -> dx of `shape` (N, C, H, W)."""
    weight = _dense(topology, values, dy, conv)
    return conv2d_input(shape, weight, dy, conv.stride, conv.padding, conv.dilation, conv.groups)


def conv2d_weight_gradient(topology: Topology, dy: Tensor, x: Tensor, conv: Conv2d) -> Tensor:
    """dy (N, out, H', W'), x (N, C, H, W) -> (nnz)."""
    out = dy.new_zeros(topology.nnz)
    share = topology.shape[0] // conv.groups  # outputs of a group
    for g, (part, of_group) in enumerate(
        zip(x.chunk(conv.groups, 1), dy.chunk(conv.groups, 1), strict=True)
    ):
        patches = F.unfold(part, conv.kernel, conv.dilation, conv.padding, conv.stride)
        begin, end = (int(topology.starts[i * share]) for i in (g, g + 1))
        if begin == end:
            continue
        starts = topology.starts[g * share : (g + 1) * share + 1] - begin
        own = Topology((share, topology.shape[1]), starts, topology.columns[begin:end])
        rows, columns = of_group.flatten(2).transpose(1, 2), patches.transpose(1, 2)
        out[begin:end] = linear_weight_gradient(own, rows, columns)
    return out


def _dense(topology: Topology, values: Tensor, like: Tensor, conv: Conv2d) -> Tensor:
    """The weight (out, C / groups, kh, kw) with its zeros."""
    rows, width = topology.shape
    weight = like.new_zeros(rows * width)
    weight[topology.places()] = values.to(like.dtype)
    return weight.view(rows, -1, *conv.kernel)
