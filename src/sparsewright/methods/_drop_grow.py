"""Drop and grow, the step that all dynamic sparse training shares (methods: SET, RigL, ...).

Drop the worst of what is present over the whole table, then refill every group with the best of
what was not kept, so that each group holds as many units as before.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor

from ..arguments import number
from ..core import Exchange, Layer, Schedule, Score
from ..errors import ConfigError, UnknownNameError
from ..ranking import best_absent, best_candidates, worst

Grown = Literal["zero", "normal"]
Regrown = Literal["keep", "reset"]
GROWN: tuple[str, ...] = get_args(Grown)
REGROWN: tuple[str, ...] = get_args(Regrown)
NORMAL_SCALE = 0.1
"""Grown weights of SET's published code are N(0, 1) / 10."""


def drop_and_grow(
    layer: Layer,
    fraction: float,
    *,
    drop: str | Score,
    grow: str | Score,
    sample: float | None = None,
    exclude_dropped: bool = False,
    regrown: Regrown = "keep",
    grown: Grown = "zero",
) -> Exchange | None:
    """Move floor(fraction * present units) of a layer; None if that is no unit at all, where the
    budget holds all units, and for a frozen weight: what it grew would be 0 for ever.

    drop: units with the lowest score go. grow: the highest among those not kept come, the just
    dropped ones too unless exclude_dropped (they still come where a group has no other left).
    sample: grow only from so many random units, as a part of those kept; None: from all.
    regrown: whether a unit dropped and grown in one update keeps its value and optimizer state.
    grown: starting value of grown weights, 0 or N(0, 1) / 10.
    """
    check_fraction(f"layer {layer.name!r}", fraction)
    moved = math.floor(fraction * layer.storage.count() + 1e-9)
    if moved == 0 or layer.keep == layer.units or not layer.weight.requires_grad:
        return None
    leaves = worst(layer, drop, moved)
    if sample is None:
        comes = best_absent(layer, grow, leaves, last=exclude_dropped)
    else:
        comes = best_candidates(layer, grow, leaves, sample)
    if regrown == "keep":  # what goes and comes has not moved at all
        at = layer.storage.find(comes)
        leaves[at[at >= 0]] = False
        comes = comes[at < 0]
    return Exchange(leaves, comes, starting_values(layer, grown, len(comes)))


def check_fraction(place: str, fraction: float | Schedule) -> None:
    """Raise ConfigError unless a fraction that is a number is in [0, 1]."""
    if not callable(fraction):
        number(f"{place}: fraction", fraction, "a number in [0, 1], or a schedule")
    if not callable(fraction) and not 0.0 <= fraction <= 1.0:
        raise ConfigError(
            f"{place}: fraction (of the present units, moved at an update) must be in "
            f"[0, 1]; got {fraction}"
        )


def check_option(method: str, name: str, value: str, options: tuple[str, ...]) -> None:
    """Raise UnknownNameError unless a method's option is one of those that exist."""
    if value not in options:
        raise UnknownNameError(f"value of {method}'s {name}", value, options)


def drop_only(layer: Layer, fraction: float, drop: str | Score) -> Exchange:
    """Remove floor(fraction * present units) and add none: the last update of SET's paper.

    Groups may become unequal: see `check_one_group`.
    """
    moved = math.floor(fraction * layer.storage.count() + 1e-9)
    none = torch.empty(0, dtype=torch.int64, device=layer.weight.device)
    return Exchange(worst(layer, drop, moved), none)


def check_one_group(layer: Layer) -> None:
    """Raise ConfigError for a layer whose groups `drop_only` could leave unequal."""
    if layer.groups > 1:
        raise ConfigError(
            f"layer {layer.name!r}: removing without adding would leave the groups of pattern "
            f"{layer.pattern} unequal; use last='regrow'"
        )


def starting_values(layer: Layer, grown: Grown, units: int) -> Tensor | None:
    """(units, unit_size), or None for zeros."""
    if grown == "zero":
        return None
    noise = torch.randn(units, layer.unit_size, generator=layer.generator) * NORMAL_SCALE
    return noise.to(layer.weight)
