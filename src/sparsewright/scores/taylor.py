"""Taylor, by weights: (sum over a unit of g * w)^2, the squared change of the loss if the unit went
(Molchanov, Mallya, Tyree, Frosio, Kautz 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..calibration import Calibration
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._gradients import gradients, mean
from ._measured import FoundUnits, ToMeasure, dense

FORMS = ("squared", "absolute")


@dataclass(frozen=True)
class Taylor(ToMeasure):
    """(sum of g * w over the unit)^2, the mean over the batches of one value for each.

    The sum comes first: parts of a filter that cancel are worth nothing together. form: "squared",
    or "absolute" for |sum of g * w|. Below a norm in training mode, which undoes the scale of a
    filter, the sum is 0 for every filter: measure in evaluation mode, or by "taylor_activation".

    >>> Taylor("cubed")
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: score Taylor: form must be squared or absolute; got 'cubed'
    """

    form: str = "squared"
    facts: ClassVar[Facts] = Facts(
        source="Molchanov, Mallya, Tyree, Frosio, Kautz: Importance Estimation for Neural Network "
        "Pruning. CVPR 2019.",
        when="For filters and neurons of a trained network, a few at a time with training between. "
        "For many single weights at once magnitude was reported to be the better one "
        "(Evci et al. 2020).",
        memory="One dense gradient of every layer, and a number for every unit.",
        flops="A dense forward and backward (3 f_D) for every batch.",
        published="none verified",
        departs="Scores are taken on batches in one go, while the paper averages them over the "
        "steps of training between prunings; gates after a norm are what taylor_activation "
        "stands for. A global ranking compares units by their score over their weights.",
    )

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise ConfigError(f"score Taylor: form must be {' or '.join(FORMS)}; got {self.form!r}")

    def measured(self, calibration: Calibration) -> FoundUnits:
        """ConfigError without a loss; StateError for a layer that the loss does not depend on."""
        layers = calibration.layers

        def each() -> Iterator[list[Tensor]]:
            for found in gradients(calibration, calibration.losses(), self):
                sums = [
                    layer.pattern.fold(dense(layer, layer.weight) * gradient)
                    for layer, gradient in zip(layers, found, strict=True)
                ]
                yield [s.square() if self.form == "squared" else s.abs() for s in sums]

        tables = mean(each())
        return FoundUnits({y.name: table for y, table in zip(layers, tables, strict=True)})


SCORES.register("taylor")(Taylor())
