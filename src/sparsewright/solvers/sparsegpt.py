"""SparseGPT: one sweep over the columns, each column's error pushed to those behind it (Frantar and
Alistarh, ICML 2023)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Pattern, Shape
from ..errors import ConfigError
from ..facts import Facts
from ..keeping import keep_best
from . import SOLVERS, Problem, Solution
from ._grid import Grid, grid_of
from ._inverse import check_damp, inverse_of, prepared


@SOLVERS.register("sparsegpt")
@dataclass(frozen=True)
class SparseGPT:
    """Remove the least w^2 / U_cc^2 of every block of columns, left to right, and let the columns
    behind make up for what each removal changes. U is the upper Cholesky factor of H^-1: U_cc^2 is
    [H^-1]_cc once the columns before c are settled.

    damp: part of the mean diagonal of H = X X^T that is added to it. block: columns whose weights
    are chosen together, all rows of them, and whose updates reach the rest at once; each block
    loses its share of the layer's budget, rounded so that the layer's is met exactly. Under N:M the
    N of a group are chosen when the sweep comes to it, by the weights as they are then; under
    fan_in each row loses its share of each block.
    """

    damp: float = 0.01
    block: int = 128
    facts: ClassVar[Facts] = Facts(
        source="Frantar, Alistarh: SparseGPT: Massive Language Models Can Be Accurately Pruned in "
        "One-Shot, ICML 2023",
        when="Trained models that cannot be trained on, from large layers to whole models of "
        "language; `obc` is more exact where it can be paid for.",
        memory="H of one layer at a time, its inverse and their factors: about five tables of in x "
        "in, in float64 unless told; a copy of all weights until the end, and what enters the "
        "current block on the CPU.",
        flops="Beside the forwards of the data, in^3 for each layer and out x in^2 for the sweep.",
        published="Table 1, OPT on raw-WikiText2, perplexity dense to 50 %: 2.7B 12.47 to 13.48; "
        "13B 10.13 to 11.17; 175B 8.35 to 8.21",
        departs="The layer's budget is met exactly: the public code cuts each block at a threshold "
        "and lets ties go too. Dead inputs get the mean diagonal, not 1, and take no part in it. "
        "`block` is both of the paper's, that of the masks and that of lazy updates. "
        "Pattern n:m keeps n of m; the paper's counts the zeros. No layer is left out by itself: "
        "the authors skip embeddings and the head.",
    )

    def __post_init__(self) -> None:
        check_damp("SparseGPT", self.damp)
        if self.block < 1:
            raise ConfigError(f"SparseGPT: block must be 1 or more; got {self.block}")

    def refuses(self, pattern: Pattern, shape: Shape, groups: int) -> str | None:
        grid = grid_of(pattern, shape)
        if isinstance(grid, str):
            return f"sparsegpt {grid}"
        if not grid.single:
            return (
                f"sparsegpt removes single weights; the units of pattern {pattern} have "
                f"{grid.rows}x{grid.columns} (obc takes them)"
            )
        return None

    def solve(self, problem: Problem) -> Solution:
        grid = grid_of(problem.pattern, problem.shape)
        assert isinstance(grid, Grid)
        weight, hessian = prepared(problem, self.damp)
        order = grid.order.to(weight.device)
        hessian = hessian[:, order][:, :, order]
        # [H^-1] of all columns not yet swept is at every step read off one Cholesky factor.
        factor = torch.linalg.cholesky(inverse_of(problem, hessian, self), upper=True)
        swept, mask = self._sweep(weight[..., order], factor, grid, grid.units - problem.keep)
        back = order.argsort()
        return Solution(swept[..., back], mask[..., back])

    def _sweep(
        self, weight: Tensor, factor: Tensor, grid: Grid, zeros: int
    ) -> tuple[Tensor, Tensor]:
        """weight: (groups, rows, in), in the grid's order. zeros: of each of the grid's groups."""
        inputs = weight.shape[-1]
        chunk = self.block if grid.is_whole else grid.run  # columns chosen together
        block = max(1, self.block // chunk) * chunk
        mask = torch.ones_like(weight, dtype=torch.bool)
        for begin in range(0, inputs, block):
            end = min(inputs, begin + block)
            own = factor[:, begin:end, begin:end]
            part, errors = weight[..., begin:end], torch.zeros_like(weight[..., begin:end])
            for i in range(end - begin):
                if i % chunk == 0:
                    chosen = slice(i, min(i + chunk, end - begin))
                    scale = own.diagonal(dim1=1, dim2=2)[:, None, chosen]
                    scores = (part[..., chosen] / scale).square()
                    share = _share(zeros, grid, begin + i, begin + chosen.stop)
                    mask[..., begin + i : begin + chosen.stop] = _chosen(scores, share, grid)
                column = part[..., i]
                kept = column.where(mask[..., begin + i], torch.zeros_like(column))
                error = (column - kept) / own[:, None, i, i]
                part[..., i:] -= error[..., None] * own[:, None, i, i:]
                part[..., i] = kept
                errors[..., i] = error
            weight[..., end:] -= errors @ factor[:, begin:end, end:]
        return weight, mask


def _share(zeros: int, grid: Grid, begin: int, end: int) -> int:
    """The zeros of a group that lie in some of its columns, by their part of them all."""
    first = begin // grid.run * grid.run
    return zeros * (end - first) // grid.run - zeros * (begin - first) // grid.run


def _chosen(scores: Tensor, zeros: int, grid: Grid) -> Tensor:
    """Bool, True = present: all but the `zeros` least of the layer, or of every row."""
    cells = scores.reshape(1, -1) if grid.shared else scores.flatten(0, 1)
    return keep_best(cells, cells.shape[1] - zeros).view(scores.shape)
