"""Movement pruning: keep the weights that move away from zero.

Sanh, Wolf, Rush, "Movement pruning: adaptive sparsity by fine-tuning", NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer
from ..errors import ConfigError
from ..facts import Facts
from ..kernels.masking import zero_
from ..schedules import Cubic
from . import METHODS
from ._latent import best_of, check_not_below, end_within, fold, full_table, gradient_of
from ._learned import By, check_learning, descend, learn, recall

SCORES = "scores"
WARM = 0.1
"""The part of a run in which nothing is pruned yet, unless `start` says when that is over."""


def learn_scores(layer: Layer, by: By) -> None:
    """Scores S of all units, 0 at first."""
    start = torch.zeros(layer.groups, layer.units, device=layer.weight.device)
    learn(layer, SCORES, start, by)


def slope_of_scores(layer: Layer) -> Tensor:
    """dL/dS = dL/dW' * W straight through, summed in each unit: absent weights take part too."""
    return fold(layer, gradient_of(layer) * layer.weight)


def first_step(name: str, start: int | None, end: int, steps: int | None) -> int:
    """The step at which the ramp to `end` begins; ConfigError if that comes later."""
    begin = min(end, math.floor(WARM * (steps or 0))) if start is None else start
    if not 0 <= begin <= end:
        raise ConfigError(f"method {name}: start must be in [0, end={end}]; got {start}")
    return begin


@METHODS.register("movement")
@dataclass(frozen=True)
class Movement:
    """Learn a score of every unit, which rises as its weights move away from zero, and keep the
    best, fewer and fewer on a cubic ramp.

    start: step at which the ramp begins, by default a tenth of the run. end: step from which
    `layer.keep` units of every group are kept, by default three quarters; the scores go on
    learning. rate: learning rate of the scores; by "sgd" it changes no mask, since ranks are all
    that counts. by: how they are stepped, "sgd" or "adam".

    >>> ramp = Movement(start=0, end=100)
    >>> [ramp.kept(1000, 100, t) for t in (0, 10, 50, 100)]
    [1000, 757, 213, 100]
    """

    start: int | None = None
    end: int | None = None
    rate: float = 1e-2
    by: By = "sgd"
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="Sanh, Wolf, Rush, “Movement pruning: adaptive sparsity by fine-tuning”, NeurIPS "
        "2020.",
        when="To fine-tune a pretrained model at high sparsity: what matters is how weights "
        "change, not how large pretraining left them. From scratch magnitude serves better.",
        memory="The latent weights and a score of every unit beside the weights; dense gradients "
        "and optimizer state.",
        flops="Training 2 f_S(t) + f_D a step, with the sparsity of that step; inference f_S.",
        published="BERT-base with distillation, SQuAD with 10 % of the weights: 75.6 / 84.3 "
        "(EM / F1), beside 70.2 / 80.1 by magnitude and 80.4 / 88.1 dense (the authors' README).",
        departs="Scores are stepped by SGD, as the paper's sum over steps has it; the public code "
        "uses Adam (by='adam'). Units of larger patterns have one score. The ramp rounds up where "
        "the code rounds down, and is per layer: every group keeps its part. `start` and `end`, "
        "parts of the run, have defaults of our own; the public code counts in its 5400 warm-up "
        "steps, once before the ramp and twice after it.",
    )

    def __post_init__(self) -> None:
        check_learning("Movement", self.rate, self.by)
        check_not_below("Movement", 0, start=self.start, end=self.end)

    def bind(self, steps: int | None) -> Movement:
        """Raises ConfigError if the run ends before the ramp does."""
        end = end_within("Movement", self.end, steps)
        return replace(self, start=first_step("Movement", self.start, end, steps), end=end)

    def begin(self, layer: Layer) -> Tensor:
        learn_scores(layer, self.by)
        return full_table(layer)

    def due(self, step: int) -> bool:
        return True

    def update(self, layer: Layer, step: int) -> Tensor:
        return best_of(layer, recall(layer, SCORES), self.kept(layer.units, layer.keep, step))

    def kept(self, units: int, keep: int, step: int) -> int:
        """Units present in every group of `units` at a step, on the way down to `keep`."""
        assert self.start is not None, "bind() comes first"
        assert self.end is not None, "bind() comes first"
        if step >= self.end:
            return keep
        return math.ceil(Cubic(units, keep, begin=self.start, end=self.end)(step) - 1e-9)

    def before_step(self, layer: Layer, step: int) -> None:
        descend(layer, SCORES, slope_of_scores(layer), self.rate)
        zero_(gradient_of(layer), layer.absent)

    def after_step(self, layer: Layer, step: int) -> None:
        """Absent weights are put to 0, and keep their latent values."""
