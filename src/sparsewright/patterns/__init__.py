"""Patterns: which sets of zeros are allowed. One file each; found by folder."""

from __future__ import annotations

from typing import Protocol

from ..arguments import check_part
from ..core import Pattern
from ..errors import UnknownNameError
from ..registry import Table
from ._places import places_of, row_step, units_are_places, units_of

__all__ = [
    "PATTERNS",
    "PatternType",
    "as_pattern",
    "places_of",
    "row_step",
    "units_are_places",
    "units_of",
]


class PatternType(Protocol):
    """What a file of this folder registers: a class that can read its own short name."""

    examples: tuple[str, ...]

    def parse(self, text: str) -> Pattern | None:
        """The pattern that a short name means, or None if the name is not of this kind."""


PATTERNS: Table[PatternType] = Table("pattern", __name__)
NEEDS = ("misfit", "fold", "unfold", "allowed")


def as_pattern(spec: str | Pattern) -> Pattern:
    """A pattern from its object or its short name ("2:4", "block:4x4", "unstructured", ...).

    >>> str(as_pattern("3:32"))
    '3:32'
    """
    if not isinstance(spec, str):
        return check_part("pattern", spec, NEEDS)
    for _, kind in PATTERNS.items():
        found = kind.parse(spec)
        if found is not None:
            return found
    examples = [example for _, kind in PATTERNS.items() for example in kind.examples]
    raise UnknownNameError("pattern", spec, examples)
