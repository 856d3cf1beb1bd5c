"""The budget: from a sparsity and an allocation to the units that every layer keeps.

Patterns hold only some counts: the proposals of an allocation are rounded from the coarsest step
to the finest, each layer taking over what the last one's rounding left, so that the whole-model
count is met to the finest step, and to the single weight wherever a layer is unstructured.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction

import torch
from torch import Tensor

from .arguments import check_sparsity
from .core import Allocate, Layer, Pattern, Shape, unit_size
from .errors import BudgetError, MisfitError


@dataclass(frozen=True, eq=False)
class Budgeted:
    """One layer as the budget sees it.

    groups, units, unit_size: of the pattern's table. sparsity: the layer's own, in [0, 1), which
    takes it out of the whole-model budget. scores: in the weight's shape, for allocations that
    rank them. counts: the units that every group may keep, ascending and none 0, where they are not
    all that the pattern allows.

    >>> from sparsewright.patterns import as_pattern
    >>> layer = Budgeted.of("conv", (8, 4, 3, 3), as_pattern("block:4x4"))
    >>> layer.groups, layer.units, layer.unit_size
    (1, 18, 16)
    """

    name: str
    shape: Shape
    pattern: Pattern
    groups: int
    units: int
    unit_size: int
    sparsity: float | None = None
    scores: Tensor | None = None
    counts: range | None = None

    @classmethod
    def of(
        cls,
        name: str,
        shape: Shape,
        pattern: Pattern,
        sparsity: float | None = None,
        scores: Tensor | None = None,
    ) -> Budgeted:
        """The layer of a weight of this shape; MisfitError if the pattern does not fit."""
        shape = tuple(shape)
        reason = pattern.misfit(shape)
        if reason is not None:
            raise MisfitError(f"layer {name!r}: pattern {pattern} {reason}")
        if sparsity is not None:
            check_sparsity(sparsity, f"layer {name!r}: ")
        groups, units = pattern.fold(torch.empty(shape, device="meta")).shape
        size = unit_size(pattern, shape)
        return cls(name, shape, pattern, groups, units, size, sparsity, scores)

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def weights(self) -> int:
        """Weights that one more unit in every group brings."""
        return self.groups * self.unit_size

    @property
    def held(self) -> range:
        """The units that every group may keep, never 0; of an empty weight, all there are."""
        if self.counts is not None:
            return self.counts
        counts = self.pattern.allowed(self.units)
        if self.numel == 0:
            return counts[-1:]
        return counts[1:] if counts[0] == 0 else counts

    @property
    def step(self) -> int:
        """The least change in weights."""
        return self.weights * self.held.step

    def nearest(self, weights: float) -> int:
        """The units held whose weights come nearest; of two equally near, the more."""
        held = self.held
        if len(held) == 1:
            return held[0]
        place = math.floor((weights / self.weights - held[0]) / held.step + 0.5)
        return held[min(max(place, 0), len(held) - 1)]

    def unit_scores(self) -> Tensor:
        """(groups, units) mean score per weight, float32 or wider; BudgetError without scores.

        Weights that are in no unit, as an outer level left them out, come last as units more.
        """
        if self.scores is None:
            raise BudgetError(f"layer {self.name!r}: this allocation ranks scores; none was given")
        wide = self.scores.detach().to(torch.promote_types(self.scores.dtype, torch.float32))
        scores = self.pattern.fold(wide) / max(1, self.unit_size)
        outside = self.numel // max(1, self.unit_size) - scores.numel()
        if outside <= 0:
            return scores
        least = scores.min().clamp(max=0.0).expand(outside)
        return torch.cat([scores.reshape(-1), least]).view(1, -1)


def solve_budget(
    layers: Sequence[Budgeted],
    sparsity: float | None,
    allocate: Allocate,
    *,
    first: str | None = None,
) -> dict[str, int]:
    """Layer name -> units kept in every group; a layer that is left dense has no entry.

    layers: in the model's order. sparsity: over all layers but those with a sparsity of their own
    and a first one that the allocation leaves dense; None takes what the patterns fix. first:
    name of the model's first weight, by default that of layers[0]; naming one that is not among
    the layers (it is skipped) leaves no other dense.

    Of N weights N - floor(sparsity * N) are kept: exactly where a layer is unstructured,
    otherwise so near that no step of any layer comes nearer. Every group keeps a unit at least.
    BudgetError names the nearest sparsity when all layers are at their limits.

    >>> from sparsewright.allocate import Uniform
    >>> from sparsewright.patterns import as_pattern
    >>> layers = [Budgeted.of("a", (10, 10), as_pattern("unstructured")),
    ...           Budgeted.of("b", (10, 64), as_pattern("3:32"))]
    >>> solve_budget(layers, 0.9, Uniform(dense_first=False))
    {'a': 14, 'b': 3}
    """
    if not layers:
        raise BudgetError("there is no weight to make sparse: all were skipped, or none exists")
    if sparsity is not None:
        check_sparsity(sparsity)
    keep = {layer.name: _own(layer) for layer in layers if layer.sparsity is not None}
    counted = _counted(layers, allocate, layers[0].name if first is None else first)
    if sparsity is None:
        keep.update({layer.name: _fixed(layer) for layer in counted})
    elif counted:
        keep.update(_share_out(counted, sparsity, allocate))
    return {layer.name: keep[layer.name] for layer in layers if layer.name in keep}


def share_again(
    layers: Sequence[Layer], wanted: Mapping[str, float], most: Mapping[str, int] | None = None
) -> None:
    """Set `layer.keep` of layers whose budget moves, as near to `wanted` as their patterns hold.

    wanted: layer name -> weights to keep, at least one of each layer; layers without `may_share`
    keep what they have. most: layer name -> most units of a group, no fewer than it keeps now. As
    many weights as were kept by all layers together are kept again, exactly; for that `wanted` is
    scaled if its sum is another, and where no step of the patterns meets it nothing changes.
    """
    free = [layer for layer in layers if layer.may_share]
    total = sum(layer.keep * layer.groups * layer.unit_size for layer in free)
    held = {y.name: range(1, (most or {}).get(y.name, y.units) + 1) for y in free}
    found = near(free, wanted, total, held)
    ones = [_limited(layer, held[layer.name]) for layer in free]
    settled = _settled(ones, found, total - _weights(ones, found)) or {}
    for layer in free:
        layer.keep = settled.get(layer.name, layer.keep)


def near(
    layers: Sequence[Layer], wanted: Mapping[str, float], total: int, held: Mapping[str, range]
) -> dict[str, int]:
    """Layer name -> units of every group, as near to `wanted` and to `total` as patterns hold.

    wanted: layer name -> weights, scaled so that they come to `total`. held: layer name -> the
    units that a group may have; of those the pattern holds at least one.
    """
    ones = [_limited(layer, held[layer.name]) for layer in layers]
    fixed = {one.name: one.held[0] for one in ones if len(one.held) == 1}
    free = [one for one in ones if one.name not in fixed]
    left = total - _weights([one for one in ones if one.name in fixed], fixed)
    asked = math.fsum(wanted[one.name] for one in free)
    if not free or asked <= 0:
        return fixed | {one.name: one.held[0] for one in free}
    scale = left / asked
    return fixed | _round(free, left, {one.name: wanted[one.name] * scale for one in free})


def _limited(layer: Layer, held: range) -> Budgeted:
    """The layer with such of its pattern's counts as lie in a range."""
    one = Budgeted.of(layer.name, layer.shape, layer.pattern)
    counts = one.held
    first = max(0, -(-(held[0] - counts[0]) // counts.step))
    return replace(one, counts=counts[first : (held[-1] - counts[0]) // counts.step + 1])


def _settled(
    layers: Sequence[Budgeted], keep: dict[str, int], missing: int
) -> dict[str, int] | None:
    """The same after the fewest single steps that leave nothing missing; None if none do.

    Steps go up while weights are missing and down while there are too many, so what is missing
    never exceeds the largest step.
    """
    seen, queue = {missing}, deque([(missing, keep)])
    while queue:
        left, now = queue.popleft()
        if left == 0:
            return now
        sign = 1 if left > 0 else -1
        for layer in layers:
            after, count = left - sign * layer.step, now[layer.name] + sign * layer.held.step
            if after not in seen and count in layer.held:
                seen.add(after)
                queue.append((after, now | {layer.name: count}))
    return None


def zeros_of(sparsity: float, total: int) -> int:
    """floor(sparsity * total), where a product within rounding of an integer is that integer.

    >>> int(0.29 * 100), zeros_of(0.29, 100)
    (28, 29)
    """
    exact = Fraction(float(sparsity)) * total
    whole = round(exact)
    # A few units in the last place: 1 - n/m and its like are not exact in binary.
    return whole if abs(exact - whole) <= Fraction(total, 2**50) else math.floor(exact)


def _counted(layers: Sequence[Budgeted], allocate: Allocate, first: str) -> list[Budgeted]:
    """The layers that the whole-model sparsity is counted over."""
    counted = [layer for layer in layers if layer.sparsity is None]
    if not allocate.dense_first or first not in {layer.name for layer in counted}:
        return counted
    rest = [layer for layer in counted if layer.name != first]
    if not rest:
        raise BudgetError(
            f"{allocate} leaves the first layer {first!r} dense, and no other is in the budget; "
            "allocate with dense_first=False ('uniform_all' does)"
        )
    return rest


def _fixed(layer: Budgeted) -> int:
    """The count that the layer's pattern fixes; BudgetError if it fixes none."""
    if layer.pattern.sparsity is None:
        raise BudgetError(
            f"layer {layer.name!r}: pattern {layer.pattern} fixes no sparsity of its own; "
            "give a sparsity"
        )
    return layer.held[0]


def _own(layer: Budgeted) -> int:
    """The count nearest to the layer's own sparsity; BudgetError if its pattern fixes another."""
    assert layer.sparsity is not None
    target = layer.numel - zeros_of(layer.sparsity, layer.numel)
    keep = layer.nearest(target)
    if len(layer.held) == 1 and layer.numel and keep * layer.weights != target:
        nearest = 1 - keep * layer.weights / layer.numel
        raise BudgetError(
            f"layer {layer.name!r}: sparsity {layer.sparsity} cannot be held by pattern "
            f"{layer.pattern}; the nearest, and only one, is {nearest}"
        )
    return keep


def _share_out(layers: Sequence[Budgeted], sparsity: float, allocate: Allocate) -> dict[str, int]:
    """Units per group of layers that all count towards the sparsity."""
    total = sum(layer.numel for layer in layers)
    target = total - zeros_of(sparsity, total)
    free = [layer for layer in layers if len(layer.held) > 1]
    keep = {layer.name: layer.held[0] for layer in layers}  # the least that each can hold
    least = _weights(layers, keep)
    most = least + sum((layer.held[-1] - layer.held[0]) * layer.weights for layer in free)
    if not least <= target <= most:
        raise _out_of_reach(layers, sparsity, least if target < least else most, total)
    if free:
        left = target - (least - _weights(free, keep))
        keep.update(_round(free, left, _propose(free, left, allocate)))
    return keep


def _propose(free: Sequence[Budgeted], target: int, allocate: Allocate) -> dict[str, float]:
    """Layer name -> weights to keep, real numbers, as the allocation has it."""
    scores = {y.name: y.unit_scores() for y in free} if allocate.needs_scores else None
    sparsity = 1.0 - target / sum(layer.numel for layer in free)
    found = allocate({layer.name: layer.shape for layer in free}, sparsity, scores)
    for layer in free:
        if not 0 <= found.get(layer.name, math.nan) <= 1:
            raise BudgetError(
                f"layer {layer.name!r}: {allocate} must propose a sparsity in [0, 1]; "
                f"got {found.get(layer.name)}"
            )
    return {layer.name: (1.0 - found[layer.name]) * layer.numel for layer in free}


def _round(free: Sequence[Budgeted], target: int, proposals: dict[str, float]) -> dict[str, int]:
    """Units per group whose weights meet the target as nearly as single steps allow."""
    # The finest step comes last and settles the sum; of equal steps the largest layer, which
    # feels it least. sorted() is stable, so the model's order decides what is left.
    coarse_to_fine = sorted(free, key=lambda layer: (-layer.step, layer.numel))
    keep, carry = {}, 0.0
    for layer in coarse_to_fine:
        wanted = proposals[layer.name] + carry
        keep[layer.name] = layer.nearest(wanted)
        carry = wanted - keep[layer.name] * layer.weights
    # What limits and rounded proposals have left over: finest first, until no step helps.
    missing, before = target - _weights(free, keep), None
    while missing and missing != before:
        before = missing
        for layer in reversed(coarse_to_fine):
            now = keep[layer.name]
            near = layer.nearest(now * layer.weights + missing)
            gain = (near - now) * layer.weights
            if abs(missing - gain) < abs(missing):
                keep[layer.name], missing = near, missing - gain
    return keep


def _weights(layers: Sequence[Budgeted], keep: dict[str, int]) -> int:
    return sum(keep[layer.name] * layer.weights for layer in layers)


def _out_of_reach(
    layers: Sequence[Budgeted], sparsity: float, nearest: int, total: int
) -> BudgetError:
    """The error for a sparsity that all layers at their limits do not reach."""
    fixed = sorted({str(y.pattern) for y in layers if y.pattern.sparsity is not None})
    if len(fixed) and all(layer.pattern.sparsity is not None for layer in layers):
        why = f"pattern {', '.join(fixed)} fixes the sparsity of every layer (leave it out)"
    elif fixed:
        why = f"pattern {', '.join(fixed)} fixes the sparsity of some layers, and the others are "
        why += "at their limits"
    elif 1 - nearest / total > sparsity:
        why = "the outer levels of the patterns leave no more"
    else:
        why = "every layer keeps at least one unit in every group"
    return BudgetError(
        f"sparsity {sparsity} cannot be held: {why}; the nearest is {1 - nearest / total}"
    )
