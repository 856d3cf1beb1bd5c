"""Which nodes of a program's graph work on images, and how: what beside.py can compute of images
side by side."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from .calls import CONV_NUMBERS
from .kernels.csb_conv import csb_conv2d
from .kernels.depthwise import dense_conv2d
from .operations import expect_channels
from .pooling import Pair, plain_pool

aten = torch.ops.aten
MOST_PLACES = 255
"""Of a kernel: what a tile reads of a channel is laid together, and shall not be large. And most
numbers that an output of a dense convolution reads."""

POINTWISE = (
    aten.relu.default,
    aten.relu6.default,
    aten.hardtanh.default,
    aten.gelu.default,
    aten.silu.default,
    aten.hardswish.default,
    aten.sigmoid.default,
    aten.tanh.default,
)
"""Operations on each number by itself: they do not ask how the images lie."""
PAIRWISE = (aten.add.Tensor, aten.mul.Tensor)
"""The same of two images of one shape."""


def real(node: Any) -> fx.Node:
    """What a check of channels passes on."""
    while node.target is expect_channels:
        node = node.args[0]
    return node


OWN = (csb_conv2d, dense_conv2d)
"""Convolutions of ours: of layout csb, and depthwise ones."""


def given(node: fx.Node, name: str) -> Any:
    """An argument of a convolution of ours."""
    return node.args[_places(node.target)[name]]


@functools.cache
def _places(op: Any) -> Mapping[str, int]:
    return {a.name: i for i, a in enumerate(op._schema.arguments)}


def residual_of(node: fx.Node) -> Any:
    """What a convolution adds to its output, or None."""
    return given(node, "residual") if node.target in OWN else None


def geometry_of(node: fx.Node) -> dict[str, int]:
    """Of a convolution, by the names that the ops of ours have for it."""
    if node.target in OWN:
        return {name: given(node, name) for name in CONV_NUMBERS}
    weight: Any = node.args[1]
    rest: list[Any] = list(node.args[3:])
    *pairs, groups = rest + [[1], [0], [1], 1][len(rest) :]
    numbers = [*weight.meta["sizes"][2:]]
    for pair in pairs:
        numbers += [pair[0], pair[-1]]
    return dict(zip(CONV_NUMBERS, [*numbers, groups], strict=True))


def images_of(node: fx.Node) -> list[fx.Node]:
    """What a node works on."""
    return [real(n) for n in node.all_input_nodes]


def is_conv(node: fx.Node) -> bool:
    """Whether the kernels for images side by side compute it: of layout csb, a depthwise one, or a
    dense one that reads so few numbers for an output that a chunk of the layout holds them all."""
    if node.target not in (*OWN, aten.conv2d.default) or node.kwargs:
        return False
    if _shape(node) is None or _shape(node.args[0]) is None:
        return False
    more = residual_of(node)
    if more is not None and _shape(more) is None:
        return False
    if node.target is not csb_conv2d:
        sizes = node.args[1].meta.get("sizes", ()) if isinstance(node.args[1], fx.Node) else ()
        if len(sizes) != 4 or not 0 < math.prod(sizes[1:]) <= MOST_PLACES:
            return False
    geometry = geometry_of(node)
    small = geometry["kernel_h"] * geometry["kernel_w"] <= MOST_PLACES
    constant = node.args[1:7] if node.target is csb_conv2d else node.args[1:3]
    constants = [a for a in constant if isinstance(a, fx.Node)]
    whole = geometry["groups"] == 1 or is_depthwise(node)
    return whole and small and all(n.op == "get_attr" for n in constants)


def is_depthwise(node: fx.Node) -> bool:
    """Whether every output of a convolution reads one channel."""
    if node.target is dense_conv2d:
        return True
    channels: int = real(node.args[0]).meta["sizes"][1]
    return node.target is not csb_conv2d and geometry_of(node)["groups"] == channels


def is_by_place(node: fx.Node) -> bool:
    """Whether it can be computed of images side by side, where they are."""
    if node.target in POINTWISE or pool_of(node) is not None:
        return _shape(node) is not None
    pair = node.target in PAIRWISE and not node.kwargs and len(node.all_input_nodes) == 2
    return pair and len({_shape(n) for n in [node, *node.all_input_nodes]} | {None}) == 2


def pool_of(node: fx.Node) -> tuple[Pair, Pair, Pair] | None:
    """Kernel, stride and padding of max pooling that is computed of images side by side."""
    if node.target is not aten.max_pool2d.default or node.kwargs:
        return None
    rest: tuple[Any, ...] = node.args[1:]
    return plain_pool(*rest)


def is_mean(node: fx.Node) -> bool:
    """Whether it is the mean of every channel of images."""
    if node.kwargs or _shape(node.args[0] if node.args else None) is None:
        return False
    rest: list[Any] = list(node.args[1:])
    if node.target is aten.adaptive_avg_pool2d.default:
        return [*rest[0]] in ([1], [1, 1])
    if node.target is not aten.mean.dim or rest[0] is None:
        return False
    return sorted(dim % 4 for dim in rest[0]) == [2, 3]


def keeps_sizes(node: fx.Node) -> bool:
    """Whether the mean of channels has sizes (N, channels, 1, 1), not (N, channels)."""
    return node.target is not aten.mean.dim or node.args[2:3] == (True,)


def _shape(node: Any) -> tuple[int, ...] | None:
    """Sizes of images, (N, channels, height, width), one for each sample and not empty; else
    None."""
    if not isinstance(node, fx.Node) or not real(node).meta.get("samples"):
        return None
    sizes = real(node).meta.get("sizes")
    return sizes if sizes is not None and len(sizes) == 4 and min(sizes) > 0 else None
