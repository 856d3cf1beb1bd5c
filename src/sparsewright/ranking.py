"""Which units of a layer are best: of those present, or of those absent.

Present units are scored by themselves, and the absent ones as tiles of rows pass by, of which only
the best so far are kept: no table of all scores is ever made, in either storage. Among equals the
first unit wins.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from .abilities import OfUnits
from .core import Layer, Score, View, keep_best
from .errors import StateError
from .patterns import places_of
from .sampling import draw, merged
from .scores import as_score, check_numbers
from .storage import tile_rows

FINITE = torch.finfo(torch.float32).max


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
        places = places_of(layer.pattern, layer.present_units, layer.shape)
        values, gradient = layer.storage.take(places)
        view = _view(layer, values, gradient, torch.ones_like(values, dtype=torch.bool))
        scores = chosen(view).sum(dim=1)
    check_numbers(layer.name, score, scores)
    return scores


def whole_scores(layer: Layer, score: str | Score) -> Tensor:
    """The score of every weight in the dense weight's shape, -inf where it is absent.

    Of a score of whole units each weight has its share.
    """
    chosen = as_score(score)
    if getattr(chosen, "sees", "all") == "nothing":
        found = torch.rand(layer.shape, generator=layer.generator).to(layer.weight.device)
    elif isinstance(chosen, OfUnits):
        shares = torch.cat(list(_tile_scores(layer, score, whole=True))) / max(1, layer.unit_size)
        found = layer.pattern.unfold(shares.view(layer.groups, layer.units), layer.shape)
    else:
        tiles = layer.storage.tiles(max(1, layer.shape[0]), chosen.needs_gradient)
        found = torch.cat([chosen(_view(layer, *tile)) for tile in tiles])
    return found if layer.is_full else found.masked_fill(layer.absent, -torch.inf)


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

    StateError if a group has fewer.
    """
    scores = present_scores(layer, score)
    table = scores.view(layer.groups, -1) if layer.groups else scores.view(0, layer.units)
    if table.shape[1] < keep:
        raise StateError(
            f"layer {layer.name!r}: {keep} units of every group are to be kept, and "
            f"{table.shape[1]} are present; make the packed weight less sparse, or ask for more"
        )
    best = keep_best(table, keep).reshape(-1)
    return best.nonzero().squeeze(1) if layer.is_full else layer.present_units[best]


def survivors(layer: Layer, score: str | Score, moved: int) -> Tensor:
    """The present units less the `moved` worst over the whole layer. Flat, ascending."""
    scores = present_scores(layer, score)
    best = keep_best(scores.view(1, -1), len(scores) - moved)
    return layer.present_units[best.view(-1)]


def best_absent(layer: Layer, score: str | Score, kept: Tensor, *, last: Tensor) -> Tensor:
    """The best units besides `kept`, as many as fill every group up to `layer.keep`.

    kept: flat units, ascending. last: those that come only where a group has no others left.
    Flat, ascending. StateError as for `present_scores`.
    """
    chosen = as_score(score)
    counts = _room(layer, kept)
    if getattr(chosen, "sees", "all") == "nothing":
        return _drawn_around(layer, counts, kept, last)
    if layer.groups == 1:
        return _best_of_one_group(layer, score, int(counts), kept, last)
    grown, base = [], 0
    for scores in _tile_scores(layer, score):
        table = _marked(scores, base, kept, last).view(-1, layer.units)
        best = keep_best(table, layer.keep).view(-1) & (table.view(-1) != torch.inf)
        grown.append(best.nonzero().squeeze(1) + base)
        base += len(scores)
    return torch.cat(grown)


def best_candidates(layer: Layer, score: str | Score, kept: Tensor, gradients_of: float) -> Tensor:
    """The best units of a random sample besides `kept`, as many as fill every group.

    gradients_of: how many are sampled in every group, as a part of the units it keeps; never fewer
    than it lacks, nor more than there are. The score sees the sampled weights alone. Flat,
    ascending. StateError as for `present_scores`.
    """
    counts = _room(layer, kept).cpu()
    room = layer.units - layer.keep + counts
    sampled = torch.full_like(counts, math.ceil(gradients_of * layer.keep))
    sample = _drawn(layer, torch.minimum(torch.maximum(sampled, counts), room), kept)
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


def _room(layer: Layer, kept: Tensor) -> Tensor:
    """(groups) units that each group lacks."""
    if layer.groups == 1:
        return torch.tensor([layer.keep - len(kept)], device=kept.device)
    return layer.keep - torch.bincount(kept // layer.units, minlength=layer.groups)


def _best_of_one_group(
    layer: Layer, score: str | Score, count: int, kept: Tensor, last: Tensor
) -> Tensor:
    """The best `count` units seen so far, while tiles pass by."""
    device = kept.device
    best = [torch.empty(0, device=device)]
    units = [torch.empty(0, dtype=torch.int64, device=device)]
    base, found, least = 0, 0, None
    for scores in _tile_scores(layer, score):
        marked = _marked(scores, base, kept, last)
        candidate = marked != torch.inf
        if least is not None:  # what is no better than all of the best comes too late
            candidate &= marked > least
        at = candidate.nonzero().squeeze(1)
        best.append(marked[at])
        units.append(at.add_(base))
        found += len(at)
        base += len(scores)
        if found > 2 * count or (base == layer.units and found > count):
            together = torch.cat(best)
            stay = keep_best(together.view(1, -1), count).view(-1)
            best, units, found = [together[stay]], [torch.cat(units)[stay]], count
            least = best[0].min() if count else None
    return torch.cat(units)


def _marked(scores: Tensor, base: int, kept: Tensor, last: Tensor) -> Tensor:
    """Scores of a run of units from `base` on: +inf where kept, -inf for those that come last."""
    marked = scores.clamp(max=FINITE)
    for units, mark in ((last, -torch.inf), (kept, torch.inf)):
        ends = torch.tensor([base, base + len(scores)], device=units.device)
        low, high = torch.searchsorted(units, ends).tolist()
        marked[units[low:high] - base] = mark
    return marked


def _tile_scores(layer: Layer, score: str | Score, whole: bool = False) -> Iterator[Tensor]:
    """The scores of all units, tile by tile; gradients of absent weights among them."""
    chosen = as_score(score)
    _check_gradient(layer, chosen)
    single = getattr(chosen, "sees", "all") == "single" and not isinstance(chosen, OfUnits)
    rows = tile_rows(layer.pattern, layer.shape) if single and not whole else layer.shape[0]
    for weight, gradient, mask in layer.storage.tiles(max(1, rows), chosen.needs_gradient):
        scores = _of_units(chosen, _view(layer, weight, gradient, mask), layer).reshape(-1)
        check_numbers(layer.name, score, scores)
        yield scores


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
    return View(layer.name, shown, mask, layer.generator)


def _drawn(layer: Layer, counts: Tensor, taken: Tensor) -> Tensor:
    drawn = draw(layer.groups, layer.units, counts, taken, layer.generator)
    return drawn.to(layer.weight.device)


def _drawn_around(layer: Layer, counts: Tensor, kept: Tensor, last: Tensor) -> Tensor:
    """Random units, those of `last` only where a group has no other free one."""
    if not len(last):
        return _drawn(layer, counts, kept)
    taken = merged(kept, last)
    busy = torch.bincount(taken // layer.units, minlength=layer.groups)
    free = torch.minimum(counts, layer.units - busy)
    others = _drawn(layer, free, taken)
    rest = counts - free
    if not int(rest.sum()):
        return others
    # Where units are still lacking all others are taken now, so only those of `last` are free.
    return merged(others, _drawn(layer, rest, merged(kept, others)))
