"""OBC: every row's weights in the exact order of Optimal Brain Surgeon, the rows merged by what the
next removal of each costs (Frantar, Singh, Alistarh, NeurIPS 2022)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Pattern, Shape
from ..errors import StateError
from ..facts import Facts
from . import SOLVERS, Problem, Solution
from ._grid import Grid, grid_of
from ._inverse import check_damp, inverse_of, least_squares, prepared

AT_ONCE = 2**25
"""Entries of the factors of all rows that are traced together."""
SLACK = 1.25
"""A row is traced so much further than its even share; to its end only where that falls short."""


@SOLVERS.register("obc")
@dataclass(frozen=True)
class OBC:
    """ExactOBS: in every row, again and again the weight of the least w_p^2 / [H^-1]_pp goes, and
    the others make up for it; the layer removes what costs it least over all rows.

    Blocks go as one, by w_B^T ([H^-1]_BB)^-1 w_B, summed over their rows. Under N:M and fan_in each
    group removes its own number. damp: part of the mean diagonal of H = X X^T that is added to it.
    """

    damp: float = 0.0
    facts: ClassVar[Facts] = Facts(
        source="Frantar, Singh, Alistarh: Optimal Brain Compression: A Framework for Accurate "
        "Post-Training Quantization and Pruning, NeurIPS 2022",
        when="Layers of up to about a thousand inputs; larger ones take `sparsegpt`.",
        memory="H of one layer, and for the rows traced together as many columns as they remove.",
        flops="Beside the forwards of the data, up to in^3 for every row.",
        published="none verified",
        departs="The downdates of H^-1 are kept as factors, from which the columns that are needed "
        "are made; the values are solved anew by least squares on what is kept, which is where the "
        "updates lead. `damp` counts by the mean diagonal of those inputs that are not 0 in all "
        "data; the others lose their weights first.",
    )

    def __post_init__(self) -> None:
        check_damp("OBC", self.damp)

    def refuses(self, pattern: Pattern, shape: Shape, groups: int) -> str | None:
        grid = grid_of(pattern, shape)
        if isinstance(grid, str):
            return f"obc {grid}"
        if shape[0] // groups % grid.rows:
            return (
                f"obc needs units within one group of a convolution; pattern {pattern} has others"
            )
        if grid.shared and not grid.is_whole:
            return (
                f"obc needs groups of one row, or of the whole layer; pattern {pattern} has others"
            )
        return None

    def solve(self, problem: Problem) -> Solution:
        grid = grid_of(problem.pattern, problem.shape)
        assert isinstance(grid, Grid)
        weight, hessian = prepared(problem, self.damp)
        order = grid.order.to(weight.device)
        hessian = hessian[:, order][:, :, order]
        inverse = inverse_of(problem, hessian, self)
        groups, rows, inputs = weight.shape
        strips = weight[..., order].view(groups, rows // grid.rows, grid.rows, inputs)
        picked, counts = _choose(problem, strips, inverse, grid)
        tiles = torch.arange(grid.across, device=weight.device) < counts[..., None]
        gone = torch.zeros_like(tiles).scatter_(2, picked, tiles)
        absent = gone.repeat_interleave(grid.columns, dim=2)  # (groups, strips, in)
        solved = [least_squares(*one) for one in zip(strips, hessian, absent, strict=True)]
        mask = ~absent[:, :, None].expand(strips.shape)
        back = order.argsort()
        new = torch.stack(solved).view(groups, rows, inputs)
        return Solution(new[..., back], mask.reshape(groups, rows, inputs)[..., back])


def _choose(problem: Problem, strips: Tensor, inverse: Tensor, grid: Grid) -> tuple[Tensor, Tensor]:
    """(groups, strips, across) tiles in the order in which each strip would remove them, all of
    them, and (groups, strips) how many of them go."""
    zeros, total = grid.units - problem.keep, strips.shape[0] * strips.shape[1]
    if not grid.shared:
        limit = grid.across // grid.run * zeros
        picked, _ = _trace_all(problem, strips, inverse, grid, limit)
        return picked, torch.full(picked.shape[:2], limit, device=picked.device)
    limit = min(grid.across, zeros, math.ceil(SLACK * zeros / max(1, total)))
    picked, costs = _trace_all(problem, strips, inverse, grid, limit)
    counts = merge(costs.flatten(0, 1), zeros).view(costs.shape[:2])
    short = counts == limit  # had they been traced further, they might have removed more
    if limit < min(grid.across, zeros) and short.any():
        for g in range(len(strips)):
            again = short[g].nonzero().squeeze(1)
            if len(again):
                part = strips[g, again][None], inverse[g][None]
                picked[g, again], costs[g, again] = (
                    found[0] for found in _trace_all(problem, *part, grid, grid.across)
                )
        counts = merge(costs.flatten(0, 1), zeros).view(costs.shape[:2])
    return picked, counts


def merge(costs: Tensor, zeros: int) -> Tensor:
    """(strips) how many each removes, if always the strip goes on whose next removal costs least.

    costs: (strips, removals) of each one's removals in order, infinite where there are no more. A
    removal that is cheaper than the one before it follows at once, so what counts is the largest
    cost so far. Among equals the first strip goes first.

    >>> merge(torch.tensor([[1., 9., 2.], [3., 4., 5.]]), 4).tolist()
    [1, 3]
    """
    so_far = costs.cummax(dim=1).values
    first = so_far.reshape(-1).argsort(stable=True)[:zeros]
    return torch.bincount(first // costs.shape[1], minlength=len(costs))


def _trace_all(
    problem: Problem, strips: Tensor, inverse: Tensor, grid: Grid, limit: int
) -> tuple[Tensor, Tensor]:
    """(groups, strips, across): all tiles, the first `limit` in the order in which each strip
    removes them, and what each of these costs; infinite for the rest."""
    quota = grid.units - problem.keep if not grid.shared else grid.across
    size = max(1, AT_ONCE // max(1, limit * grid.columns * strips.shape[-1]))
    picked, costs = [], []
    for own, of_group in zip(strips, inverse, strict=True):
        for i in range(0, len(own), size):
            order, cost = _trace(own[i : i + size], of_group, grid, limit, quota)
            if torch.isnan(cost).any():
                raise StateError(f"layer {problem.name!r}: a weight is not finite")
            picked.append(order)
            costs.append(cost)
    shape = (*strips.shape[:2], grid.across)
    return torch.cat(picked).view(shape), torch.cat(costs).view(shape)


def _trace(
    strips: Tensor, inverse: Tensor, grid: Grid, limit: int, quota: int
) -> tuple[Tensor, Tensor]:
    """Of strips (s, rows, in) that share an inverse (in, in); quota: tiles that each run removes.

    After k removals a strip's inverse is the first one less F^T F, F (k * columns, in): the removal
    of columns B adds to F the rows L^-1 [H^-1]_B,:, with L the Cholesky factor of [H^-1]_BB.
    """
    count, rows, inputs = strips.shape
    wide, across = grid.columns, grid.across
    weight = strips.clone()
    tiled = weight.view(count, rows, across, wide)
    corners = inverse.view(across, wide, across, wide).diagonal(dim1=0, dim2=2).permute(2, 0, 1)
    corners = corners.expand(count, across, wide, wide).clone()  # [H^-1]_BB of every tile
    factors = strips.new_empty(count, limit * wide, inputs)
    each = torch.arange(count, device=strips.device)
    gone = torch.zeros(count, across, dtype=torch.bool, device=strips.device)
    room = torch.full((count, across // grid.run), quota, device=strips.device)
    picked = torch.zeros(count, limit, dtype=torch.int64, device=strips.device)
    costs = strips.new_full((count, across), torch.inf)
    for k in range(limit):
        closed = gone | (room == 0).repeat_interleave(grid.run, dim=1)
        cost = _costs(tiled, corners, closed)
        best = cost.argmin(dim=1)
        picked[:, k], costs[:, k] = best, cost[each, best]
        columns = best[:, None] * wide + torch.arange(wide, device=strips.device)
        before = factors[:, : k * wide]
        at = columns[:, None].expand(count, k * wide, wide)
        lines = inverse[columns] - before.gather(2, at).mT @ before  # (s, wide, in)
        root = torch.linalg.cholesky(corners[each, best])
        new = torch.linalg.solve_triangular(root, lines, upper=False)
        amount = torch.linalg.solve_triangular(root, tiled[each, :, best].mT, upper=False)
        factors[:, k * wide : (k + 1) * wide] = new
        weight -= amount.mT @ new
        new = new.view(count, wide, across, wide)
        corners -= _corners(new)
        gone[each, best] = True
        room[each, best // grid.run] -= 1
    rest = gone.to(torch.int64).argsort(dim=1, stable=True)[:, : across - limit]
    return torch.cat([picked, rest], dim=1), costs


def _corners(lines: Tensor) -> Tensor:
    """(s, across, columns, columns): lines^T lines of every tile; lines (s, k, across, columns)."""
    if lines.shape[3] == 1:
        return lines.square().sum(dim=1)[..., None]
    return torch.einsum("sctd,scte->stde", lines, lines)


def _costs(tiled: Tensor, corners: Tensor, closed: Tensor) -> Tensor:
    """(s, across) what the removal of each tile costs; infinite for those closed."""
    if tiled.shape[3] == 1:
        cost = tiled.squeeze(3).square().sum(dim=1) / corners.flatten(2).squeeze(2)
    else:
        eye = torch.eye(tiled.shape[3], dtype=tiled.dtype, device=tiled.device)
        root = torch.linalg.cholesky(torch.where(closed[..., None, None], eye, corners))
        line = torch.linalg.solve_triangular(root, tiled.permute(0, 2, 3, 1), upper=False)
        cost = line.square().sum(dim=(2, 3))
    return cost.masked_fill(closed, torch.inf)
