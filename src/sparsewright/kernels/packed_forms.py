"""The two forms in which compiled kernels take a topology: by rows, and by cells of layout csb.

Values stay in the topology's order, which is the optimizer's; a form holds places alone. It may be
that of W^T, whose weights are those of W in another `order`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..layouts.csb import WASTE, Pairs, sizes
from ..library import BEST
from ..topology import Topology

ISA = BEST
"""The instruction set that all forms ask for; tests set others."""
LEAST = 10
"""Fewest weights, on average, of a row in a chunk of columns for which cells pay."""
NEAR = 1024
"""Most columns whose activations are near enough for gradients to be taken row by row."""


def _ops() -> Any:
    return torch.ops.sparsewright


class ByRows:
    """As the topology has them (layout csr): for the fewest weights, and nothing to build.

    order: (nnz) int32, which weight of W is each of this topology's; None if it is W's own.
    """

    def __init__(self, topology: Topology, order: Tensor | None = None):
        self.rows, self.columns = topology.starts.to(torch.int32), topology.columns
        self.order = order

    def tensors(self) -> list[Tensor]:
        """What it holds beside W's topology."""
        return [self.rows, *([] if self.order is None else [self.columns, self.order])]

    def linear(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out)."""
        if self.order is not None:
            values = _ops().take(values, self.order)
        return _ops().csr_linear(x, self.rows, self.columns, values, None, bias, 0, ISA)

    def outer(self, dy: Tensor, x: Tensor) -> Tensor:
        """dy (..., out), x (..., in) -> (nnz), in this topology's order."""
        return _ops().csr_outer(dy, x, self.rows, self.columns, ISA)


class ByCells:
    """Blocks of rows by chunks of columns (layout csb), filled with values at every call.

    cuts: (out * chunks + 1) int32, where the weights of every row and chunk begin. With an `order`
    as that of ByRows, slots instead: (steps, 2) int32, which weight of W lies there, -1 for none.
    """

    def __init__(self, topology: Topology, cuts: Tensor, pairs: Pairs, order: Tensor | None = None):
        self.out = topology.shape[0]
        self.chunk, self.block = sizes(topology.shape)
        self.starts, self.pairs = pairs.starts(), pairs.coded()
        self.places = torch.empty(int(self.starts[-1, 1]), 2, dtype=torch.uint8)
        own = (self.starts, self.pairs, cuts, self.out)
        _ops().csb_places(topology.columns, *own, self.chunk, self.block, self.places)
        self.cuts: Tensor | None = None
        self.slots: Tensor | None = None
        self.near: ByRows | None = None
        if order is None:
            self.cuts = cuts
            self.near = ByRows(topology) if topology.shape[1] <= NEAR else None
        else:
            self.slots = torch.empty(self.places.shape, dtype=torch.int32)
            _ops().csb_slots(order, *own, self.block, self.slots)

    def tensors(self) -> list[Tensor]:
        """What it holds beside W's topology."""
        near = [] if self.near is None else self.near.tensors()
        either = [t for t in (self.cuts, self.slots) if t is not None]
        return [self.starts, self.pairs, self.places, *either, *near]

    def filled(self, values: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The tensors of layout csb, with these values."""
        if self.slots is not None:
            full = _ops().take(values, self.slots)
        else:
            own = (self.starts, self.pairs, self.cuts, self.out, self.block)
            full = _ops().csb_fill(values, *own)
        return self.starts, self.pairs, self.places, full

    def linear(self, x: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """x (..., in) -> (..., out)."""
        numbers = (self.out, self.chunk, self.block, 0, ISA)
        return _ops().csb_linear(x, *self.filled(values), None, bias, *numbers)

    def outer(self, dy: Tensor, x: Tensor) -> Tensor:
        """dy (..., out), x (..., in) -> (nnz); for a topology without `order`."""
        if self.near is not None:
            return self.near.outer(dy, x)
        own = (self.starts, self.pairs, self.places, self.cuts)
        return _ops().csb_outer(dy, x, *own, self.chunk, self.block, ISA)


Form = ByRows | ByCells


def form_of(topology: Topology, order: Tensor | None = None) -> Form:
    """By cells unless they would be small or much of them padding.

    It takes O(weights + rows + columns) to find out.
    """
    out, width = topology.shape
    chunk, _ = sizes(topology.shape)
    if topology.nnz < LEAST * out * -(-width // chunk) or topology.nnz == 0:
        return ByRows(topology, order)
    joined = _joined(topology)
    if 2 * int(joined[1].steps.sum()) * (1 - WASTE) > topology.nnz:
        return ByRows(topology, order)
    return ByCells(topology, *joined, order)


def by_cells(topology: Topology, order: Tensor | None = None) -> ByCells:
    """Whatever it costs: O(rows * chunks) too."""
    return ByCells(topology, *_joined(topology), order)


def _joined(topology: Topology) -> tuple[Tensor, Pairs]:
    """The cuts of a topology, and its rows in pairs."""
    out, width = topology.shape
    chunk, block = sizes(topology.shape)
    chunks = -(-width // chunk)
    cuts = torch.empty(out * chunks + 1, dtype=torch.int32)
    _ops().csb_cuts(topology.starts, topology.columns, chunk, cuts)
    return cuts, Pairs(_counts(cuts, out, chunks, block))


def _counts(cuts: Tensor, out: int, chunks: int, block: int) -> Tensor:
    """(blocks, chunks, rows of a block) weights, in an even number of rows."""
    blocks = -(-out // block)
    counts = torch.zeros(blocks * block, chunks, dtype=torch.int64)
    counts[:out] = cuts.diff().view(out, chunks)
    counts = counts.view(blocks, block, chunks).transpose(1, 2)
    return torch.nn.functional.pad(counts, (0, block % 2))


def forward(topology: Topology) -> Form:
    """The form of W; for Topology.derived."""
    return form_of(topology)


def backward(topology: Topology) -> Form:
    """The form of W^T; for Topology.derived."""
    return form_of(*transposed(topology))


def transposed(topology: Topology) -> tuple[Topology, Tensor]:
    """The places of W^T, and which weight of W is each of its weights: (nnz) int32."""
    rows, width = topology.shape
    starts = torch.empty(width + 1, dtype=torch.int64)
    narrow = torch.uint16 if rows <= 2**16 else torch.int32
    columns = torch.empty(topology.nnz, dtype=narrow)
    order = torch.empty(topology.nnz, dtype=torch.int32)
    _ops().csr_transpose(topology.starts, topology.columns, starts, columns, order)
    return Topology((width, rows), starts, columns), order
