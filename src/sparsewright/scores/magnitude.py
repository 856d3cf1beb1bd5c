"""Magnitude: |w| (Han, Pool, Tran, Dally 2015)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES
from ._wide import wide


@dataclass(frozen=True)
class Magnitude:
    """|w| of every weight, in the weight's shape."""

    facts: ClassVar[Facts] = Facts(
        source=(
            'Han, Pool, Tran, Dally, "Learning both weights and connections for efficient '
            'neural networks", NeurIPS 2015'
        ),
        when=(
            "For trained weights, and whenever nothing better is known: it needs no data. At "
            "initialisation it says little."
        ),
        memory="Nothing.",
        flops="None.",
        published=(
            "LeNet-300-100 on MNIST: 1.6 % error with 8.3 % of the weights (as tabulated "
            "in the repository of Dettmers, sparse_learning)"
        ),
        departs=(
            "The paper prunes below a quality factor times the standard deviation of the layer's "
            "weights; here the budget says how many go, by one threshold for each layer or, with "
            "allocate='global', for all. Biases and norms are never pruned. Among equals the first "
            "stay."
        ),
    )
    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        return wide(layer.weight).abs()


SCORES.register("magnitude")(Magnitude())
