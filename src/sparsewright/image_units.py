"""How many images lie side by side, and a program's nodes sorted into what is then done at once:
beside.py writes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import fx

from .image_nodes import (
    geometry_of,
    images_of,
    is_by_place,
    is_conv,
    is_mean,
    pool_of,
    real,
    residual_of,
)
from .operations import expect_channels

IMAGES = 16
"""Images that lie side by side, or patches of fewer."""
FULL = 0.75
"""Least part of them that has to be there: vectors are computed whole."""
BUSY = 0.7
"""Least part of their time that all threads have to be at work on a convolution of patches."""
MOST_FLOATS = 2**30
"""Of a batch in patches: the places of neighbours are counted in 32 bits, padding included."""
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


@dataclass(eq=False)
class Unit:
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
    needs: dict[Unit, None] = field(default_factory=dict)

    def needs_in_the_end(self, other: Unit) -> bool:
        seen, left = {self}, [self]
        while left:
            unit = left.pop()
            if unit is other:
                return True
            left += [n for n in unit.needs if n not in seen]
            seen.update(unit.needs)
        return False


class Units:
    """A graph's nodes, sorted into units."""

    def __init__(self, module: fx.GraphModule, images: int, threads: int):
        self.images, self.threads = images, threads
        self.all: list[Unit] = []
        self.plain: dict[fx.Node, Unit] = {}
        self.beside: dict[fx.Node, Unit] = {}
        self.source: dict[fx.Node, fx.Node] = {}  # of images side by side -> what has their number
        self.kept: set[fx.Node] = set()  # whose outputs other units need
        self.relus: dict[fx.Node, fx.Node] = {}  # ReLUs that dense convolutions apply -> those
        for node in module.graph.nodes:
            if self._serves(node):
                self._conv(node)
            elif is_by_place(node) and all(n in self.beside for n in images_of(node)):
                self._by_place(node)
            elif is_mean(node) and images_of(node)[0] in self.beside:
                x = images_of(node)[0]
                needs = [self._beside(x), self.plain[self.source[x]]]
                self.plain[node] = self._add("mean", node, needs)
            elif node.target is not expect_channels or not all(map(self._serves, node.users)):
                needs = [self._plain(n) for n in node.all_input_nodes]
                self.plain[node] = self._add("plain", node, needs)

    def head(self) -> list[Unit]:
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

    def _add(self, kind: str, node: fx.Node, needs: list[Unit]) -> Unit:
        unit = Unit(kind, node, needs=dict.fromkeys(needs))
        self.all.append(unit)
        return unit

    def _plain(self, node: fx.Node) -> Unit:
        if node not in self.plain:
            node = real(node)
        if node not in self.plain:
            needs = [self._beside(node), self.plain[self.source[node]]]
            self.plain[node] = self._add("back", node, needs)
        return self.plain[node]

    def _beside(self, node: fx.Node) -> Unit:
        node = real(node)
        if node not in self.beside:
            self.beside[node] = self._add("turn", node, [self._plain(node)])
            self.source[node] = node
        if self.beside[node].kind == "chain":
            self.kept.add(self.relus.get(node, node))
        return self.beside[node]

    def _by_place(self, node: fx.Node) -> None:
        """A node on images side by side; a ReLU goes with the max pooling, or the dense
        convolution, before it."""
        x = images_of(node)[0]
        before = self.beside[x]
        is_relu = node.target is aten.relu.default and list(x.users) == [node]
        if is_relu and before.kind == "pool" and before.stages == [x]:
            before.stages.append(node)
            self.beside[node] = before
        elif is_relu and before.kind == "chain" and x.target is aten.conv2d.default:
            self.relus[node] = x
            self.beside[node] = before
        else:
            is_pool = pool_of(node) is not None
            needs = [self._beside(n) for n in images_of(node)]
            self.beside[node] = self._add("pool" if is_pool else "beside", node, needs)
            self.beside[node].stages = [node] * is_pool
        self.source[node] = self.source[x]

    def _serves(self, node: fx.Node) -> bool:
        """Whether it is a convolution that is computed of images side by side. Of patches there
        have to be tiles for enough threads, which few small images may not have; and they must not
        be too large."""
        if not is_conv(node):
            return False
        if self.images == IMAGES:
            return True
        both = [n.meta["sizes"][1:] for n in (real(node.args[0]), node)]
        if self.images * max(map(math.prod, both)) > MOST_FLOATS:
            return False
        sizes = node.meta["sizes"][2:]
        one, all = (
            torch.ops.sparsewright.beside_cost(self.images, threads, *sizes)
            for threads in (1, self.threads)
        )
        return bool(one >= BUSY * self.threads * all)

    def _conv(self, node: fx.Node) -> None:
        x, more = real(node.args[0]), residual_of(node)
        added = [] if more is None else [self._beside(more)]
        chain = self.beside.get(x)
        goes_on = (
            chain is not None
            and chain.kind == "chain"
            and chain.stages[-1] is self.relus.get(x, x)
            and len(chain.stages) < MOST_STAGES
            and tuple(geometry_of(node)[name] for name in KERNEL) == FLAT
            and not any(unit.needs_in_the_end(chain) for unit in added)
        )
        if chain is None or not goes_on:
            chain = self._add("chain", node, [self._beside(x)])
        chain.stages.append(node)
        chain.needs.update(dict.fromkeys(added))
        self.beside[node], self.source[node] = chain, self.source[x]
