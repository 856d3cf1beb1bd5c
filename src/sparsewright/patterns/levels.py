"""Levels: one pattern within what another keeps, such as 2:4 within the channels that stay.

The outer levels choose their units once, by score, when a weight is made sparse; the last level
holds the sets of zeros that methods and pruning choose from. (Structured and unstructured pruning
one after the other is old practice; the words and the counting are this project's.)
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Pattern, Shape, table_size
from ..errors import ConfigError
from ..keeping import keep_best
from . import PATTERNS, as_pattern
from ._places import places_of, units_of


@PATTERNS.register("levels")
@dataclass(frozen=True)
class Levels:
    """Outer patterns with a sparsity each, and the pattern within: "channel:0.5+2:4".

    outer: (pattern, sparsity in (0, 1)) from the outermost on; each must have one group and give
    its units a shape (channel, block). Of u units u - floor(sparsity * u) are kept, one at least.
    inner: the last level. A weight's sparsity counts all levels together. Until `choose` has seen
    scores its table is that of the inner pattern on the whole weight. Rows that a channel level
    takes from a model's last weight are outputs lost: skip that weight, or override its pattern.

    >>> Levels.parse("channel:0.5+block:4x4:0.5+unstructured").kept_shape((8, 8))
    (4, 4)
    """

    outer: tuple[tuple[Pattern, float], ...]
    inner: Pattern
    examples: ClassVar[tuple[str, ...]] = ("channel:0.25+2:4", "block:4x4:0.25+unstructured")

    def __post_init__(self) -> None:
        for pattern, sparsity in self.outer:
            if not 0.0 < sparsity < 1.0:
                raise ConfigError(
                    f"pattern {self}: the sparsity of an outer level must be in (0, 1); got "
                    f"{sparsity}"
                )
            if getattr(pattern, "unit_shape", None) is None:
                raise ConfigError(
                    f"pattern {self}: an outer level must be one whose units can hold a pattern "
                    f"(channel, block:RxC); got {pattern}"
                )

    @classmethod
    def parse(cls, text: str) -> Levels | None:
        *outer, inner = text.split("+")
        if not outer:
            return None
        return cls(tuple(_level(text, one) for one in outer), as_pattern(inner))

    def __str__(self) -> str:
        outer = [f"{pattern}:{sparsity:g}" for pattern, sparsity in self.outer]
        return "+".join([*outer, str(self.inner)])

    @property
    def sparsity(self) -> float | None:
        """Of all levels, if the inner one fixes its own; the outer ones' counts are rounded."""
        if self.inner.sparsity is None:
            return None
        kept = math.prod(1.0 - sparsity for _, sparsity in self.outer)
        return 1.0 - kept * (1.0 - self.inner.sparsity)

    def misfit(self, shape: Shape) -> str | None:
        for pattern, _, form, _ in self._levels(shape):
            reason = pattern.misfit(form)
            if reason is not None:
                return f"needs level {pattern} to fit {form}, and that {reason}"
        return None

    def kept_shape(self, shape: Shape) -> Shape:
        """Of the weight that the inner pattern holds: the units kept, one below the other."""
        *_, (_, _, form, _) = self._levels(shape)
        return form

    def choose(self, scores: Tensor) -> Within:
        """The pattern with its outer units chosen: scores in the weight's shape, higher is better.

        Units are compared by the sum of their scores; among equals the first wins.
        """
        places, shape = torch.arange(scores.numel()), tuple(scores.shape)
        flat = scores.detach().reshape(-1).cpu()
        for pattern, _, form, kept in self._levels(shape):
            if pattern is self.inner and kept is None:
                break
            assert kept is not None
            best = keep_best(pattern.fold(flat[places].view(form)), kept).view(-1)
            units = best.nonzero().squeeze(1)
            places = places[places_of(pattern, units, form).reshape(-1)]
        return Within(self, places, shape)

    def fold(self, weight: Tensor) -> Tensor:
        return self.inner.fold(weight)

    def unfold(self, table: Tensor, shape: Shape) -> Tensor:
        return self.inner.unfold(table, shape)

    def allowed(self, units: int) -> range:
        return self.inner.allowed(units)

    def places_of(self, units: Tensor, shape: Shape) -> Tensor:
        return places_of(self.inner, units, shape)

    def units_of(self, places: Tensor, shape: Shape) -> Tensor:
        return units_of(self.inner, places, shape)

    def _levels(self, shape: Shape) -> Iterator[tuple[Pattern, float | None, Shape, int | None]]:
        """Each level, its sparsity, the shape of the weight that it sees, and the units it keeps;
        the inner one keeps what its method decides."""
        form = tuple(shape)
        for pattern, sparsity in self.outer:
            kept = None
            if pattern.misfit(form) is None:
                units = table_size(pattern, form)[1]
                kept = min(units, max(1, units - math.floor(sparsity * units + 1e-9)))
            yield pattern, sparsity, form, kept
            if kept is None:
                return
            rows, *rest = pattern.unit_shape(form)  # type: ignore[attr-defined]
            form = (kept * rows, *rest)
        yield self.inner, None, form, None


@dataclass(frozen=True, eq=False)
class Within:
    """Levels on one weight, its outer units chosen: the inner pattern, in the chosen places.

    chosen: flat places in the weight of the chosen units' weights, in the order of `form`. shape:
    of the weight. Weights elsewhere are in no unit, and always absent.

    >>> within = Levels.parse("channel:0.5+2:4").choose(torch.tensor([[0., 1, 1, 0], [5, 6, 7, 8]]))
    >>> within.fold(torch.arange(8.).view(2, 4))
    tensor([[4., 5., 6., 7.]])
    """

    levels: Levels
    chosen: Tensor = field(repr=False)
    shape: Shape

    def __str__(self) -> str:
        return str(self.levels)

    @property
    def inner(self) -> Pattern:
        return self.levels.inner

    @property
    def form(self) -> Shape:
        return self.levels.kept_shape(self.shape)

    @property
    def sparsity(self) -> float | None:
        """The exact one, of all levels, if the inner pattern fixes its own."""
        if self.inner.sparsity is None:
            return None
        return 1.0 - len(self.chosen) * (1.0 - self.inner.sparsity) / max(1, math.prod(self.shape))

    @property
    def unit_size(self) -> int:
        groups, units = table_size(self.inner, self.form)
        return len(self.chosen) // max(1, groups * units)

    def choosing(self, chosen: Tensor) -> Within:
        """The same with other units chosen, as a checkpoint has them; ValueError if they cannot be
        places of this weight."""
        good = chosen.dtype == torch.int64 and chosen.shape == self.chosen.shape
        good = good and len(chosen.unique()) == len(chosen)
        numel = math.prod(self.shape)
        if not good or (len(chosen) and not 0 <= int(chosen.min()) <= int(chosen.max()) < numel):
            raise ValueError(
                f"chosen places of {self} must be {len(self.chosen)} of [0, {numel}), int64, none "
                f"twice; got {chosen.dtype} of shape {tuple(chosen.shape)}"
            )
        return Within(self.levels, chosen.cpu(), self.shape)

    def misfit(self, shape: Shape) -> str | None:
        if tuple(shape) == self.shape:
            return None
        return f"needs the shape that its units were chosen for, {self.shape}; got {tuple(shape)}"

    def fold(self, weight: Tensor) -> Tensor:
        own = weight.reshape(-1)[self.chosen.to(weight.device)]
        return self.inner.fold(own.view(self.form))

    def unfold(self, table: Tensor, shape: Shape) -> Tensor:
        flat = table.new_zeros(math.prod(shape))
        flat[self.chosen.to(table.device)] = self.inner.unfold(table, self.form).reshape(-1)
        return flat.view(shape)

    def allowed(self, units: int) -> range:
        return self.inner.allowed(units)

    def places_of(self, units: Tensor, shape: Shape) -> Tensor:
        return self.chosen.to(units.device)[places_of(self.inner, units, self.form)]

    def units_of(self, places: Tensor, shape: Shape) -> Tensor:
        """-1 for a place that was not chosen."""
        if not len(self.chosen):
            return torch.full_like(places, -1)
        ordered, order = self.chosen.to(places.device).sort()
        at = torch.searchsorted(ordered, places).clamp_(max=len(ordered) - 1)
        units = units_of(self.inner, order[at], self.form)
        return torch.where(ordered[at] == places, units, -1)


def _level(text: str, one: str) -> tuple[Pattern, float]:
    """An outer level's pattern and sparsity; ConfigError without the latter."""
    match = re.fullmatch(r"(.+):(\d*\.\d+)", one)
    if match is None:
        raise ConfigError(
            f"pattern {text!r}: every level but the last needs its sparsity, as in channel:0.5; "
            f"got {one!r}"
        )
    return as_pattern(match[1]), float(match[2])
