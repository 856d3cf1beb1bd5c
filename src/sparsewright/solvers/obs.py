"""OBS: remove the one weight whose loss costs least, correct all others, and again (Hassibi and
Stork, NeurIPS 1992)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch

from ..core import Pattern, Shape, table_size
from ..errors import StateError
from ..facts import Facts
from . import SOLVERS, Problem, Solution
from ._grid import unit_matrix
from ._inverse import check_damp, inverse_of, prepared

LARGEST = 2**27
"""Entries of all inverses together: a GiB in float64."""


@SOLVERS.register("obs")
@dataclass(frozen=True)
class OBS:
    """Optimal Brain Surgeon on a layer's problem: one weight at a time, the least of the layer.

    The weight q of the least w_q^2 / (2 [H^-1]_qq) goes, and all others of its row move by
    -w_q / [H^-1]_qq H^-1 e_q. Every row has an inverse of its own, so layers must be small: outputs
    times inputs squared at most 2^27. damp: part of the mean diagonal of H that is added to it.
    """

    damp: float = 0.0
    facts: ClassVar[Facts] = Facts(
        source="Hassibi, Stork: Second order derivatives for network pruning: Optimal Brain "
        "Surgeon, NeurIPS 1992",
        when="Small layers, and to check other solvers by: `obc` finds the same at less cost.",
        memory="One inverse of in x in for every output.",
        flops="Beside the forwards of the data, in^2 for every weight removed.",
        published="none verified",
        departs="H is that of the layer's outputs, 2 X X^T, not of the network's loss; it is "
        "downdated, not recomputed, after each removal. `damp` counts by the mean diagonal of "
        "those inputs that are not 0 in all data; the others lose their weights first.",
    )

    def __post_init__(self) -> None:
        check_damp("OBS", self.damp)

    def refuses(self, pattern: Pattern, shape: Shape, groups: int) -> str | None:
        tables, units = table_size(pattern, shape)
        if tables * units != math.prod(shape):
            return f"obs removes single weights; the units of pattern {pattern} have more"
        size = math.prod(shape) * math.prod(shape[1:])
        if size > LARGEST:
            return f"obs needs out * in^2 of at most {LARGEST}; got {size} (obc needs less)"
        return None

    def solve(self, problem: Problem) -> Solution:
        weight, hessian = prepared(problem, self.damp)
        inverse = inverse_of(problem, hessian, self)
        groups, rows, inputs = weight.shape
        weight = weight.reshape(-1, inputs)
        own = inverse[:, None].expand(groups, rows, inputs, inputs)
        own = own.reshape(-1, inputs, inputs).clone()
        tables, units = table_size(problem.pattern, problem.shape)
        group = (unit_matrix(problem.pattern, problem.shape) // max(1, units)).to(weight.device)
        room = torch.full((tables,), units - problem.keep, device=weight.device)
        absent = torch.zeros_like(weight, dtype=torch.bool)
        diagonal = own.diagonal(dim1=1, dim2=2)  # a view: it follows
        for _ in range(tables * (units - problem.keep)):
            cost = weight.square() / (2 * diagonal)
            cost = cost.masked_fill(absent | (room[group] == 0), torch.inf)
            place = int(cost.argmin())
            row, q = divmod(place, inputs)
            if not math.isfinite(cost[row, q]):
                raise StateError(f"layer {problem.name!r}: a weight is not finite")
            line = own[row, q].clone()
            weight[row] -= weight[row, q] / line[q] * line
            own[row] -= torch.outer(line, line) / line[q]
            absent[row, q] = True
            own[row].diagonal()[absent[row]] = 1.0  # 0 but for rounding; never looked at
            weight[row].masked_fill_(absent[row], 0.0)
            room[group[row, q]] -= 1
        return Solution(weight.view(groups, rows, -1), ~absent.view(groups, rows, -1))
