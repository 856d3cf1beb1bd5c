"""Taylor, by weights: (sum over a unit of g * w)^2, the squared change of the loss if the unit went
(Molchanov, Mallya, Tyree, Frosio, Kautz 2019)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..calibration import Calibration
from ..errors import ConfigError, StateError
from ..facts import Facts
from . import SCORES
from ._gradients import gradients, mean
from ._measured import FoundUnits, ToMeasure, dense

CANCELLED = 1e-3
"""Sums this much smaller than their parts are rounding and a norm's eps: those of parts of random
signs are smaller only where units have a million weights."""
FORMS = ("squared", "absolute", "parts")


@dataclass(frozen=True)
class Taylor(ToMeasure):
    """(sum of g * w over the unit)^2, the mean over the batches of one value for each.

    The sum comes first: parts of a filter that cancel are worth nothing together. form: "squared",
    "absolute" for |sum of g * w|, or "parts" for the paper's sum of (g * w)^2, in which nothing
    cancels. Below a norm in training mode, which undoes the scale of a filter, the sum is 0 for
    every filter, which is an error: measure in evaluation mode, or by "taylor_activation".

    >>> Taylor("cubed")
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: score Taylor: form must be one of squared, absolute, parts;
    got 'cubed'
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
            raise ConfigError(
                f"score Taylor: form must be one of {', '.join(FORMS)}; got {self.form!r}"
            )

    def measured(self, calibration: Calibration) -> FoundUnits:
        """ConfigError without a loss; StateError for a layer that the loss does not depend on, or
        whose units all cancel, as filters below a norm in training mode do."""
        layers = calibration.layers
        seen = {layer.name: (0.0, 0.0) for layer in layers}  # sizes of the parts, and of the sums

        def each() -> Iterator[list[Tensor]]:
            for found in gradients(calibration, calibration.losses(), self):
                tables = []
                for layer, gradient in zip(layers, found, strict=True):
                    change = dense(layer, layer.weight) * gradient
                    if self.form == "parts":
                        tables.append(layer.pattern.fold(change.square()))
                        continue
                    sums = layer.pattern.fold(change)
                    parts, whole = seen[layer.name]
                    parts += float(change.abs().sum())
                    seen[layer.name] = parts, whole + float(sums.abs().sum())
                    tables.append(sums.square() if self.form == "squared" else sums.abs())
                yield tables

        tables = mean(each())
        for name, (parts, whole) in seen.items():
            if parts > 0 and whole < CANCELLED * parts:
                raise StateError(
                    f"layer {name!r}: score {self} is 0 but for rounding, as w * g cancels in "
                    "every unit: a norm in training mode undoes the scale of a filter before it. "
                    "Measure in evaluation mode (model.eval()), or by score 'taylor_activation'"
                )
        return FoundUnits({y.name: table for y, table in zip(layers, tables, strict=True)})


SCORES.register("taylor")(Taylor())
