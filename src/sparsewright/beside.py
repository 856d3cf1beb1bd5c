"""A program's convolutions on images that lie side by side along the processor's vectors.

Sixteen images of a batch fill a vector, or as many patches of fewer images, so no load is at an odd
place and hardly a place is padding; and the output of one convolution, tile by tile, goes through
the 1x1 ones that follow it while it is still in cache. The images are turned that way where the
first convolution reads them, and back where something else does.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx

from .image_nodes import (
    geometry_of,
    given,
    images_of,
    is_by_place,
    is_conv,
    is_mean,
    keeps_sizes,
    pool_of,
    real,
    residual_of,
)
from .kernels import library
from .kernels.bound import Bound, bind_beside, bind_pool_beside
from .kernels.csb_conv import TENSORS, csb_conv2d
from .kernels.library import BEST
from .layouts import LAYOUTS
from .operations import expect_channels

IMAGES = 16
"""Images that lie side by side, or patches of fewer."""
FULL = 0.75
"""Least part of them that has to be there: vectors are computed whole."""
BUSY = 0.75
"""Least part of the threads that a convolution of patches has to keep at work."""
MOST_STAGES = 32
"""Of convolutions that are called at once."""

aten = torch.ops.aten
KERNEL = ("kernel_h", "kernel_w", "stride_h", "stride_w", "padding_h", "padding_w")
FLAT = (1, 1, 1, 1, 0, 0)
"""Of a convolution whose every output reads one place alone: a tile of it needs no other."""


def is_full(batch: int) -> bool:
    """Whether so many images fill vectors well enough.

    >>> [n for n in range(1, 33) if is_full(n)][:6]
    [12, 13, 14, 15, 16, 24]
    """
    return batch > 0 and batch >= FULL * IMAGES * -(-batch // IMAGES)


def images_for(batch: int) -> int | None:
    """How many images lie side by side in a batch of so many: IMAGES, a few at a time, where they
    fill vectors; all of a smaller batch, in patches; None where there is no such way.

    >>> [images_for(batch) for batch in (1, 8, 16, 20, 64)]
    [1, 8, 16, None, 16]
    """
    if is_full(batch):
        return IMAGES
    return batch if 0 < batch < IMAGES else None


def serves(images: int, batch: int) -> bool:
    """Whether a program for so many images side by side is for a batch.

    >>> serves(16, 14), serves(16, 3), serves(1, 1), serves(1, 2)
    (True, False, True, False)
    """
    return is_full(batch) if images == IMAGES else batch == images


def beside(
    module: fx.GraphModule,
    cut: Callable[[fx.Graph], Callable[..., Any]],
    images: int = IMAGES,
    threads: int = 1,
) -> fx.Graph | None:
    """The module's graph with its convolutions of layout csb on images side by side; None where it
    has fewer of them than turns there and back, or the kernels are not compiled.

    images: IMAGES, of which a batch may have any number of groups; or fewer, which are the whole
    batch. threads: that a convolution of patches has to keep busy, else it stays as it is. cut: the function of a graph of the same inputs that is run a few samples at a time: what comes
    before the first turn, where all that follows needs its result alone.
    """
    if library.LIBRARY.path is None or not hasattr(torch.ops.sparsewright, "beside_tiles"):
        return None
    units = _Units(module, images, threads)
    convs = sum(len(unit.stages) for unit in units.all if unit.kind == "chain")
    turns = sum(unit.kind in ("turn", "back") for unit in units.all)
    return _Writer(module, units, cut).graph if convs >= max(turns, 1) else None


@dataclass(eq=False)
class _Unit:
    """What the new graph does at once.

    kind: "plain", a node as it is; "beside", a node on images side by side; "pool", the same, of
    max pooling and perhaps a ReLU, its `stages`; "mean", of images side by side, whose output is
    plain; "turn" and "back" of `node`'s output; "chain", whose `stages` are convolutions, each but
    the first of the one before.
    needs: units that come before.
    """

    kind: str
    node: fx.Node
    stages: list[fx.Node] = field(default_factory=list)
    needs: dict[_Unit, None] = field(default_factory=dict)

    def needs_in_the_end(self, other: _Unit) -> bool:
        seen, left = {self}, [self]
        while left:
            unit = left.pop()
            if unit is other:
                return True
            left += [n for n in unit.needs if n not in seen]
            seen.update(unit.needs)
        return False


class _Units:
    """A graph's nodes, sorted into units."""

    def __init__(self, module: fx.GraphModule, images: int, threads: int):
        self.images, self.threads = images, threads
        self.all: list[_Unit] = []
        self.plain: dict[fx.Node, _Unit] = {}
        self.beside: dict[fx.Node, _Unit] = {}
        self.source: dict[fx.Node, fx.Node] = {}  # of images side by side -> what has their number
        self.kept: set[fx.Node] = set()  # whose outputs other units need
        for node in module.graph.nodes:
            if is_conv(node) and self._is_busy(node):
                self._conv(node)
            elif is_by_place(node) and all(n in self.beside for n in images_of(node)):
                self._by_place(node)
            elif is_mean(node) and images_of(node)[0] in self.beside:
                x = images_of(node)[0]
                needs = [self._beside(x), self.plain[self.source[x]]]
                self.plain[node] = self._add("mean", node, needs)
            elif node.target is not expect_channels or not all(map(is_conv, node.users)):
                needs = [self._plain(n) for n in node.all_input_nodes]
                self.plain[node] = self._add("plain", node, needs)

    def head(self) -> list[_Unit]:
        """The units up to the first turn, where others need nothing of them but inputs and what is
        turned; of two at least."""
        turn = next((unit for unit in self.all if unit.kind == "turn"), None)
        if turn is None:
            return []
        wanted = {turn}
        for unit in reversed(self.all):
            if any(unit in user.needs for user in wanted):
                wanted.add(unit)
        before = [unit for unit in self.all if unit in wanted - {turn}]
        works = [unit for unit in before if unit.node.op not in ("placeholder", "get_attr")]
        inner = {unit for unit in works if unit.node is not turn.node}
        outside = [unit for unit in self.all if unit not in wanted]
        seen = any(unit in inner for user in outside for unit in user.needs)
        fits = all(unit.kind == "plain" for unit in before) and not seen and len(works) > 1
        return works if fits else []

    def _add(self, kind: str, node: fx.Node, needs: list[_Unit]) -> _Unit:
        unit = _Unit(kind, node, needs=dict.fromkeys(needs))
        self.all.append(unit)
        return unit

    def _plain(self, node: fx.Node) -> _Unit:
        if node not in self.plain:
            node = real(node)
        if node not in self.plain:
            needs = [self._beside(node), self.plain[self.source[node]]]
            self.plain[node] = self._add("back", node, needs)
        return self.plain[node]

    def _beside(self, node: fx.Node) -> _Unit:
        node = real(node)
        if node not in self.beside:
            self.beside[node] = self._add("turn", node, [self._plain(node)])
            self.source[node] = node
        if self.beside[node].kind == "chain":
            self.kept.add(node)
        return self.beside[node]

    def _by_place(self, node: fx.Node) -> None:
        """A node on images side by side; a ReLU goes with the max pooling before it."""
        x = images_of(node)[0]
        pool = self.beside[x]
        is_after = pool.kind == "pool" and pool.stages == [x] and list(x.users) == [node]
        if node.target is aten.relu.default and is_after:
            pool.stages.append(node)
            self.beside[node] = pool
        else:
            is_pool = pool_of(node) is not None
            needs = [self._beside(n) for n in images_of(node)]
            self.beside[node] = self._add("pool" if is_pool else "beside", node, needs)
            self.beside[node].stages = [node] * is_pool
        self.source[node] = self.source[x]

    def _is_busy(self, node: fx.Node) -> bool:
        """Whether there are tiles for enough threads: of few small images there may not be."""
        if self.images == IMAGES:
            return True
        height, width = node.meta["sizes"][2:]
        tiles = torch.ops.sparsewright.beside_tiles(self.images, height, width)
        return bool(tiles >= BUSY * self.threads * -(-tiles // self.threads))

    def _conv(self, node: fx.Node) -> None:
        x, more = real(node.args[0]), residual_of(node)
        added = [] if more is None else [self._beside(more)]
        chain = self.beside.get(x)
        goes_on = (
            chain is not None
            and chain.kind == "chain"
            and chain.stages[-1] is x
            and len(chain.stages) < MOST_STAGES
            and tuple(geometry_of(node)[name] for name in KERNEL) == FLAT
            and not any(unit.needs_in_the_end(chain) for unit in added)
        )
        if chain is None or not goes_on:
            chain = self._add("chain", node, [self._beside(x)])
        chain.stages.append(node)
        chain.needs.update(dict.fromkeys(added))
        self.beside[node], self.source[node] = chain, self.source[x]


class _Writer:
    """Units on their way into a graph."""

    def __init__(
        self,
        module: fx.GraphModule,
        units: _Units,
        cut: Callable[[fx.Graph], Callable[..., Any]],
    ):
        self.module, self.units, self.graph = module, units, fx.Graph()
        self.plain: dict[fx.Node, fx.Node] = {}
        self.beside: dict[fx.Node, fx.Node] = {}
        self.done: set[_Unit] = set()
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

    def _head(self, units: list[_Unit], cut: Callable[[fx.Graph], Callable[..., Any]]) -> None:
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

    def _write(self, unit: _Unit) -> None:
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

    def _plain(self, unit: _Unit) -> None:
        self.plain[unit.node] = self.graph.node_copy(unit.node, self._as_plain)

    def _as_plain(self, node: fx.Node) -> fx.Node:
        return self.plain[node] if node in self.plain else self.plain[real(node)]

    def _as_beside(self, node: fx.Node) -> fx.Node:
        return self.beside[real(node)]

    def _beside(self, unit: _Unit) -> None:
        made = self.graph.node_copy(unit.node, self._as_beside)
        made.meta.pop("width", None)
        self.beside[unit.node] = made

    def _pool(self, unit: _Unit) -> None:
        x, has_relu = real(unit.node.args[0]), len(unit.stages) > 1
        numbers = [n for pair in pool_of(unit.node) or () for n in pair]
        call = bind_pool_beside([*numbers, has_relu, *self._lying(x), BEST])
        op = torch.ops.sparsewright.bound.default
        made = self._call(op, call.number, self._as_beside(x))
        made.meta["held"] = [call]
        self.beside.update(dict.fromkeys(unit.stages, made))

    def _mean(self, unit: _Unit) -> None:
        x = real(unit.node.args[0])
        given = [self._batch(x), *self._lying(x)[1:]]
        mean = torch.ops.sparsewright.mean_beside.default
        made = self._call(mean, self._as_beside(x), *given)
        if not keeps_sizes(unit.node):
            made = self._call(aten.flatten.using_ints, made, 1)
        self.plain[unit.node] = made

    def _lying(self, x: fx.Node) -> list[int]:
        """Channels, height and width of images, and how many of them lie side by side."""
        return [*x.meta["sizes"][1:], self.units.images]

    def _batch(self, x: fx.Node) -> fx.Node:
        """How many images there are."""
        return self._call(aten.sym_size.int, self._as_plain(self.units.source[x]), 0)

    def _turn(self, unit: _Unit) -> None:
        to = torch.ops.sparsewright.to_beside.default
        plain = self._as_plain(unit.node)
        self.beside[unit.node] = self._call(to, plain, self.units.images, BEST)

    def _back(self, unit: _Unit) -> None:
        given = [self._batch(unit.node), *self._lying(unit.node)[1:], BEST]
        back = torch.ops.sparsewright.from_beside.default
        self.plain[unit.node] = self._call(back, self._as_beside(unit.node), *given)

    def _chain(self, unit: _Unit) -> None:
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
        outputs = (n for n, is_kept in zip(unit.stages, kept, strict=True) if is_kept)
        for i, output in enumerate(outputs):
            self.beside[output] = self._call(operator.getitem, node, i)

    def _bound(self, node: fx.Node) -> Bound:
        geometry = [n for name, n in geometry_of(node).items() if name != "groups"]
        if node.target is csb_conv2d:
            head = list(map(self._constant, node.args[1:7]))
            sizes, then = node.args[8:11], given(node, "activation")
        else:
            weight = self._constant(node.args[1])
            packed = LAYOUTS["csb"].pack(weight.detach().flatten(1))
            bias = self._constant(node.args[2]) if len(node.args) > 2 else None
            head = [*(packed.tensors[name] for name in TENSORS), None, bias]
            sizes, then = (packed.shape[0], packed.meta["chunk"], packed.meta["block"]), 0
        return bind_beside([*head, *sizes, *geometry, then, *self._lying(real(node.args[0])), self.isa])

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
