"""Wanda: |w| times the norm of its input over data, compared within each output row (Sun, Liu,
Bair, Kolter, ICLR 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..calibration import Calibration
from ..capture import input_squares
from ..core import Pattern, Score, Shape, View
from ..errors import ConfigError, MisfitError, StateError
from ..facts import Facts
from ..weights import find_weights
from . import SCORES
from ._measured import ToMeasure, is_whole_rows
from ._wide import wide

PER = ("row", "layer")


@dataclass(frozen=True)
class Wanda(ToMeasure):
    """|w| * ||x||, the norm of the weight's input over all data; no weight that stays is changed.

    per: "row" gives the weight's place among those of its row, from 1 for the best down to 1 / in,
    so that each row of an unstructured layer keeps as many (one more in the first rows where the
    budget does not divide); under N:M and fan_in it chooses what the product would. "layer" gives
    the product itself, for all rows to compete, and for units of several weights; those that are
    whole rows must have it.

    Two parts have this name. `prune(score="wanda")` is this one: norms of the unpruned model, in
    one pass, in evaluation mode, and weights that go by any pattern, allocation and number of
    rounds. `prune(solver="wanda")` measures layer by layer, behind those that are pruned by then,
    as the paper does, and takes more passes.
    """

    per: str = "row"
    facts: ClassVar[Facts] = Facts(
        source="Sun, Liu, Bair, Kolter: A Simple and Effective Pruning Approach for Large Language "
        "Models, ICLR 2024",
        when="A trained model of language is to be pruned fast; `sparsegpt` also corrects what "
        "stays. In a small classifier of images it falls behind magnitude where much goes, by rows "
        "and by layer alike (`benchmarks/one_shot.py`). One cause: an input that is the same in "
        "all data, as the background of standardised images is, has a large norm and tells "
        "nothing.",
        memory="One number for every input of every layer.",
        flops="The forwards of the data.",
        published="Authors' results, LLaMA-2 7B/13B/70B, perplexity at 50 %: dense 5.12/4.57/3.12, "
        "magnitude 14.89/6.37/4.98, Wanda 6.42/5.56/3.98",
        departs="Norms are taken in the unpruned model, and the layer's budget is met exactly: "
        "where it does not divide by the rows, the first rows keep one weight more. Of equals the "
        "first stays; the public code's stable sort lets it go. The variant of that code, which "
        "searches each row's sparsity, is left out.",
    )

    def __post_init__(self) -> None:
        if self.per not in PER:
            raise ConfigError(f"Wanda: per must be one of {', '.join(PER)}; got {self.per!r}")

    def measured(self, calibration: Calibration) -> Score:
        """The same score with the norms of the calibration's layers; ConfigError without data,
        MisfitError where rows as units are compared within rows."""
        for layer in calibration.layers:
            reason = misfit(self.per, layer.pattern, layer.shape)
            if reason is not None:
                raise MisfitError(f"layer {layer.name!r}: score {reason}")
        return _Measured(self, squares_of(calibration, "score 'wanda'"))


@dataclass(frozen=True, eq=False)
class _Measured:
    """Wanda with the squared norms (groups, in) of every layer's inputs."""

    wanda: Wanda
    squares: Mapping[str, Tensor]
    needs_gradient: ClassVar[bool] = False

    def __call__(self, layer: View) -> Tensor:
        if layer.name not in self.squares:
            raise StateError(f"layer {layer.name!r}: its inputs were not measured")
        scores = products(wide(layer.weight), self.squares[layer.name])
        return in_row(scores) if self.wanda.per == "row" else scores


def squares_of(calibration: Calibration, asker: str) -> dict[str, Tensor]:
    """Layer name -> (groups, in) squared norms of its inputs over the data; ConfigError without."""
    if calibration.batches is None:
        raise ConfigError(f"{asker} measures activations: give data, batches of inputs")
    names = {layer.name for layer in calibration.layers}
    weights = [w for w in find_weights(calibration.model) if w.name in names]
    return input_squares(calibration.model, weights, calibration.batches)


def misfit(per: str, pattern: Pattern, shape: Shape) -> str | None:
    """Why units cannot be compared so: whole rows are all alike in places within the row."""
    if per != "row" or math.prod(shape[1:]) < 2 or not is_whole_rows(pattern, shape):
        return None
    return (
        f"wanda compares within each row, and the units of pattern {pattern} are whole rows, which "
        "are all alike then: take per='layer'"
    )


def products(weight: Tensor, squares: Tensor) -> Tensor:
    """|w| * ||x|| in the weight's shape (out, in, *kernel); squares: (groups, in of a group)."""
    norms = squares.sqrt().to(weight)
    rows = weight.flatten(1).abs().view(len(norms), -1, norms.shape[1])
    return (rows * norms[:, None]).view(weight.shape)


def in_row(scores: Tensor) -> Tensor:
    """Each score's place within its row: 1 for the best, 1 / in for the last; of equals the first
    stands higher. NaN stays.

    >>> in_row(torch.tensor([[5., 7., 5., 9.]])).tolist()
    [[0.5, 0.75, 0.25, 1.0]]
    """
    rows = scores.flatten(1)
    order = rows.argsort(dim=1, descending=True, stable=True)
    inputs = rows.shape[1]
    places = torch.arange(inputs, 0, -1, device=rows.device, dtype=scores.dtype) / max(1, inputs)
    ranks = torch.empty_like(rows).scatter_(1, order, places.expand_as(rows))
    return ranks.masked_fill(rows.isnan(), torch.nan).view(scores.shape)


SCORES.register("wanda")(Wanda())
