"""Random units that are not taken, as many as asked in every group, uniformly and without
replacement, in time and memory that follow their number.

All draws come from one CPU generator and depend on counts alone, so every storage, device and
replica draws the same.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .keeping import keep_best

CROWDED = 0.5
"""Part of all units, taken or wanted, from which on every free unit is given a random key: drawing
until a free one is hit would take long, and as many keys fit into memory as units are present."""

MANY = 0.25
"""Part of all units, wanted, from which on the same holds: the trials would be many."""

TABLE = 16
"""Entries of a table of all that there may be, for each that there is, up to which it is made."""


@dataclass(frozen=True)
class Taken:
    """Units that cannot be drawn, where a list of all would be long.

    count: how many. holds: flat units, ascending -> bool, which of them are taken. listed: makes
    the list after all, flat and ascending.
    """

    count: int
    holds: Callable[[Tensor], Tensor]
    listed: Callable[[], Tensor]


def draw(
    groups: int, units: int, counts: Tensor, taken: Tensor | Taken, generator: torch.Generator
) -> Tensor:
    """Flat units (group * units + unit), int64, ascending, on the CPU.

    counts: (groups) int64, how many to draw in each group. taken: flat units that cannot be drawn,
    ascending, none twice, or what tells them. Every group must have as many free units as it is
    asked for.

    >>> generator = torch.Generator().manual_seed(0)
    >>> draw(1, 4, torch.tensor([3]), torch.tensor([2]), generator)
    tensor([0, 1, 3])
    """
    wanted = int(counts.sum())
    if isinstance(taken, Tensor):
        own = taken.cpu()
        taken = Taken(len(own), functools.partial(is_in, ascending=own), lambda: own)
    if wanted == 0:
        return torch.empty(0, dtype=torch.int64, device="cpu")
    if taken.count + wanted > CROWDED * groups * units or wanted > MANY * groups * units:
        return _by_keys(groups, units, counts.cpu(), taken.listed().cpu(), generator)
    return _by_trial(units, counts.cpu(), taken.holds, generator)


def is_in(values: Tensor, ascending: Tensor) -> Tensor:
    """Bool, whether each value is among ascending ones, none twice; all 0 or more.

    >>> is_in(torch.tensor([3, 1]), torch.tensor([0, 1, 2]))
    tensor([False,  True])
    """
    if len(ascending) == 0 or values.numel() == 0:
        return torch.zeros(values.shape, dtype=torch.bool, device=values.device)
    end = 1 + max(int(ascending[-1]), int(values.max()))
    if end <= TABLE * len(ascending):  # a table is small, and looked up faster than searched
        table = torch.zeros(end, dtype=torch.bool, device=values.device)
        table[ascending] = True
        return table[values]
    at = torch.searchsorted(ascending, values).clamp_(max=len(ascending) - 1)
    return ascending[at] == values


def positions(ascending: Tensor, values: Tensor) -> Tensor:
    """Where each value stands among ascending ones, none twice; -1 for none of them.

    >>> positions(torch.tensor([1, 4]), torch.tensor([4, 2]))
    tensor([ 1, -1])
    """
    if len(ascending) == 0:
        return torch.full_like(values, -1)
    at = torch.searchsorted(ascending, values).clamp_(max=len(ascending) - 1)
    return at.masked_fill_(ascending[at] != values, -1)


def merged(a: Tensor, b: Tensor) -> Tensor:
    """Two ascending runs of numbers, 0 or more and none in both, as one.

    >>> merged(torch.tensor([1, 4]), torch.tensor([2]))
    tensor([1, 2, 4])
    """
    if len(a) < len(b):
        a, b = b, a
    at = slots(a, b)
    out = a.new_empty(len(a) + len(b))
    of_a = torch.ones(len(out), dtype=torch.bool, device=a.device)
    of_a[at] = False
    out[at], out[of_a] = b, a
    return out


def slots(a: Tensor, b: Tensor) -> Tensor:
    """Where the numbers of `b` stand in `merged(a, b)`.

    >>> slots(torch.tensor([1, 4]), torch.tensor([2]))
    tensor([1])
    """
    return torch.searchsorted(a, b) + torch.arange(len(b), device=b.device)


def _by_keys(
    groups: int, units: int, counts: Tensor, taken: Tensor, generator: torch.Generator
) -> Tensor:
    """The units of the largest random keys in every group."""
    keys = torch.rand(groups, units, generator=generator, dtype=torch.float64, device="cpu")
    keys.view(-1)[taken] = -1.0
    if bool((counts == counts[0]).all()):  # in linear time, and the same units
        return keep_best(keys, int(counts[0])).view(-1).nonzero().squeeze(1)
    best = keys.argsort(dim=1, descending=True, stable=True)
    first = torch.arange(units, device="cpu") < counts[:, None]
    found = best + torch.arange(groups, device="cpu")[:, None] * units
    return found[first].sort().values


def _by_trial(
    units: int, counts: Tensor, taken: Callable[[Tensor], Tensor], generator: torch.Generator
) -> Tensor:
    """Draw for every place still open; what is taken or drawn already is drawn again."""
    group = torch.arange(len(counts), device="cpu")  # whatever the default device is
    base = torch.repeat_interleave(group, counts) * units
    rounds: list[Tensor] = []
    while len(base):
        drawn = base + torch.randint(0, units, base.shape, generator=generator, device="cpu")
        ordered, place = drawn.sort(stable=True)
        good = ~taken(ordered).cpu()
        good[1:] &= ordered[1:] != ordered[:-1]  # of equals the first drawn stays
        for found in rounds:
            good &= ~is_in(ordered, found)
        rounds.append(ordered[good])
        base = base[place[~good].sort().values]
    return functools.reduce(merged, reversed(rounds))
