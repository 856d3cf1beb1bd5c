"""Which units of a layer are best: of those present, or of those absent.

Present units are scored by themselves, and the absent ones as tiles of rows pass by, of which only
the best so far are kept: no table of all scores is ever made, in either storage. Among equals the
first unit wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from .abilities import OfUnits
from .core import Layer, Score, View
from .errors import StateError
from .keeping import keep_best
from .kernels.best import best_of, best_table, marked_scores
from .patterns import places_of, units_are_places
from .sampling import Taken, draw, merged
from .scores import as_score, check_numbers
from .storage import tile_rows


def present_scores(layer: Layer, score: str | Score) -> Tensor:
    """The score of every present unit, in order of `layer.present_units`.

    StateError if a gradient that it needs is missing, or a score is NaN.
    """
    chosen = as_score(score)
    sees = "all" if isinstance(chosen, OfUnits) else getattr(chosen, "sees", "all")
    if sees == "nothing":
        drawn = torch.rand(layer.storage.count(), generator=layer.generator)
        return drawn.to(layer.weight.device)
    if layer.numel == 0:
        return torch.zeros(layer.storage.count(), device=layer.weight.device)
    if layer.is_full or sees == "all":
        whole = torch.cat(list(_tile_scores(layer, score, whole=True)))
        scores = whole if layer.is_full else whole[layer.present_units]
    else:
        if units_are_places(layer.pattern, layer.shape):
            values, gradient = layer.storage.present()
            values, gradient = values[:, None], None if gradient is None else gradient[:, None]
        else:
            places = places_of(layer.pattern, layer.present_units, layer.shape)
            values, gradient = layer.storage.take(places)
        view = _view(layer, values, gradient, torch.ones_like(values, dtype=torch.bool))
        scores = chosen(view)
        scores = scores.view(-1) if layer.unit_size == 1 else scores.sum(dim=1)
    check_numbers(layer.name, score, scores)
    return scores


def whole_scores(layer: Layer, score: str | Score) -> Tensor:
    """The score of every weight in the dense weight's shape, -inf where it is absent.

    Of a score of whole units each weight has its share. Allocations rank it before it is settled
    how many a layer keeps.
    """
    chosen = as_score(score)
    if getattr(chosen, "sees", "all") == "nothing":
        found = torch.rand(layer.shape, generator=layer.generator).to(layer.weight.device)
    elif isinstance(chosen, OfUnits):
        shares = torch.cat(list(_tile_scores(layer, score, whole=True))) / max(1, layer.unit_size)
        found = layer.pattern.unfold(shares.view(layer.groups, layer.units), layer.shape)
    else:
        tiles = layer.storage.tiles(max(1, layer.shape[0]), chosen.needs_gradient)
        views = [replace(_view(layer, *tile), keep=None) for tile in tiles]
        found = torch.cat([chosen(view) for view in views])
    return found if layer.is_full else found.masked_fill(layer.absent, -torch.inf)


def all_scores(layer: Layer, score: str | Score) -> Tensor:
    """(groups, units) the score of every unit, present or absent; StateError as above."""
    if layer.numel == 0:
        return torch.zeros(layer.groups, layer.units, device=layer.weight.device)
    chosen = as_score(score)
    if getattr(chosen, "sees", "all") == "nothing":
        return torch.rand(layer.groups, layer.units, generator=layer.generator).to(
            layer.weight.device
        )
    whole = torch.cat(list(_tile_scores(layer, score, whole=True)))
    check_numbers(layer.name, score, whole)
    return whole.view(layer.groups, layer.units)


def first_units(layer: Layer, score: str | Score) -> Tensor:
    """Of the present units the best `layer.keep` of every group, to begin with. Flat, ascending.

    Of a full layer a score that sees nothing draws as many as are kept, and scores no other.
    """
    if getattr(as_score(score), "sees", "all") != "nothing" or not layer.is_full:
        return best_units(layer, score, layer.keep)
    counts = torch.full((layer.groups,), layer.keep)
    none = torch.empty(0, dtype=torch.int64)
    return _drawn(layer, counts, none)


def best_units(layer: Layer, score: str | Score, keep: int) -> Tensor:
    """Of the present units the best `keep` of every group. Flat, ascending.

    Where groups are empty (ablated neurons), the others take their share, as far as they have
    units. StateError if fewer are present than are to be kept.
    """
    scores = present_scores(layer, score)
    active = _active_groups(layer)
    table = scores.view(active, len(scores) // active) if active else scores.view(0, layer.units)
    most, groups = table.shape[1], layer.groups
    if active * most <= (keep - 1) * groups:
        raise StateError(
            f"layer {layer.name!r}: {keep} units of every group are to be kept, and "
            f"{active * most / max(1, groups):g} are present; make the packed weight less sparse, "
            "or ask for more"
        )
    if active < groups:
        keep = min(most, keep * groups // max(1, active))
    best = best_table(table, keep).reshape(-1)
    return best.nonzero().squeeze(1) if layer.is_full else layer.present_units[best]


def worst(layer: Layer, score: str | Score, count: int) -> Tensor:
    """Bool, one entry per present unit: the `count` worst over the whole layer."""
    scores = present_scores(layer, score)
    return best_of(scores, len(scores) - count).logical_not_()


def best_absent(layer: Layer, score: str | Score, leaves: Tensor, *, last: bool) -> Tensor:
    """The best units besides those that stay, as many as fill every group up to `layer.keep`.

    leaves: bool, one entry per present unit. last: those that leave come only where a group has no
    others left. Flat, ascending. StateError as for `present_scores`.
    """
    chosen = as_score(score)
    if getattr(chosen, "sees", "all") == "nothing":
        return _drawn_around(layer, leaves, last)
    if layer.groups == 1:
        return _best_of_one_group(layer, score, leaves, last)
    _room(layer, leaves)  # which no group may exceed
    present, grown, base = layer.present_units, [], 0
    gone, kept = present[leaves], present[~leaves]
    for scores in _tile_scores(layer, score):
        check_numbers(layer.name, score, scores)
        table = marked_scores(scores, base, kept, gone if last else gone[:0])
        table = table.view(-1, layer.units)
        best = keep_best(table, layer.keep).view(-1) & (table.view(-1) != torch.inf)
        grown.append(best.nonzero().squeeze(1) + base)
        base += len(scores)
    return torch.cat(grown)


def best_candidates(
    layer: Layer, score: str | Score, leaves: Tensor, gradients_of: float
) -> Tensor:
    """The best units of a random sample besides those that stay, as many as fill every group.

    leaves: as of `best_absent`. gradients_of: how many are sampled in every group, as a part of
    the units it keeps; never fewer than it lacks, nor more than there are. The score sees the
    sampled weights alone. Flat, ascending. StateError as for `present_scores`.
    """
    counts = _room(layer, leaves).cpu()
    room = layer.units - layer.keep + counts
    sampled = torch.full_like(counts, math.ceil(gradients_of * layer.keep))
    wanted = torch.minimum(torch.maximum(sampled, counts), room)
    sample = _drawn(layer, wanted, _kept(layer, leaves))
    chosen, places = as_score(score), places_of(layer.pattern, sample, layer.shape)
    _check_gradient(layer, chosen)
    gradient = layer.storage.gradient_at(places.reshape(-1)).view(places.shape)
    absent = torch.zeros_like(places, dtype=torch.bool)
    view = _view(layer, torch.zeros_like(gradient), gradient, absent)
    scores = chosen(view).sum(dim=1)
    check_numbers(layer.name, score, scores)
    return _best_of_each(sample, scores, sample // layer.units, counts.to(sample.device))


def _best_of_each(units: Tensor, scores: Tensor, groups: Tensor, counts: Tensor) -> Tensor:
    """Of units, ascending, the counts[group] best of every group, ascending."""
    order = scores.argsort(descending=True, stable=True)
    order = order[groups[order].argsort(stable=True)]  # by group, and in each the best first
    sizes = torch.bincount(groups, minlength=len(counts))
    first = sizes.cumsum(0) - sizes
    of = groups[order]
    rank = torch.arange(len(order), device=order.device) - first[of]
    return units[order[rank < counts[of]]].sort().values


def _active_groups(layer: Layer) -> int:
    """How many groups have a present unit; all have as many."""
    if layer.groups <= 1 or layer.is_full:
        return layer.groups
    return len((layer.present_units // layer.units).unique_consecutive())


def _room(layer: Layer, leaves: Tensor) -> Tensor:
    """(groups) units that each group lacks once those that leave are gone; StateError if one has
    too many."""
    if layer.groups == 1:
        return (layer.keep - len(leaves) + leaves.count_nonzero()).view(1)
    kept = layer.present_units[~leaves]
    room = layer.keep - torch.bincount(kept // layer.units, minlength=layer.groups)
    if len(room) and int(room.min()) < 0:
        raise StateError(
            f"layer {layer.name!r}: every group is to hold {layer.keep} units, and one holds "
            f"{layer.keep - int(room.min())}: where neurons are ablated, the others hold their "
            "share; train such a weight with method srigl or static"
        )
    return room


def _best_of_one_group(layer: Layer, score: str | Score, leaves: Tensor, last: bool) -> Tensor:
    """The best units seen so far, while tiles pass by."""
    count, offers = int(_room(layer, leaves)), None
    for scores in _tile_scores(layer, score):
        offers = offers or layer.storage.offers(scores, count, leaves, last)
        if not offers.take(scores):
            check_numbers(layer.name, score, scores)
        del scores  # before there are others
    none = torch.empty(0, dtype=torch.int64, device=leaves.device)
    return none if offers is None else offers.best()


def _tile_scores(layer: Layer, score: str | Score, whole: bool = False) -> Iterator[Tensor]:
    """The scores of all units, tile by tile, not yet checked; of absent weights too."""
    chosen = as_score(score)
    _check_gradient(layer, chosen)
    single = getattr(chosen, "sees", "all") == "single" and not isinstance(chosen, OfUnits)
    rows = layer.shape[0]
    if single and not whole:
        rows = tile_rows(layer.pattern, layer.shape, layer.present)
    for tile in layer.storage.tiles(max(1, rows), chosen.needs_gradient):
        yield _of_units(chosen, _view(layer, *tile), layer).reshape(-1)
        del tile  # before there is another


def _of_units(chosen: Score, view: View, layer: Layer) -> Tensor:
    """(groups, units) scores of the units in some whole rows of a layer."""
    if isinstance(chosen, OfUnits):
        return chosen.of_units(view, layer.pattern)
    return layer.pattern.fold(chosen(view))


def _check_gradient(layer: Layer, score: Score) -> None:
    if score.needs_gradient and not layer.storage.has_gradient():
        raise StateError(
            f"layer {layer.name!r}: the score needs the weight's gradient, and it is None; "
            "call loss.backward() first, and leave requires_grad on"
        )


def _view(layer: Layer, weight: Tensor, gradient: Tensor | None, mask: Tensor) -> View:
    shown = weight.detach()
    if gradient is not None:  # that of absent packed weights is never less than float32
        shown = shown.to(torch.promote_types(shown.dtype, gradient.dtype))
        gradient = gradient.to(shown.dtype)
    shown.grad = gradient
    keep = layer.keep * layer.groups * layer.unit_size
    return View(layer.name, shown, mask, layer.generator, keep)


def _drawn(layer: Layer, counts: Tensor, taken: Tensor | Taken) -> Tensor:
    drawn = draw(layer.groups, layer.units, counts, taken, layer.generator)
    return drawn.to(layer.weight.device)


def _kept(layer: Layer, leaves: Tensor) -> Taken:
    """The present units less those that leave, as what cannot be drawn."""

    def holds(units: Tensor) -> Tensor:
        at = layer.storage.find(units.to(leaves.device))
        stays = ~leaves[at.clamp(min=0)] if len(leaves) else torch.zeros_like(at, dtype=torch.bool)
        return stays & (at >= 0)

    count = len(leaves) - int(leaves.count_nonzero())
    return Taken(count, holds, lambda: layer.present_units[~leaves])


def _drawn_around(layer: Layer, leaves: Tensor, last: bool) -> Tensor:
    """Random units besides those that stay; `last`: and those that leave only where a group has
    no other free one."""
    counts = _room(layer, leaves)
    if not last:
        return _drawn(layer, counts, _kept(layer, leaves))
    taken = layer.present_units
    busy = torch.bincount(taken // layer.units, minlength=layer.groups)
    free = torch.minimum(counts, layer.units - busy)
    others = _drawn(layer, free, taken)
    rest = counts - free
    if not int(rest.sum()):
        return others
    # Where units are still lacking all others are taken now, so only those that leave are free.
    return merged(others, _drawn(layer, rest, merged(taken[~leaves], others)))
