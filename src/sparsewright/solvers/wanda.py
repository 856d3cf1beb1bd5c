"""Wanda layer by layer: |w| ||x|| with inputs from the model whose earlier layers are pruned by
then; no weight that stays is changed (Sun, Liu, Bair, Kolter, ICLR 2024)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Pattern, Shape
from ..errors import ConfigError
from ..facts import Facts
from ..keeping import keep_best
from ..scores.wanda import PER, in_row, misfit, products
from . import SOLVERS, Problem, Solution


@SOLVERS.register("wanda")
@dataclass(frozen=True)
class WandaInOrder:
    """Keep the weights of largest |w| ||x||, compared within each row, and change none of them.

    per: "row" or "layer", as for the score of this name. That one, `prune(score="wanda")`, takes
    the norms of the unpruned model in one pass; this one, `prune(solver="wanda")`, measures each
    layer behind those that are pruned by then, as the paper does.
    """

    per: str = "row"
    facts: ClassVar[Facts] = Facts(
        source="Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language "
        "Models, ICLR 2024",
        when="To compare with `sparsegpt` and `obc` on the same inputs; the score needs one pass. "
        "For classifiers of images, see what the score says.",
        memory="H of one layer at a time, of which the diagonal is used.",
        flops="The forwards of the data, and those of each layer's H.",
        published="Authors' results, LLaMA-2 7B/13B/70B, perplexity at 50 %: dense 5.12/4.57/3.12, "
        "magnitude 14.89/6.37/4.98, Wanda 6.42/5.56/3.98",
        departs="The layer's budget is met exactly: where it does not divide by the rows, the "
        "first rows keep one weight more. Of equals the first stays; the public code's stable sort "
        "lets it go. That code's variant, which searches each row's sparsity, is left out.",
    )

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ConfigError(f"Wanda: per must be one of {', '.join(PER)}; got {self.per!r}")

    def refuses(self, pattern: Pattern, shape: Shape, groups: int) -> str | None:
        return misfit(self.per, pattern, shape)

    def solve(self, problem: Problem) -> Solution:
        weight = problem.weight.reshape(problem.shape)
        scores = products(weight, problem.second.diagonal(dim1=1, dim2=2))
        if self.per == "row":
            scores = in_row(scores)
        table = keep_best(problem.pattern.fold(scores), problem.keep)
        mask = problem.pattern.unfold(table, problem.shape).reshape(problem.weight.shape)
        return Solution(problem.weight.masked_fill(~mask, 0.0), mask)
