"""A program's convolutions on images that lie side by side along the processor's vectors.

Sixteen images of a batch fill a vector, or as many patches of fewer images, so no load is at an odd
place and hardly a place is padding; and the output of one convolution, tile by tile, goes through
the 1x1 ones that follow it while it is still in cache. The images are turned that way where the
first convolution reads them, and back where something else does.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from . import library
from .image_nodes import (
    geometry_of,
    given,
    is_depthwise,
    keeps_sizes,
    pool_of,
    real,
    residual_of,
)
from .image_units import IMAGES, Unit, Units
from .kernels.bound import Bound, bind_beside, bind_depthwise_beside, bind_pool_beside
from .kernels.csb_conv import TENSORS, csb_conv2d
from .kernels.depthwise import dense_conv2d
from .layouts import LAYOUTS
from .library import BEST
from .shared_calls import SharedCalls
from .waves import merge_into_waves

aten = torch.ops.aten


def beside(
    module: fx.GraphModule,
    cut: Callable[[fx.Graph], Callable[..., Any]],
    images: int = IMAGES,
    threads: int = 1,
) -> fx.Graph | None:
    """The module's graph with convolutions (image_nodes.is_conv) on images side by side; None where
    there are none, or more turns than there and back for each, or the kernels are not compiled.

    images: IMAGES, of which a batch may have any number of groups; or fewer, which are the whole
    batch. threads: that a convolution of patches has to keep busy, else it stays as it is. cut: the
    function of a graph of the same inputs that is run a few samples at a time: what comes before
    the first turn, where all that follows needs its result alone.
    """
    if any(library.why_not_compiled(op) for op in ("beside_cost", "bind_depthwise_beside")):
        return None
    units = Units(module, images, threads)
    convs = sum(len(unit.stages) for unit in units.all if unit.kind == "chain")
    turns = sum(unit.kind in ("turn", "back") for unit in units.all)
    if convs == 0 or turns > 2 * convs:
        return None
    graph = _Writer(module, units, cut).graph
    if images == IMAGES:
        merge_into_waves(graph)
    return graph


class _Writer:
    """Units on their way into a graph."""

    def __init__(
        self,
        module: fx.GraphModule,
        units: Units,
        cut: Callable[[fx.Graph], Callable[..., Any]],
    ):
        self.module, self.units, self.graph = module, units, fx.Graph()
        self.plain: dict[fx.Node, fx.Node] = {}
        self.beside: dict[fx.Node, fx.Node] = {}
        self.done: set[Unit] = set()
        self.relus = {conv: relu for relu, conv in units.relus.items()}
        # Which instruction set was fastest for one image after the other says nothing here: the
        # best one that serves any of them.
        stages = [n for unit in units.all for n in unit.stages if n.target is csb_conv2d]
        found = {given(node, "isa") for node in stages}
        self.isa = BEST if BEST in found else max(found, default=BEST)
        for unit in units.all:
            if unit.node.op == "placeholder":
                self._write(unit)
        self._head(units.head(), cut)
        for unit in units.all:
            self._write(unit)
        _overwrite(self.graph)

    def _head(self, units: list[Unit], cut: Callable[[fx.Graph], Callable[..., Any]]) -> None:
        """One call for all of these."""
        if not units:
            return
        last, graph, env = units[-1].node, fx.Graph(), dict[fx.Node, fx.Node]()
        for node in self.module.graph.nodes:
            mine = any(unit.node is node for unit in units)
            if mine or node.op in ("placeholder", "get_attr"):
                env[node] = graph.node_copy(node, env.__getitem__)
        graph.output(env[last])
        run = cut(graph)

        def head(*inputs: Any) -> Any:
            return run(*inputs)

        inputs = [n for n in self.module.graph.nodes if n.op == "placeholder"]
        self.plain[last] = self._call(head, *(self.plain[n] for n in inputs))
        self.done.update(units)

    def _write(self, unit: Unit) -> None:
        """After what it needs, which may come later in the list."""
        left = [unit]
        while left:
            waiting = [n for n in left[-1].needs if n not in self.done]
            if waiting:
                left += waiting
                continue
            unit = left.pop()
            if unit not in self.done:
                self.done.add(unit)
                getattr(self, f"_{unit.kind}")(unit)

    def _call(self, target: Callable[..., Any], *args: Any) -> fx.Node:
        return self.graph.call_function(target, args)

    def _plain(self, unit: Unit) -> None:
        self.plain[unit.node] = self.graph.node_copy(unit.node, self._as_plain)

    def _as_plain(self, node: fx.Node) -> fx.Node:
        return self.plain[node] if node in self.plain else self.plain[real(node)]

    def _as_beside(self, node: fx.Node) -> fx.Node:
        return self.beside[real(node)]

    def _beside(self, unit: Unit) -> None:
        made = self.graph.node_copy(unit.node, self._as_beside)
        made.meta.pop("width", None)
        self.beside[unit.node] = made

    def _pool(self, unit: Unit) -> None:
        x, has_relu = real(unit.node.args[0]), len(unit.stages) > 1
        numbers = [n for pair in pool_of(unit.node) or () for n in pair]
        call = bind_pool_beside([*numbers, has_relu, *self._lying(x), BEST])
        op = torch.ops.sparsewright.bound.default
        made = self._call(op, call.number, self._as_beside(x))
        made.meta["held"] = [call]
        self.beside.update(dict.fromkeys(unit.stages, made))

    def _mean(self, unit: Unit) -> None:
        x = real(unit.node.args[0])
        given = [self._batch(x), *self._lying(x)[1:]]
        mean = torch.ops.sparsewright.mean_beside.default
        made = self._call(mean, self._as_beside(x), *given)
        if not keeps_sizes(unit.node):
            made = self._call(aten.flatten.using_ints, made, 1)
        self.plain[unit.node] = made

    def _lying(self, x: fx.Node) -> list[int]:
        """Channels, height and width of images, how many of them lie side by side, and for how
        many threads."""
        return [*x.meta["sizes"][1:], self.units.images, self.units.threads]

    def _batch(self, x: fx.Node) -> fx.Node:
        """How many images there are."""
        return self._call(aten.sym_size.int, self._as_plain(self.units.source[x]), 0)

    def _turn(self, unit: Unit) -> None:
        to = torch.ops.sparsewright.to_beside.default
        given = self.units.images, self.units.threads, BEST
        self.beside[unit.node] = self._call(to, self._as_plain(unit.node), *given)

    def _back(self, unit: Unit) -> None:
        given = [self._batch(unit.node), *self._lying(unit.node)[1:], BEST]
        back = torch.ops.sparsewright.from_beside.default
        self.plain[unit.node] = self._call(back, self._as_beside(unit.node), *given)

    def _chain(self, unit: Unit) -> None:
        calls = [self._bound(node) for node in unit.stages]
        added = [residual_of(node) for node in unit.stages]
        kept = [node in self.units.kept for node in unit.stages]
        kept[-1] = True
        node = self._call(
            torch.ops.sparsewright.beside_chain.default,
            self._as_beside(unit.stages[0].args[0]),  # type: ignore[arg-type]
            [self._as_beside(n) for n in added if n is not None],
            [call.number for call in calls],
            _bits([n is not None for n in added]),
            _bits(kept),
            0,
        )
        node.meta["held"] = calls
        sizes = [
            n.meta["sizes"][1:] for n, is_kept in zip(unit.stages, kept, strict=True) if is_kept
        ]
        node.meta["extent"] = sizes[0][1:]
        node.meta["bytes"] = 4 * IMAGES * max(map(math.prod, sizes))
        outputs = (n for n, is_kept in zip(unit.stages, kept, strict=True) if is_kept)
        for i, output in enumerate(outputs):
            self.beside[self.relus.get(output, output)] = self._call(operator.getitem, node, i)

    def _bound(self, node: fx.Node) -> Bound:
        geometry = [n for name, n in geometry_of(node).items() if name != "groups"]
        lying = self._lying(real(node.args[0]))
        relu = int(node in self.relus)  # ACTIVATIONS
        if is_depthwise(node):
            weight = self._constant(node.args[1]).detach().contiguous()
            bias = self._constant(node.args[2]) if len(node.args) > 2 else None
            then = given(node, "activation") if node.target is dense_conv2d else relu
            return bind_depthwise_beside([weight, bias, *geometry, then, *lying, self.isa])
        if node.target is csb_conv2d:
            head = list(map(self._constant, node.args[1:7]))
            sizes, then = node.args[8:11], given(node, "activation")
            make = SharedCalls(self.module).bind_beside
        else:
            weight = self._constant(node.args[1])
            packed = LAYOUTS["csb"].pack(weight.detach().flatten(1))
            bias = self._constant(node.args[2]) if len(node.args) > 2 else None
            head = [*(packed.tensors[name] for name in TENSORS), None, bias]
            sizes, then = (packed.shape[0], packed.meta["chunk"], packed.meta["block"]), relu
            make = bind_beside  # of tensors that are new every time
        return make([*head, *sizes, *geometry, then, *lying, self.isa])

    def _constant(self, value: Any) -> Any:
        if not isinstance(value, fx.Node):
            return value
        return self.module.get_buffer(str(value.target))


def _overwrite(graph: fx.Graph) -> None:
    """Let convolutions write over what they add, where nothing reads it later: it is in cache, and
    memory that nobody has touched would have to be fetched."""
    order = {node: i for i, node in enumerate(graph.nodes)}
    for node in graph.nodes:
        if node.target is not torch.ops.sparsewright.beside_chain.default:
            continue
        x, residuals, numbers, adds, kept, _ = node.args
        stages = [i for i in range(len(numbers)) if adds >> i & 1]
        over = 0
        for stage, added in zip(stages, residuals, strict=True):
            last = max(order[user] for user in added.users)
            alone = residuals.count(added) == 1 and added is not x and last == order[node]
            if alone and kept >> stage & 1:
                over |= 1 << stage
        node.update_arg(5, over)


def _bits(flags: list[bool]) -> int:
    return sum(1 << i for i, flag in enumerate(flags) if flag)
