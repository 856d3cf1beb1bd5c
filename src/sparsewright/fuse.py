"""What follows a packed layer becomes part of its kernel: an addition, then an activation, while
the output is still in cache.

Only where nothing else reads what lies between. A ReLU that is no part of a kernel comes after max
pooling instead of before it. Dense neighbours are left alone: oneDNN's own ReLU after a product
turns NaN into 0, and torch's does not.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from .kernels.reference import ACTIVATIONS
from .operations import own_parts
from .traced import Like

TOLERANCE = 1e-5
"""Of the largest output, between a model with fused additions, GELU, SiLU or hard swish and the
same one without: an addition may come before the sum instead of after it, and erf and exp are
polynomials that are right to about 2e-7."""

aten = torch.ops.aten
NUMBERS = {name: number for number, (name, _) in enumerate(ACTIVATIONS)}
FUSED: tuple[tuple[Callable[..., Any], tuple[Any, ...], str], ...] = (
    (aten.relu.default, (), "relu"),
    (aten.gelu.default, (), "gelu"),
    (aten.silu.default, (), "silu"),
    (aten.relu6.default, (), "relu6"),
    (aten.hardtanh.default, (0.0, 6.0), "relu6"),  # nn.ReLU6
    (aten.hardswish.default, (), "hardswish"),
)
"""Operation, what follows its input, the activation that it is."""
EXACT = ("relu", "relu6")


def fuse(graph: fx.Graph) -> bool:
    """Fuse what can be fused, in place; whether the outputs stay the same bit for bit.

    graph: of a trace, with what each node gives in `meta["val"]`.
    """
    exact = True
    for node in list(graph.nodes):
        if node.op != "call_function" or own_parts(str(node.target)) is None:
            continue
        if "residual" in _names(node.target):
            added = _take_addition(graph, node)
            exact, node = exact and added is None, added or node
        name = _take_activation(graph, node)
        exact = exact and (name is None or name in EXACT)
    _pool_before_relu(graph)
    return exact


def _pool_before_relu(graph: fx.Graph) -> None:
    """A ReLU that stayed, before max pooling alone, comes after it: the same numbers, fewer."""
    for node in list(graph.nodes):
        pool = _only_user(node)
        if node.target is not aten.relu.default or pool is None:
            continue
        if pool.target is not aten.max_pool2d.default:
            continue
        pool.update_arg(0, node.args[0])
        with graph.inserting_after(pool):
            relu = graph.call_function(aten.relu.default, (pool,))
        relu.meta = dict(pool.meta)
        pool.replace_all_uses_with(relu)
        relu.update_arg(0, pool)
        graph.erase_node(node)


def _take_addition(graph: fx.Graph, node: fx.Node) -> fx.Node | None:
    """The same operation with what is added to its output alone, in the addition's place."""
    add = _only_user(node)
    if add is None or add.target is not aten.add.Tensor or add.kwargs or len(add.args) != 2:
        return None
    others = [a for a in add.args if a is not node]
    if len(others) != 1 or not isinstance(others[0], fx.Node) or not _alike(others[0], node):
        return None
    if _given(node, "residual") is not None or _given(node, "activation") != NUMBERS["none"]:
        return None
    with graph.inserting_before(add):
        fused = graph.call_function(node.target, node.args)  # type: ignore[arg-type]
    fused.meta = dict(node.meta)
    _give(fused, "residual", others[0])
    add.replace_all_uses_with(fused)
    graph.erase_node(add)
    graph.erase_node(node)
    return fused


def _take_activation(graph: fx.Graph, node: fx.Node) -> str | None:
    """Let the operation apply what alone reads its output; the activation's name, if it did."""
    last = node
    while (user := _only_user(last)) is not None and user.target is aten.squeeze.dim:
        last = user  # a signal's image of height 1
    found = (n for op, rest, n in FUSED if user and user.target is op and user.args[1:] == rest)
    name = next(found, None)
    if user is None or name is None:
        return None
    if user.kwargs.get("approximate", "none") != "none":
        return None
    if _given(node, "activation") != NUMBERS["none"]:
        return None
    _give(node, "activation", NUMBERS[name])
    user.replace_all_uses_with(last)
    graph.erase_node(user)
    return name


def _only_user(node: fx.Node) -> fx.Node | None:
    users = list(node.users)
    return users[0] if len(users) == 1 and users[0].op == "call_function" else None


def _alike(a: fx.Node, b: fx.Node) -> bool:
    """Whether both are tensors of one type and shape, at every batch."""
    x, y = a.meta.get("val"), b.meta.get("val")
    return isinstance(x, Like) and x == y


@functools.cache
def _names(target: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(a.name for a in target._schema.arguments)  # type: ignore[attr-defined]


def _given(node: fx.Node, name: str) -> Any:
    return node.args[_names(node.target).index(name)]


def _give(node: fx.Node, name: str, value: Any) -> None:
    node.update_arg(_names(node.target).index(name), value)
