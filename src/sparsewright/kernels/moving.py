"""Weights of a topology that leave and others that come: where all are next, and their entries.

What is compiled moves entries (values, gradients, optimizer state) in their own memory, so that no
second copy of any is made; what is not, in plain torch, is the specification.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..sampling import merged, positions
from ..topology import Topology
from .packed import is_there

MOST = 2**31
"""Weights from which on positions do not fit into 32 bits."""


def _ops() -> Any:
    return torch.ops.sparsewright


def serves(topology: Topology, *tensors: Tensor) -> bool:
    """Whether what is compiled takes a topology, and tensors beside it."""
    given = [topology.starts, topology.columns, *tensors]
    fit = all(t.device.type == "cpu" and t.is_contiguous() for t in given)
    return fit and topology.nnz < MOST and is_there()


def find(topology: Topology, places: Tensor) -> Tensor:
    """(n) flat places -> (n) int64: which weight of the topology lies there, -1 for none.

    >>> find(Topology.from_places(torch.tensor([1, 3]), (2, 2)), torch.tensor([3, 0]))
    tensor([ 1, -1])
    """
    if not serves(topology, places):
        return positions(topology.places(), places)
    at = torch.empty_like(places)
    _ops().find_places(topology.starts, topology.columns, places, topology.shape[1], at)
    return at


def exchange(topology: Topology, gone: Tensor, born: Tensor) -> tuple[Topology, Tensor]:
    """The topology without those that are gone, with those that are born; where these lie in it.

    gone: (nnz) bool. born: flat places, int64, ascending, none where a weight stays.

    >>> diagonal = Topology.from_places(torch.tensor([0, 3]), (2, 2))
    >>> moved, at = exchange(diagonal, torch.tensor([True, False]), torch.tensor([1]))
    >>> moved.places(), at.tolist()
    (tensor([1, 3]), [0])
    """
    if not serves(topology, gone, born):
        kept = topology.places()[~gone]
        at = torch.searchsorted(kept, born) + torch.arange(len(born), device=born.device)
        return Topology.from_places(merged(kept, born), topology.shape), at
    size = topology.nnz - int(gone.count_nonzero()) + len(born)
    starts, columns = torch.empty_like(topology.starts), topology.columns.new_empty(size)
    at = torch.empty(len(born), dtype=torch.int32, device="cpu")
    places = (gone, born, topology.shape[1])
    _ops().exchange_places(topology.starts, topology.columns, *places, starts, columns, at)
    return Topology(topology.shape, starts, columns), at


def shift(entries: Tensor, gone: Tensor, at: Tensor, fresh: Tensor) -> Tensor:
    """Entries of the weights that stay, with fresh ones `at` where weights are born.

    entries: (nnz), and no more of use: its memory may be that of the result. fresh: of its type,
    (born) or one for all. gone, at: as of `exchange`.

    >>> entries, gone = torch.tensor([5.0, 7.0]), torch.tensor([True, False])
    >>> shift(entries, gone, torch.tensor([1], dtype=torch.int32), torch.tensor([9.0]))
    tensor([7., 9.])
    """
    before = len(gone)
    after = before - int(gone.count_nonzero()) + len(at)
    if not _shifts(entries, gone, at):
        stays = torch.ones(after, dtype=torch.bool, device=entries.device)
        at = at.long()
        stays[at] = False
        out = entries.new_empty(after)
        out[stays], out[at] = entries[~gone], fresh
        return out
    if after > before:
        entries = torch.cat([entries, entries.new_empty(after - before)])
    _ops().exchange_entries(entries, gone, at, fresh.contiguous())
    return entries[:after].clone() if after < before else entries


def _shifts(entries: Tensor, gone: Tensor, at: Tensor) -> bool:
    given = (entries, gone, at)
    fit = all(t.device.type == "cpu" and t.is_contiguous() for t in given)
    return fit and at.dtype == torch.int32 and entries.element_size() <= 8 and is_there()


def shown(topology: Topology, values: Tensor, begin: int, end: int) -> tuple[Tensor, Tensor]:
    """Rows [begin, end) of the matrix: its values, 0 where none is, and a bool mask; both flat.

    >>> shown(Topology.from_places(torch.tensor([1, 3]), (2, 2)), torch.tensor([5.0, 7.0]), 1, 2)
    (tensor([0., 7.]), tensor([False,  True]))
    """
    width = topology.shape[1]
    weight = values.new_empty((end - begin) * width)
    mask = torch.empty_like(weight, dtype=torch.bool)
    if values.dtype == torch.float32 and serves(topology, values):
        own = (topology.starts, topology.columns, values)
        _ops().show_rows(*own, begin, width, weight, mask)
        return weight, mask
    starts = topology.starts[begin : end + 1]
    part = slice(int(starts[0]), int(starts[-1]))
    index = torch.arange(end - begin, device=starts.device)
    row = torch.repeat_interleave(index, starts.diff())
    places = row * width + topology.columns[part].long()
    weight.zero_()[places] = values[part]
    mask.zero_()[places] = True
    return weight, mask
