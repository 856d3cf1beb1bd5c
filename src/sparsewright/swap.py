"""The trace of a model becomes the trace of what was deployed from it: each call of a layer that
was replaced becomes what its replacement does, so nothing is traced twice."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from .fold import PRODUCTS
from .kernels import Conv2d
from .nn import LayoutConv1d, LayoutLayer, Prepacked, PrepackedConv1d
from .traced import TENSOR, Like, Trace

aten = torch.ops.aten
FLAT = (LayoutConv1d, PrepackedConv1d)
"""Layers that see a signal as an image of height 1."""


def swap(found: Trace, model: nn.Module) -> Trace | None:
    """The trace of `model`, or None where it has to be traced itself.

    found: that of a model whose modules have the same names; it stays as it is.
    """
    if not found.is_plain:
        return None
    graph, copies = fx.Graph(), dict[fx.Node, Any]()
    graph.output(graph.graph_copy(found.graph, copies))
    modules = dict(model.named_modules(remove_duplicate=False))
    for old, node in list(copies.items()):
        if old.op == "call_function" and not _swap_call(graph, node, modules):
            return None
    graph.eliminate_dead_code()
    tensors = {
        **found.tensors,
        **dict(model.named_parameters(remove_duplicate=False)),
        **dict(model.named_buffers(remove_duplicate=False)),
    }
    places = [n for n in graph.nodes if n.op == "placeholder"]
    pairs = zip(places, found.places, strict=True)
    used = {place.name for node, place in pairs if place.kind == TENSOR and node.users}
    return replace(found, graph=graph, tensors=tensors) if used <= set(tensors) else None


def _swap_call(graph: fx.Graph, node: fx.Node, modules: Mapping[str, nn.Module]) -> bool:
    """Let a call do what the module in its place does now; whether that is known."""
    path = node.meta.get("owner", "")
    module: Any = modules.get(path)
    if isinstance(module, nn.Identity) and node.target is aten.batch_norm.default:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        return True
    is_product = node.target in PRODUCTS
    if isinstance(module, (LayoutLayer, Prepacked)):
        return is_product and _put(graph, node, module, path)
    if is_product and type(module) in (nn.Linear, nn.Conv1d, nn.Conv2d):
        has_bias = len(node.args) > 2 and node.args[2] is not None
        if module.bias is not None and not has_bias:  # of a norm that was folded into it
            with graph.inserting_before(node):
                bias = _tensor(graph, path, "bias", module.bias)
            node.args = (*node.args[:2], bias, *node.args[3:])
    return True


def _put(graph: fx.Graph, node: fx.Node, module: Any, path: str) -> bool:
    """A packed or prepacked layer in the place of a product; whether its input has a batch."""
    x: Any = node.args[0]
    value = node.meta["val"]
    if isinstance(module, LayoutLayer) and not isinstance(module.parts[0], torch._ops.OpOverload):
        return False  # the reference: its trace is that of its lines
    axes = getattr(module, "axes", None)  # of a convolution's images
    if axes is not None and value.dim() != axes + 2:
        return False
    with graph.inserting_before(node):
        if isinstance(module, FLAT):
            x = _call(graph, aten.unsqueeze.default, (x, 2), x.meta["val"].unsqueeze(2))
            value = value.unsqueeze(2)
        made = _product(graph, x, module, path, value)
        if isinstance(module, FLAT):
            made = _call(graph, aten.squeeze.dim, (made, 2), node.meta["val"])
    node.replace_all_uses_with(made)
    graph.erase_node(node)
    return True


def _product(
    graph: fx.Graph, x: fx.Node, module: LayoutLayer | Prepacked, path: str, value: Any
) -> fx.Node:
    bias = _optional(graph, path, "bias", module.bias)
    if isinstance(module, LayoutLayer):
        op, names, numbers = module.parts
        tensors = [_optional(graph, path, name, module._buffers[name]) for name in names]
        return _call(graph, op, (x, *tensors, bias, *numbers), value)
    weight = _tensor(graph, path, "weight", module.weight)
    if module.is_op:
        op, numbers = module.parts
        return _call(graph, op, (x, weight, bias, *numbers), value)
    if module.weight.dim() == 2:
        return _call(graph, aten.linear.default, (x, weight, bias), value)
    assert isinstance(module.operation, Conv2d)
    a, b, c, d, e, f, groups = module.operation.numbers[2:]
    sizes = ([a, b], [c, d], [e, f], groups)
    return _call(graph, aten.conv2d.default, (x, weight, bias, *sizes), value)


def _optional(graph: fx.Graph, path: str, name: str, tensor: Tensor | None) -> fx.Node | None:
    return None if tensor is None else _tensor(graph, path, name, tensor)


def _tensor(graph: fx.Graph, path: str, name: str, tensor: Tensor) -> fx.Node:
    node = graph.create_node("get_attr", f"{path}.{name}" if path else name)
    node.meta["val"] = Like.of(tensor)
    return node


def _call(graph: fx.Graph, target: Any, args: tuple[Any, ...], value: Any) -> fx.Node:
    name = str(target).split(".")[-2]
    node = graph.create_node("call_function", target, args, name=name)
    node.meta["val"] = value
    return node
