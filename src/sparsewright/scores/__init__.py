"""Scores: how much a weight is worth keeping. One file each; found by folder."""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Layer, Score
from ..errors import StateError
from ..registry import Table

SCORES: Table[Score] = Table("score", __name__)


def as_score(spec: str | Score) -> Score:
    """A score from its object or its name; UnknownNameError if the name is in no table.

    >>> as_score("magnitude")
    Magnitude()
    """
    return SCORES[spec] if isinstance(spec, str) else spec


def unit_scores(layer: Layer, score: str | Score) -> Tensor:
    """The layer's (groups, units) scores; StateError if they hold NaN, among which none is best."""
    table = layer.pattern.fold(as_score(score)(layer))
    if torch.isnan(table).any():
        raise StateError(
            f"layer {layer.name!r}: scores by {score} hold NaN: a weight or a gradient is not "
            "finite"
        )
    return table
