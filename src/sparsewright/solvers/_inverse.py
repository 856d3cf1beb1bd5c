"""What solvers share: the Hessian made fit to be inverted, its inverse, and least squares on what
is kept."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from ..errors import ConfigError, StateError
from . import Problem

ENOUGH = 0.01
"""The damp that SparseGPT publishes, for those who have none."""
SLACK = 4
"""A pivot is of an input's size once others are taken from it. Where they give all of it, rounding
leaves a few times eps of that size, which grows as a sum of random errors does."""


class Damped(Protocol):
    """A solver with an option `damp`; a frozen dataclass."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def damp(self) -> float: ...


def check_damp(solver: str, damp: float) -> None:
    """ConfigError unless damp is a finite number of 0 or more."""
    if not (math.isfinite(damp) and damp >= 0):
        raise ConfigError(f"{solver}: damp must be a finite number of 0 or more; got {damp}")


def prepared(problem: Problem, damp: float) -> tuple[Tensor, Tensor]:
    """(weight, Hessian) to work on, (groups, rows, in) and (groups, in, in), both copies.

    The Hessian is X X^T / count; `damp` times the mean of its diagonal, dead inputs aside, is added
    to the diagonal. An input that was 0 in all data is dead: it gets that mean, and its weights 0.
    """
    hessian = problem.second / max(1, problem.count)
    diagonal = hessian.diagonal(dim1=1, dim2=2)
    dead = diagonal == 0
    mean = diagonal.sum(dim=1) / (~dead).sum(dim=1).clamp(min=1)
    mean = torch.where(mean > 0, mean, torch.ones_like(mean))[:, None]
    diagonal += damp * mean
    diagonal.copy_(torch.where(dead, mean, diagonal))
    return problem.weight.masked_fill(dead[:, None, :], 0.0), hessian


def inverse_of(problem: Problem, hessian: Tensor, solver: Damped) -> Tensor:
    """(groups, in, in); StateError if the data do not determine it in the type's precision.

    hessian: of `prepared`. solver: whose damp it was.
    """
    factor, failed = torch.linalg.cholesky_ex(hessian)
    pivots = factor.diagonal(dim1=1, dim2=2).square()
    rounding = SLACK * math.sqrt(pivots.shape[1]) * torch.finfo(hessian.dtype).eps
    bad = (failed != 0) | (pivots <= rounding * hessian.diagonal(dim1=1, dim2=2)).any(dim=1)
    if bad.any():
        more = max(ENOUGH, 10 * solver.damp)
        why = _why_singular(problem, int(bad.nonzero()[0]))
        raise StateError(
            f"layer {problem.name!r}: {type(solver).__name__} needs an X X^T, X being the layer's "
            f"inputs on the data, that has an inverse: {why}. Give more data, or damping: "
            f"prune(..., solver={replace(solver, damp=more)}) adds "
            f"{more:.0%} of the mean diagonal to it; damp was {solver.damp:g}"
        )
    return torch.cholesky_inverse(factor)


def _why_singular(problem: Problem, group: int) -> str:
    """Why X X^T of one group has no inverse. Inputs that were always 0 are no reason: `prepared`
    settles them."""
    second, count = problem.second[group], problem.count
    alive = second.diagonal() != 0
    inputs, live = len(alive), int(alive.sum())
    where = f"the inputs of group {group}" if len(problem.second) > 1 else "the inputs"
    which = f"{inputs} inputs" if live == inputs else f"{live} inputs that are not always 0"
    if count < live:
        return f"{count} columns of data are too few for {which}"
    sizes = torch.linalg.eigvalsh(second)
    rank = int((sizes > inputs * torch.finfo(sizes.dtype).eps * sizes[-1]).sum())
    if rank < live:
        return f"{where} depend on each other: {which} are linear combinations of {rank}"
    return f"{where} are too alike: {second.dtype} cannot tell {which} apart"


def least_squares(weight: Tensor, hessian: Tensor, absent: Tensor) -> Tensor:
    """The weights on the kept inputs that change W X least: (strips, rows, in), 0 where absent.

    weight: (strips, rows, in). hessian: (in, in). absent: (strips, in) bool; of a strip where
    nothing is absent the weights stay as they are.
    """
    out = weight.clone()
    inputs = weight.shape[-1]
    step = max(1, 2**24 // max(1, inputs * inputs))
    for i in range(0, len(weight), step):
        gone = absent[i : i + step]
        part = weight[i : i + step]
        matrix = hessian.masked_fill(gone[:, :, None] | gone[:, None, :], 0.0)
        matrix.diagonal(dim1=1, dim2=2).masked_fill_(gone, 1.0)
        right = (part @ hessian).mT.masked_fill(gone[:, :, None], 0.0)
        solved = torch.cholesky_solve(right, torch.linalg.cholesky(matrix)).mT
        solved = solved.masked_fill(gone[:, None, :], 0.0)
        out[i : i + step] = torch.where(gone.any(dim=1)[:, None, None], solved, part)
    return out
