"""`sparsewright bench model`: whole sparse models, deployed, beside every other way to run them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..layouts import FP32
from ..measure.peers import Case
from ..patterns import as_pattern
from .bench_cell import Candidate
from .bench_layer import deploys, misfit
from .bench_models import MODELS


@dataclass(frozen=True)
class ModelCell:
    """What is measured: a model of the table, its zeros, a batch, how packed values are stored."""

    name: str
    pattern: str
    sparsity: float
    batch: int
    values: str = FP32

    @property
    def unit(self) -> str:
        return MODELS[self.name].unit

    def misfit(self) -> str | None:
        model = MODELS[self.name]
        with torch.device("meta"):
            return misfit(model.build(1), self.pattern, model.dense)

    def make(self) -> tuple[nn.Module, Tensor]:
        return MODELS[self.name].make(self.batch, self.sparsity, self.pattern)


def model_cells(
    patterns: Sequence[str] = ("unstructured",),
    sparsities: Sequence[float] = (0.9,),
    batches: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
    values: Sequence[str] = (FP32,),
) -> Iterator[ModelCell]:
    """The models of these names, by default all of the table; without `batches`, each at its own.

    UnknownNameError if the table has no such model.
    """
    for name in MODELS.names() if names is None else names:
        model = MODELS[name]
        for pattern in patterns:
            own = as_pattern(pattern).sparsity
            for sparsity in sparsities if own is None else (own,):
                for batch in batches or model.batches:
                    for kept in values:
                        yield ModelCell(name, pattern, sparsity, batch, kept)


def candidates(case: Case, seconds: float) -> list[Candidate]:
    """Sparsewright's: what `deploy` makes of the model."""
    return deploys(case, seconds)
