"""The products of training on a packed weight: forward, and the gradient of inputs and weights.

Each takes a topology and the present values in its order; x and the output are dense. Compiled
kernels compute float32 on the CPU, where they are there; all else is left to the specification,
packed_reference.py.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor
from torch.nn.grad import conv2d_weight

from .. import library
from ..errors import KernelError
from ..topology import Topology
from . import packed_reference
from .operation import Conv2d
from .packed_conv_forms import InputGradient, cells, convolve, outer
from .packed_forms import ByRows, backward, forward
from .reference import conv_shape

FAN_IN = 64
"""Fewest weights of an output, in a convolution in groups, for which patches are laid out."""


def linear(topology: Topology, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
    """x (..., in) -> y (..., out) = x W^T + bias.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))  # W = [[0, 5]]
    >>> linear(w, torch.tensor([[1.0, 2.0]]), torch.tensor([5.0]), None)
    tensor([[10.]])
    """
    if not _compiled(topology, x, values, bias):
        return packed_reference.linear(topology, x, values, bias)
    _check(topology, x, 1, "x")
    _check_values(topology, values)
    return topology.derived(forward).linear(x, values.contiguous(), bias)


def linear_input_gradient(topology: Topology, dy: Tensor, values: Tensor) -> Tensor:
    """dy (..., out) -> dx (..., in) = dy W.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> linear_input_gradient(w, torch.tensor([[3.0]]), torch.tensor([5.0]))
    tensor([[ 0., 15.]])
    """
    if not _compiled(topology, dy, values):
        return packed_reference.linear_input_gradient(topology, dy, values)
    _check(topology, dy, 0, "dy")
    _check_values(topology, values)
    return topology.derived(backward).linear(dy, values.contiguous(), None)


def linear_weight_gradient(topology: Topology, dy: Tensor, x: Tensor) -> Tensor:
    """dy (..., out), x (..., in) -> (nnz), the sum over the batch of dy[row] * x[column].

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> linear_weight_gradient(w, torch.tensor([[3.0]]), torch.tensor([[1.0, 2.0]]))
    tensor([6.])
    """
    if not _compiled(topology, dy, x):
        return packed_reference.linear_weight_gradient(topology, dy, x)
    _check(topology, dy, 0, "dy")
    _check(topology, x, 1, "x")
    return topology.derived(forward).outer(dy, x)


def linear_gradient_at(topology: Topology, dy: Tensor, x: Tensor) -> Tensor:
    """As linear_weight_gradient, for a topology that is used once: nothing is derived from it.

    >>> candidates = Topology.from_places(torch.tensor([0, 3]), (2, 2))
    >>> linear_gradient_at(candidates, torch.tensor([[1.0, 2.0]]), torch.tensor([[5.0, 7.0]]))
    tensor([ 5., 14.])
    """
    if not _compiled(topology, dy, x):
        return packed_reference.linear_weight_gradient(topology, dy, x)
    _check(topology, dy, 0, "dy")
    _check(topology, x, 1, "x")
    return ByRows(topology).outer(dy, x)


def conv2d(
    topology: Topology, x: Tensor, values: Tensor, bias: Tensor | None, conv: Conv2d
) -> Tensor:
    """F.conv2d of x (N, C, H, W); the topology is of the (out, C / groups * kh * kw) matrix.

    >>> w = Topology.from_places(torch.tensor([1]), (1, 2))
    >>> conv2d(w, torch.ones(1, 1, 1, 3), torch.tensor([5.0]), None, Conv2d((1, 2)))
    tensor([[[[5., 5.]]]])
    """
    if not _compiled(topology, x, values, bias):
        return packed_reference.conv2d(topology, x, values, bias, conv)
    _check_values(topology, values)
    _check_image(topology, x, conv)
    return convolve(topology.derived(cells), x, values.contiguous(), bias, conv)


def conv2d_input_gradient(
    topology: Topology, dy: Tensor, values: Tensor, conv: Conv2d, shape: torch.Size
) -> Tensor:
    """dy (N, out, H', W') -> dx of `shape` (N, C, H, W)."""
    if not _compiled(topology, dy, values):
        return packed_reference.conv2d_input_gradient(topology, dy, values, conv, shape)
    _check_values(topology, values)
    given = torch.empty(shape, device="meta")
    wanted = conv_shape(given, topology.shape[0], None, conv.numbers)
    if tuple(dy.shape) != wanted:
        raise KernelError(f"dy must have shape {wanted}; got {tuple(dy.shape)}")
    _check_image(topology, given, conv)
    return topology.derived(InputGradient(conv)).of(dy, values.contiguous(), shape)


def conv2d_weight_gradient(topology: Topology, dy: Tensor, x: Tensor, conv: Conv2d) -> Tensor:
    """dy (N, out, H', W'), x (N, C, H, W) -> (nnz).

    In groups of less than FAN_IN weights per output (depthwise ones), it is torch's dense gradient
    at the places that are present.
    """
    if not _compiled(topology, dy, x):
        return packed_reference.conv2d_weight_gradient(topology, dy, x, conv)
    _check_image(topology, x, conv)
    if conv.groups > 1 and topology.shape[1] < FAN_IN:
        shape = (topology.shape[0], x.shape[1] // conv.groups, *conv.kernel)
        numbers = (conv.stride, conv.padding, conv.dilation, conv.groups)
        return conv2d_weight(x, shape, dy, *numbers).flatten()[topology.places()]
    return outer(topology.derived(cells), dy, x, conv)


def _compiled(topology: Topology, *tensors: Tensor | None) -> bool:
    """Whether kernels serve these tensors; where there are none at all, that is said once."""
    given = [t for t in tensors if t is not None]
    if not all(t.dtype == torch.float32 and t.device.type == "cpu" for t in given):
        return False
    if topology.device.type != "cpu" or topology.nnz >= 2**31:
        return False
    return is_there()


@functools.cache
def is_there() -> bool:
    """Whether the compiled library is; KernelError if it is older than this file."""
    library.warn_if_missing()
    if library.LIBRARY.path is None:
        return False
    if not hasattr(torch.ops.sparsewright, "exchange_entries"):
        raise KernelError(
            f"the compiled library {library.LIBRARY.path} has no exchange_entries: it is older "
            "than this package; build it anew"
        )
    return True


def _check(topology: Topology, t: Tensor, axis: int, name: str) -> None:
    wanted, given = topology.shape[axis], t.shape[-1] if t.dim() else 0
    if wanted != given:
        raise KernelError(f"{name} must have {wanted} columns; got {tuple(t.shape)}")


def _check_values(topology: Topology, values: Tensor) -> None:
    if values.shape != (topology.nnz,):
        raise KernelError(f"values must have shape ({topology.nnz},); got {tuple(values.shape)}")


def _check_image(topology: Topology, x: Tensor, conv: Conv2d) -> None:
    channels = topology.shape[1] // conv.places * conv.groups
    if x.dim() != 4 or x.shape[1] != channels:
        raise KernelError(f"x must have shape (N, {channels}, H, W); got {tuple(x.shape)}")
