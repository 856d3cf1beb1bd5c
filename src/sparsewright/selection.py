"""Which weights of a model become sparse, under which pattern, and how many units each keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from .abilities import Measured
from .allocate import as_allocation
from .budget import Budgeted, solve_budget
from .core import Allocate, Layer, Pattern, Score
from .errors import (
    BudgetError,
    ConfigError,
    MisfitError,
    UnknownNameError,
)
from .masks import Masks, check_masks_kind, hold_mask
from .naming import Overrides, Skip, check_on_misfit, check_overrides, override_of, skipped
from .patterns import as_pattern
from .ranking import whole_scores
from .scores import as_score
from .stages import part_of_way
from .storage import misfit, storage_of
from .weights import COMPUTES, Weight, check_values, find_weights, other_weights, why_other

MAGNITUDE = as_score("magnitude")
NO_MASK = "no mask was given"
COMPUTED = (
    ". What a layer computes its weight from (weight_norm, a parametrization, "
    "torch.nn.utils.prune) cannot be sparse: make a plain weight of it first "
    "(remove_parametrizations, prune.remove)"
)


@dataclass(frozen=True)
class LeftDense:
    """A weight that is not made sparse, with the reason; no norm's, and no bias."""

    name: str
    total: int
    reason: str


@dataclass(frozen=True)
class _Wish:
    weight: Weight
    pattern: Pattern
    sparsity: float | None


@dataclass(frozen=True, eq=False)
class Candidates:
    """The layers that may be made sparse, all units still present, and what cannot be and why.

    asked: the pattern of those that no override names. weights: all of the model's, in order; those
    of kinds of modules that are not known are in left_dense alone.
    packed: the names of those of which something is absent from the beginning. masked: of those
    whose present weights a mask has given.
    """

    layers: tuple[Layer, ...]
    wishes: tuple[_Wish, ...]
    left_dense: tuple[LeftDense, ...]
    asked: Pattern
    weights: tuple[Weight, ...]
    packed: frozenset[str]
    masked: frozenset[str] = frozenset()

    def share_out(
        self,
        sparsity: float | None,
        allocate: str | Allocate,
        score: Score,
        *,
        part: float | None = None,
    ) -> tuple[list[Layer], list[LeftDense]]:
        """Set `keep` of the layers; those made sparse, and what is left dense and why.

        part: of the way from dense to the sparsity, in (0, 1], that is gone after one of several
        rounds (stages.part_of_way), in which no layer gets more units than it has now; None goes
        all of it at once. Raises BudgetError.
        """
        pairs = list(zip(self.wishes, self.layers, strict=True))
        unasked = [y.name for w, y in pairs if self._unasked(w, y, sparsity)]
        pairs = [pair for pair in pairs if pair[1].name not in unasked]
        asked = [(w, y) for w, y in pairs if not self._stays(w, y, sparsity)]
        if self.masked and sparsity is not None and not asked:
            raise BudgetError(
                f"sparsity {sparsity} is asked of no layer, as all have masks: leave it out"
            )
        names = {layer.name for _, layer in asked}
        keeps = {y.name: y.keep for _, y in pairs if y.name not in names}  # as they are
        if asked or not pairs:
            wanted = [wish for wish, _ in asked]
            if sparsity is None:
                _needs_sparsity(wanted, self.asked)
            allocation = as_allocation(allocate)
            budgeted = _budgeted([y for _, y in asked], wanted, allocation, score)
            first = self.weights[0].name
            if part is None:
                keeps |= solve_budget(budgeted, sparsity, allocation, first=first)
            else:
                now = {y.name: y.storage.count() // max(1, y.groups) for _, y in asked}
                keeps |= part_of_way(budgeted, now, sparsity, allocation, part, first=first)
        for wish, layer in pairs:
            layer.is_own = wish.sparsity is not None or layer.name in self.masked
        for layer in self.layers:
            layer.keep = keeps.get(layer.name, layer.units)
        left = [
            _left(w.weight, NO_MASK if y.name in unasked else "left dense by the allocation")
            for w, y in zip(self.wishes, self.layers, strict=True)
            if y.name not in keeps
        ]
        order = {weight.name: place for place, weight in enumerate(self.weights)}
        all_left = sorted(
            [*self.left_dense, *left], key=lambda one: order.get(one.name, len(order))
        )
        return [layer for layer in self.layers if layer.name in keeps], all_left

    def _unasked(self, wish: _Wish, layer: Layer, sparsity: float | None) -> bool:
        """Whether others have masks, and nothing was asked of this layer."""
        if not self.masked or sparsity is not None or wish.sparsity is not None:
            return False
        return layer.name not in self.masked | self.packed

    def _stays(self, wish: _Wish, layer: Layer, sparsity: float | None) -> bool:
        """Whether a layer keeps what it has: by a mask, or packed with no sparsity asked of it."""
        if layer.name in self.masked:
            return True
        if layer.name not in self.packed or sparsity is not None or wish.sparsity is not None:
            return False
        layer.keep = -(-layer.storage.count() // max(1, layer.groups))  # of ablated ones, the mean
        return True


def select_layers(
    model: nn.Module,
    *,
    sparsity: float | None,
    pattern: str | Pattern,
    allocate: str | Allocate,
    score: Score,
    generator: torch.Generator,
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    masks: Masks | None = None,
) -> tuple[list[Layer], list[LeftDense]]:
    """The layers to make sparse, all weights still present, and what is left dense and why.

    The whole-model sparsity counts over the layers returned, less those with a sparsity of their
    own in `overrides`, and those with a mask, whose present weights are the mask's. Without a
    sparsity, but with masks, all others stay dense. Raises MisfitError, BudgetError,
    UnknownNameError, ConfigError or StateError.
    """
    found = candidates(
        model,
        pattern=pattern,
        generator=generator,
        score=score,
        skip=skip,
        overrides=overrides,
        on_misfit=on_misfit,
        masks=masks,
    )
    return found.share_out(sparsity, allocate, score)


def candidates(
    model: nn.Module,
    *,
    pattern: str | Pattern,
    generator: torch.Generator,
    score: Score = MAGNITUDE,
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    masks: Masks | None = None,
) -> Candidates:
    """The layers of a model that may be made sparse; arguments and errors as `select_layers`.

    score: chooses the outer levels of patterns that have some.
    """
    weights = find_weights(model)
    if not weights:
        others = list(other_weights(model, weights))
        raise ConfigError(
            "the model has no weight that can be made sparse: there must be a Linear, Conv1d, "
            f"Conv2d, Conv3d, Embedding or MultiheadAttention; got {type(model).__name__}"
            + (f", whose weights are {', '.join(others[:4])}" if others else "")
            + (COMPUTED if any(why_other(name) == COMPUTES for name in others) else "")
        )
    check_values(weights)
    check_overrides(overrides)
    check_on_misfit(on_misfit)
    if masks is not None:
        check_masks_kind(masks)
    asked = as_pattern(pattern)
    left_out = skipped(weights, skip)
    wishes, left_dense = [], []
    for weight in weights:
        if weight.name in left_out:
            left_dense.append(_left(weight, "skipped by request"))
            continue
        wish = _wish(weight, asked, override_of(weight, overrides, weights))
        fitted, reason = _fit(wish, on_misfit)
        if fitted is None:
            left_dense.append(_left(weight, reason))
        else:
            wishes.append(_with_levels(fitted, score, generator))
    left_dense += [
        LeftDense(name, parameter.numel(), why_other(name))
        for name, parameter in other_weights(model, weights).items()
    ]
    layers = tuple(_layer(wish, generator) for wish in wishes)
    packed = frozenset(layer.name for layer in layers if not layer.is_full)
    return Candidates(
        layers=layers,
        wishes=tuple(wishes),
        left_dense=tuple(left_dense),
        asked=asked,
        weights=tuple(weights),
        packed=packed,
        masked=_held(wishes, layers, masks or {}),
    )


def _left(weight: Weight, reason: str) -> LeftDense:
    return LeftDense(weight.name, math.prod(weight.shape), reason)


def _wish(weight: Weight, pattern: Pattern, override: Mapping[str, Any]) -> _Wish:
    own = as_pattern(override["pattern"]) if "pattern" in override else pattern
    return _Wish(weight, own, override.get("sparsity"))


def _fit(wish: _Wish, on_misfit: str | Pattern) -> tuple[_Wish | None, str]:
    """The wish, or the same under the pattern for misfits, or None with the reason."""
    reason = misfit(wish.weight, wish.pattern)
    if reason is None:
        return wish, ""
    message = f"layer {wish.weight.name!r}: pattern {wish.pattern} {reason}"
    if on_misfit == "error":
        raise MisfitError(
            f"{message}. Leave it out (skip=[{wish.weight.name!r}], on_misfit='skip') or name a "
            "pattern for such layers (on_misfit='unstructured')"
        )
    if on_misfit == "skip":
        return None, f"pattern {wish.pattern} {reason}"
    other = as_pattern(on_misfit)
    if (again := misfit(wish.weight, other)) is not None:
        raise MisfitError(f"{message}; and on_misfit={str(other)!r} {again}")
    return _Wish(wish.weight, other, wish.sparsity), ""


def _with_levels(wish: _Wish, score: Score, generator: torch.Generator) -> _Wish:
    """The wish with the outer levels of its pattern chosen by score, if it has such."""
    choose = getattr(wish.pattern, "choose", None)
    if choose is None:
        return wish
    if isinstance(score, Measured):
        raise ConfigError(
            f"layer {wish.weight.name!r}: pattern {wish.pattern} chooses its outer levels before "
            f"anything is measured, which score {score} asks for: prune level by level"
        )
    whole = _layer(replace(wish, pattern=as_pattern("unstructured")), generator)
    chosen = replace(wish, pattern=choose(whole_scores(whole, score)))
    if (reason := misfit(wish.weight, chosen.pattern)) is not None:
        raise MisfitError(f"layer {wish.weight.name!r}: pattern {wish.pattern} {reason}")
    return chosen


def _needs_sparsity(wishes: list[_Wish], asked: Pattern) -> None:
    """BudgetError if no sparsity was given and some weight's pattern fixes none."""
    free = [w for w in wishes if w.pattern.sparsity is None and w.sparsity is None]
    if not free:
        return
    if asked.sparsity is None:
        raise BudgetError(f"pattern {asked} fixes no sparsity of its own: give one in [0, 1)")
    one = free[0]
    reason = asked.misfit(one.weight.shape) or "is overridden there"
    raise BudgetError(
        f"layer {one.weight.name!r}: pattern {asked} {reason}; the pattern {one.pattern} that it "
        "takes instead fixes no sparsity of its own: give one in [0, 1)"
    )


def _layer(wish: _Wish, generator: torch.Generator) -> Layer:
    layer = Layer(
        name=wish.weight.name,
        storage=storage_of(wish.weight, wish.pattern),
        pattern=wish.pattern,
        keep=0,
        generator=generator,
        aliases=wish.weight.aliases,
        is_lookup=wish.weight.is_lookup,
    )
    layer.keep = layer.units
    return layer


def _held(wishes: Sequence[_Wish], layers: Sequence[Layer], masks: Masks) -> frozenset[str]:
    """The names of the layers that have a mask, which they hold from now on."""
    found = {layer.name: (wish, layer) for wish, layer in zip(wishes, layers, strict=True)}
    for name, mask in masks.items():
        if name not in found:
            raise UnknownNameError("sparse layer to mask", name, found)
        wish, layer = found[name]
        if wish.sparsity is not None:
            raise ConfigError(
                f"layer {name!r}: its mask fixes its sparsity; leave out that of overrides, "
                f"{wish.sparsity}"
            )
        hold_mask(layer, mask)
    return frozenset(masks)


def _budgeted(
    layers: list[Layer],
    wishes: list[_Wish],
    allocation: Allocate,
    score: Score,
) -> list[Budgeted]:
    def scores(layer: Layer) -> Tensor | None:
        return whole_scores(layer, score) if allocation.needs_scores else None

    return [
        Budgeted(
            name=layer.name,
            shape=layer.shape,
            pattern=layer.pattern,
            groups=layer.groups,
            units=layer.units,
            unit_size=layer.unit_size,
            sparsity=wish.sparsity,
            scores=scores(layer),
        )
        for layer, wish in zip(layers, wishes, strict=True)
    ]
