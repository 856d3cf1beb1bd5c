"""The best of many scores: at once, or of tiles that pass by, of which only the best are kept.

Among equals the first is best. What is compiled counts bits where torch would sort copies, and
tells absent weights from present ones by the topology alone; plain torch is the specification.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..keeping import any_nan, keep_best
from ..kept import Offers
from ..library import why_not_compiled
from ..topology import Topology
from .moving import serves

FINITE = torch.finfo(torch.float32).max
LEAST_ROOM = 2**14
"""Fewest units that are collected beyond those that are wanted, before the worst are let go."""


def _ops() -> Any:
    return torch.ops.sparsewright


def best_of(scores: Tensor, keep: int) -> Tensor:
    """(n) scores -> (n) bool, the best `keep`; ValueError if one is NaN.

    >>> best_of(torch.tensor([3., 1., 2., 2.]), 2)
    tensor([ True, False,  True, False])
    """
    plain = scores.device.type == "cpu" and scores.dtype == torch.float32
    if not (plain and 0 < keep < len(scores) and why_not_compiled("best_of") is None):
        return keep_best(scores.view(1, -1), keep).view(-1)
    best = torch.empty(len(scores), dtype=torch.bool, device="cpu")
    if not _ops().best_of(scores.contiguous(), keep, best):
        raise ValueError("scores hold NaN: no order among them is defined")
    return best


def best_table(scores: Tensor, keep: int) -> Tensor:
    """`keeping.keep_best`, of one group by the above: (groups, units) bool; ValueError for a NaN.

    >>> best_table(torch.tensor([[3., 1., 2., 2.]]), 2)
    tensor([[ True, False,  True, False]])
    """
    if len(scores) != 1:
        return keep_best(scores, keep)
    return best_of(scores.reshape(-1), keep).view(scores.shape)


class PlainOffers:
    """In plain torch. kept: units that are none of the absent. last: those that come after all
    others. Both flat, ascending.

    >>> offers = PlainOffers(2, torch.tensor([1]), last=torch.tensor([2]))
    >>> offers.take(torch.tensor([1.0, 9.0, 9.0, 0.0]))
    True
    >>> offers.best()
    tensor([0, 3])
    """

    def __init__(self, count: int, kept: Tensor, last: Tensor):
        self.count, self.kept, self.last = count, kept, last
        self._scores = [torch.empty(0, device=kept.device)]
        self._units = [torch.empty(0, dtype=torch.int64, device=kept.device)]
        self._base, self._found = 0, 0
        self._least: Tensor | None = None

    def take(self, scores: Tensor) -> bool:
        if any_nan(scores):
            return False
        marked = marked_scores(scores, self._base, self.kept, self.last)
        candidate = marked != torch.inf
        if self._least is not None:  # what is no better than all of the best comes too late
            candidate &= marked > self._least
        at = candidate.nonzero().squeeze(1)
        self._scores.append(marked[at])
        self._units.append(at.add_(self._base))
        self._found += len(at)
        self._base += len(scores)
        if self._found > 2 * self.count:
            self._settle()
        return True

    def best(self) -> Tensor:
        if self._found > self.count:
            self._settle()
        return torch.cat(self._units)

    def _settle(self) -> None:
        together = torch.cat(self._scores)
        stay = best_of(together, self.count)
        self._scores, self._units = [together[stay]], [torch.cat(self._units)[stay]]
        self._found = self.count
        self._least = self._scores[0].min() if self.count else together.new_tensor(torch.inf)


class CompiledOffers:
    """The same of a topology whose weights are the units, float32 scores of whole rows at a time.

    leaves: (nnz) bool, those that are not kept. last: they come after all others.
    """

    def __init__(self, count: int, topology: Topology, leaves: Tensor, last: bool):
        self.count, self.topology, self.leaves, self.last = count, topology, leaves, last
        absent = topology.shape[0] * topology.shape[1] - topology.nnz + int(leaves.count_nonzero())
        room = count + max(LEAST_ROOM, count // 2)
        room = min(room, max(absent, count) + 1)
        self._scores = torch.empty(room, device="cpu")
        self._units = torch.empty(room, dtype=torch.int64, device="cpu")
        self._state = torch.tensor([0.0, torch.nan], dtype=torch.float64, device="cpu")
        self._row = 0

    def take(self, scores: Tensor) -> bool:
        width, own = self.topology.shape[1], self.topology
        whole = (scores.contiguous(), self._row, width, own.starts, own.columns, self.leaves)
        kept = (self._scores, self._units, self._state)
        self._row += len(scores) // max(1, width)
        return bool(_ops().offer(*whole, self.last, self.count, *kept))

    def best(self) -> Tensor:
        found = int(self._state[0])
        units = self._units[:found]
        if found <= self.count:
            return units.clone()
        return units[best_of(self._scores[:found], self.count)]


def offers(
    scores: Tensor, count: int, topology: Topology | None, leaves: Tensor, last: bool, units: Any
) -> Offers:
    """What takes scores like these: of a topology, where what is compiled serves it.

    units: makes the present units, to which `leaves` belongs, where they are needed.
    """
    if topology is not None and scores.dtype == torch.float32 and serves(topology, leaves):
        return CompiledOffers(count, topology, leaves, last)
    present = units()
    gone = present[leaves]
    return PlainOffers(count, present[~leaves], gone if last else gone[:0])


def marked_scores(scores: Tensor, base: int, kept: Tensor, last: Tensor) -> Tensor:
    """Scores of a run of units from `base` on: +inf where kept, -inf for those that come last."""
    marked = scores.clamp(max=FINITE)
    for units, mark in ((last, -torch.inf), (kept, torch.inf)):
        ends = torch.tensor([base, base + len(scores)], device=units.device)
        low, high = torch.searchsorted(units, ends).tolist()
        marked[units[low:high] - base] = mark
    return marked
