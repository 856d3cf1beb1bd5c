"""Scores: how much a weight is worth keeping. One file each; found by folder."""

from __future__ import annotations

from ..core import Score
from ..registry import Table

SCORES: Table[Score] = Table("score", __name__)


def as_score(spec: str | Score) -> Score:
    """A score from its object or its name; UnknownNameError if the name is in no table.

    >>> as_score("magnitude")
    Magnitude()
    """
    return SCORES[spec] if isinstance(spec, str) else spec
