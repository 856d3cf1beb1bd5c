"""Between the modules of a model and kernels: a layer as an operation on a weight, and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from ..kernels import Choice, Conv2d, Linear, Operation, depthwise
from ..registry import Table
from .layout_conv import LayoutConv1d, LayoutConv2d
from .layout_linear import LayoutLinear
from .prepacked_conv import PrepackedConv1d, PrepackedConv2d
from .prepacked_linear import PrepackedLinear

Build = Callable[[Tensor, Tensor | None, int], nn.Module]
DENSE: Table[Build] = Table("dense kernel")
"""Kernel -> (weight, bias, rows of x) -> module."""
DENSE.register("dense.onednn")(PrepackedLinear)


@DENSE.register("dense.eager")
def plain(weight: Tensor, bias: Tensor | None, rows: int) -> nn.Linear:
    """An ordinary Linear with copies of these values, frozen."""
    linear = nn.Linear(1, 1, bias is not None)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        linear.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return linear


def build_linear(choice: Choice, weight: Tensor, bias: Tensor | None) -> nn.Module:
    """The module that computes x W^T + bias by the chosen kernel, in eval mode.

    >>> import torch
    >>> from sparsewright.kernels import choose
    >>> weight = torch.eye(32)
    >>> choice = choose(weight, None, torch.ones(1, 32), seconds=0.01)
    >>> torch.equal(build_linear(choice, weight, None)(torch.ones(1, 32)), torch.ones(1, 32))
    True
    """
    if choice.packed is not None:
        return LayoutLinear(choice.packed, bias, choice.kernel).eval()
    return DENSE[choice.kernel](weight, bias, choice.batch).eval()


Convolution = nn.Conv1d | nn.Conv2d
DENSE_CONV: Table[Callable[[Choice, Convolution], nn.Module]] = Table("dense kernel")
"""Kernel -> (choice, the layer) -> module."""


@DENSE_CONV.register("dense.conv2d.eager")
def keep(choice: Choice, conv: Convolution) -> nn.Module:
    """The layer as it is."""
    return conv


@DENSE_CONV.register("dense.conv2d.channels_last")
@DENSE_CONV.register("dense.conv2d.onednn")
def hold(choice: Choice, conv: Convolution) -> nn.Module:
    """The layer with its weight as the kernel wants it."""
    kind = PrepackedConv1d if conv.weight.dim() == 3 else PrepackedConv2d
    assert isinstance(choice.operation, Conv2d)
    return kind(_image(conv.weight), conv.bias, choice.operation, choice.shape, choice.kernel)


for name in depthwise.NAMES:
    DENSE_CONV.register(name)(hold)


def build_conv(choice: Choice, conv: Convolution) -> nn.Module:
    """The module that computes a convolution by the chosen kernel, in eval mode.

    >>> import torch
    >>> from sparsewright.kernels import choose
    >>> conv, x = nn.Conv1d(2, 4, 3).requires_grad_(False), torch.ones(1, 2, 8)
    >>> task = task_of(conv, x)
    >>> choice = choose(task.weight, task.bias, task.x, operation=task.operation, seconds=0)
    >>> torch.allclose(build_conv(choice, conv)(x), conv(x), atol=1e-5)
    True
    """
    if choice.packed is None:
        return DENSE_CONV[choice.kernel](choice, conv).eval()
    kind = LayoutConv1d if conv.weight.dim() == 3 else LayoutConv2d
    assert isinstance(choice.operation, Conv2d)
    return kind(choice.packed, choice.operation, conv.bias, choice.kernel).eval()


def _image(tensor: Tensor) -> Tensor:
    """A signal's (N, C, L) tensor as an image of height 1; images as they are."""
    return tensor.unsqueeze(2) if tensor.dim() == 3 else tensor


@dataclass(frozen=True)
class Task:
    """What a layer computes on an example: the arguments of `choose`."""

    operation: Operation
    weight: Tensor
    bias: Tensor | None
    x: Tensor


def _linear_task(linear: nn.Linear, x: Tensor) -> Task | str:
    return Task(Linear(), linear.weight, linear.bias, x)


def _conv_task(conv: Convolution, x: Tensor) -> Task | str:
    operation = Conv2d.of(conv)
    if isinstance(operation, str):
        return operation
    whole = x if x.dim() == conv.weight.dim() else x.unsqueeze(0)
    return Task(operation, _image(conv.weight), conv.bias, _image(whole))


@dataclass(frozen=True)
class Kind:
    """A kind of module that kernels can serve.

    task: (module, example) -> what it computes, or why it stays dense. build: (choice, module) ->
    the module that takes its place.
    """

    task: Callable[[Any, Tensor], Task | str]
    build: Callable[[Choice, Any], nn.Module]


KINDS: Mapping[type[nn.Module], Kind] = {
    nn.Linear: Kind(_linear_task, lambda choice, m: build_linear(choice, m.weight, m.bias)),
    nn.Conv1d: Kind(_conv_task, build_conv),
    nn.Conv2d: Kind(_conv_task, build_conv),
}
"""The plain modules of torch alone: a subclass may compute something else."""


def task_of(module: nn.Module, x: Tensor) -> Task | str:
    """What a module computes on x, or why no kernel can serve it.

    >>> import torch
    >>> task_of(nn.Linear(3, 2), torch.ones(1, 3)).operation
    Linear()
    >>> task_of(nn.Conv2d(4, 4, 2, padding="same"), torch.ones(1, 4, 8, 8))
    "padding 'same' stays dense here: it pads one side more than the other"
    """
    if type(module) not in KINDS:
        return f"no sparse kernel for {type(module).__name__} yet"
    return KINDS[type(module)].task(module, x)
