"""Stages: the budgets of pruning in several rounds, on the exponential schedule.

After part k/n of the way a density of target^(k/n) is kept (Tanaka et al. 2020): every round takes
the same fraction of what is there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from .allocate import Uniform
from .budget import Budgeted, solve_budget, zeros_of
from .core import Allocate


def part_of_way(
    layers: Sequence[Budgeted],
    now: Mapping[str, int],
    sparsity: float | None,
    allocate: Allocate,
    part: float,
    *,
    first: str | None = None,
) -> dict[str, int]:
    """Layer name -> units kept in every group when `part`, in (0, 1], of the way is gone.

    now: the units that every group of a layer has, which are the most that it may keep. Other
    arguments and errors as `solve_budget`, which has the last word: part 1 is its answer. Before,
    layers whose pattern fixes their count, and those with a sparsity of their own, go their own
    ways, and the others share theirs.

    >>> from sparsewright.allocate import Uniform
    >>> from sparsewright.patterns import as_pattern
    >>> layers = [Budgeted.of("a", (10, 10), as_pattern("unstructured"))]
    >>> every = Uniform(dense_first=False)
    >>> [part_of_way(layers, {"a": 100}, 0.99, every, k / 4)["a"] for k in (1, 2, 3, 4)]
    [32, 10, 4, 1]
    """
    layers = [replace(layer, counts=_up_to(layer, now[layer.name])) for layer in layers]
    if part == 1:
        return solve_budget(layers, sparsity, allocate, first=first)
    # Which layers count, and what those keep that go their own ways, asks for no ranking.
    end = solve_budget(layers, sparsity, Uniform(allocate.dense_first), first=first)
    keep: dict[str, int] = {}
    free = []
    for layer in layers:
        if layer.name not in end:
            continue
        if layer.sparsity is None and layer.pattern.sparsity is None:
            free.append(layer)
            continue
        final = end[layer.name]
        wanted = round(layer.units * (final / max(1, layer.units)) ** part)
        keep[layer.name] = max(final, min(wanted, now[layer.name]))
    if free:
        target = _weights(free, end)
        if sparsity is not None:  # what was asked, which whole units may miss
            counted = [y for y in layers if y.name in end and y.sparsity is None]
            total = sum(y.numel for y in counted)
            fixed = _weights([y for y in counted if y.pattern.sparsity is not None], end)
            target = max(target, total - zeros_of(sparsity, total) - fixed)
        keep |= _shared(free, target, allocate, part)
    return {layer.name: keep[layer.name] for layer in layers if layer.name in keep}


def _shared(
    free: Sequence[Budgeted], target: int, allocate: Allocate, part: float
) -> dict[str, int]:
    """Units of layers that share a budget on its way to `target` weights."""
    total = sum(layer.numel for layer in free)
    has = {layer.name: layer.held[-1] for layer in free}
    wanted = total * (target / max(1, total)) ** part
    if wanted >= _weights(free, has):
        return has  # a round before took whole units, and these more than it should
    found = solve_budget(free, 1 - wanted / total, allocate, first="")
    return found if _weights(free, found) >= target else has


def _up_to(layer: Budgeted, most: int) -> range:
    """What the layer may keep, no more than `most`; if that is less than it may, just that."""
    held = layer.held
    return range(held[0], min(held[-1], most) + 1, held.step) or range(most, most + 1)


def _weights(layers: Sequence[Budgeted], keep: Mapping[str, int]) -> int:
    return sum(keep[layer.name] * layer.weights for layer in layers)
