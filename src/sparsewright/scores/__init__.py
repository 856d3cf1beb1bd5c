"""Scores: how much a weight is worth keeping. One file each; found by folder."""

from __future__ import annotations

from torch import Tensor

from ..arguments import check_part
from ..core import Score
from ..errors import StateError
from ..keeping import any_nan
from ..registry import Table

SCORES: Table[Score] = Table("score", __name__)
NEEDS = ("__call__", "needs_gradient")


def as_score(spec: str | Score) -> Score:
    """A score from its object or its name; UnknownNameError if the name is in no table,
    ConfigError for what is neither.

    >>> as_score("magnitude")
    Magnitude()
    """
    return SCORES[spec] if isinstance(spec, str) else check_part("score", spec, NEEDS)


def check_numbers(name: str, score: str | Score, scores: Tensor) -> None:
    """StateError if scores of a layer hold NaN, among which none is best."""
    if any_nan(scores):
        raise StateError(
            f"layer {name!r}: scores by {score} hold NaN: a weight or a gradient is not finite"
        )
