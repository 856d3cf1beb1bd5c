"""Solvers: which weights of a layer go, and what the others become, so that its outputs on data
change least. One file each; found by folder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from ..arguments import check_part
from ..core import Pattern, Shape
from ..registry import Table

__all__ = ["SOLVERS", "Problem", "Solution", "Solver", "as_solver"]


@dataclass(frozen=True, eq=False)
class Problem:
    """One layer's quadratic problem: the least ||W X - W' X||^2 over W' that keep to a pattern.

    weight: (groups, rows, in) of the groups of a convolution, of a Linear's one; groups * rows are
    its outputs. second: (groups, in, in) X X^T over `count` columns of X, in the same type. shape:
    of the layer's weight, whose flatten(1) has the same columns. keep: units that every group of
    the pattern keeps.
    """

    name: str
    weight: Tensor
    second: Tensor
    count: int
    pattern: Pattern
    shape: Shape
    keep: int

    def error(self, weight: Tensor) -> float:
        """||W X - W' X||^2 of other weights, (groups, rows, in)."""
        change = weight - self.weight
        return float(((change @ self.second) * change).sum())


@dataclass(frozen=True, eq=False)
class Solution:
    """weight: (groups, rows, in), 0 where absent. mask: bool, True = present."""

    weight: Tensor
    mask: Tensor


class Solver(Protocol):
    """What a file of this folder registers: a frozen dataclass whose options have defaults."""

    def refuses(self, pattern: Pattern, shape: Shape, groups: int) -> str | None:
        """Why it cannot serve a weight under a pattern ("needs ..., got ..."), or None."""

    def solve(self, problem: Problem) -> Solution:
        """The least error it finds; StateError if the data do not determine it."""


SOLVERS: Table[type[Solver]] = Table("solver", __name__)
NEEDS = ("refuses", "solve")


def as_solver(spec: str | Solver) -> Solver:
    """A solver from its object, or with its defaults from its name; UnknownNameError for others.

    >>> as_solver("sparsegpt")
    SparseGPT(damp=0.01, block=128)
    """
    return SOLVERS[spec]() if isinstance(spec, str) else check_part("solver", spec, NEEDS)
