"""OWL: layers with more outliers among |weight| * norm of input keep more (Yin et al. 2024)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..allocate import ALLOCATIONS
from ..calibration import Calibration
from ..core import Score
from ..errors import ConfigError
from ..facts import Facts
from ..scores._measured import dense
from ..scores.wanda import products, squares_of
from ._measured import Found, ToMeasure, solve


@dataclass(frozen=True)
class OWL(ToMeasure):
    """Densities in a window of 2 * window around the mean, in order of the part of outliers: those
    of A = |w| * norm of its input that exceed `outlier` times the mean of A.

    by: "block" pools the layers of a block, which are those whose names agree up to their first
    number ("model.layers.3"), as published; "layer" takes each by itself. The score that ranks
    weights is another matter: any does. Needs data.

    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.Linear(16, 8))
    >>> from sparsewright import prune
    >>> prune(model, 0.5, allocate="owl", data=[torch.randn(32, 8)]).sparsity
    0.5
    """

    window: float = 0.08
    outlier: float = 5.0
    by: str = "block"
    facts: ClassVar[Facts] = Facts(
        source="Yin, Wu, Zhang, Hsieh, Wang, Jia, Li, Liang, Pechenizkiy, Wang, Liu: Outlier "
        "Weighed Layerwise Sparsity (OWL): A Missing Secret Sauce for Pruning LLMs to High "
        "Sparsity. ICML 2024.",
        when="For trained models of language at 60 % sparsity and more, with any score.",
        memory="A number for every input of every layer, and one layer's A at a time.",
        flops="One dense forward (f_D) for every batch.",
        published="WikiText perplexity of LLaMA-7B at 70 %: Wanda 85.77 uniform, 24.55 with OWL; "
        "OPT-6.7B with SparseGPT is an exception: 20.29 uniform, 22.48 with OWL (the authors' "
        "repository).",
        departs="The mean that is preserved counts every block by its weights, so that the budget "
        "holds where blocks differ in size; shares beyond 0 or 1 are cut and the rest moved. The "
        "public code's variant for N:M with a window of whole numbers is left out.",
    )

    def __post_init__(self) -> None:
        if not 0 <= self.window < 0.5:
            raise ConfigError(f"allocation OWL: window must be in [0, 0.5); got {self.window}")
        if not self.outlier > 0:
            raise ConfigError(f"allocation OWL: outlier must be above 0; got {self.outlier}")
        if self.by not in ("block", "layer"):
            raise ConfigError(f"allocation OWL: by must be block or layer; got {self.by!r}")

    def measured(self, calibration: Calibration, score: Score) -> Ratios:
        """ConfigError without data, or for a layer whose inputs cannot be seen."""
        squares = squares_of(calibration, f"allocation {self}")
        blocks: dict[str, list[str]] = {}
        for layer in calibration.layers:
            name = layer.name
            blocks.setdefault(block_of(name) if self.by == "block" else name, []).append(name)
        layers = {layer.name: layer for layer in calibration.layers}
        ratios: dict[str, float] = {}
        for names in blocks.values():
            found = (products(dense(layers[n], layers[n].weight), squares[n]) for n in names)
            ratios |= dict.fromkeys(names, outlier_ratio(list(found), self.outlier))
        return Ratios(ratios, self.window)


@dataclass(frozen=True, eq=False)
class Ratios(Found[float]):
    """Sparsities by layers' outlier ratios, in percent.

    >>> found = Ratios({"a": 1.0, "b": 3.0}, window=0.08)({"a": (4, 4), "b": (4, 4)}, 0.7)
    >>> {name: round(s, 6) for name, s in found.items()}
    {'a': 0.78, 'b': 0.62}
    """

    window: float

    def shared(self, sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
        seen = [self.found[name] for name in sizes]
        low, high = min(seen, default=0.0), max(seen, default=0.0)
        scale = 2 * self.window / (high - low) if high > low else 0.0
        above = {name: (self.found[name] - low) * scale for name in sizes}
        wanted = (1.0 - sparsity) * sum(sizes.values())

        def held(shift: float) -> float:
            return math.fsum(size * _cut(above[name] + shift) for name, size in sizes.items())

        shift = solve(held, wanted, -2 * self.window, 1.0)
        return {name: 1.0 - _cut(above[name] + shift) for name in sizes}


def outlier_ratio(scores: Sequence[Tensor], times: float) -> float:
    """100 * the part of all entries that exceed `times` their mean.

    >>> import torch
    >>> outlier_ratio([torch.tensor([1., 1., 1.]), torch.tensor([97.])], 3.0)
    25.0
    """
    count = sum(one.numel() for one in scores)
    cut = times * sum(float(one.double().sum()) for one in scores) / max(1, count)
    return 100.0 * sum(int((one > cut).sum()) for one in scores) / max(1, count)


def block_of(name: str) -> str:
    """A layer's name up to its first number: the block of a model that counts them.

    >>> block_of("model.layers.3.mlp.up_proj"), block_of("head")
    ('model.layers.3', 'head')
    """
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else name


def _cut(density: float) -> float:
    return min(max(density, 0.0), 1.0)


ALLOCATIONS.register("owl")(OWL())
