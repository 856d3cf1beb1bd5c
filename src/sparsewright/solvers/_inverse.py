"""What solvers share: the Hessian made fit to be inverted, its inverse, and least squares on what
is kept."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..errors import ConfigError, StateError
from . import Problem


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


def inverse_of(problem: Problem, hessian: Tensor) -> Tensor:
    """(groups, in, in); StateError if the data do not determine it in the type's precision."""
    factor, failed = torch.linalg.cholesky_ex(hessian)
    pivots = factor.diagonal(dim1=1, dim2=2).square().amin(dim=1)
    largest = hessian.diagonal(dim1=1, dim2=2).amax(dim=1)
    if failed.any() or bool((pivots <= torch.finfo(hessian.dtype).eps * largest).any()):
        inputs = hessian.shape[-1]
        raise StateError(
            f"layer {problem.name!r}: X X^T of {problem.count} columns of data has no inverse for "
            f"{inputs} inputs; give more data, or more damping (damp=0.01 adds 1 % of its mean "
            "diagonal)"
        )
    return torch.cholesky_inverse(factor)


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
