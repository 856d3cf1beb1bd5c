"""Soft movement pruning: keep the units whose score is above a threshold that rises.

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
from ..schedules import Cubic
from . import METHODS
from ._latent import UntilCut, best_of, check_not_below, gradient_of
from ._learned import By, check_learning, descend, recall
from .movement import SCORES, first_step, learn_scores, slope_of_scores

LEAST = 0.005
"""The part of a matrix that the threshold leaves at least, as in the public code."""


@METHODS.register("soft_movement")
@dataclass(frozen=True)
class SoftMovement(UntilCut):
    """Learn scores as movement pruning does, and compute with the units whose sigmoid(score) is
    above a rising threshold; at `end` those of the highest scores are kept.

    start: step at which the threshold leaves 0, by default a tenth of the run; it rises on a cubic
    ramp to `threshold` at `end`. penalty: lambda, of the mean sigmoid(score) of a layer; it grows
    with the threshold. rate, by: learning rate of the scores and how they are stepped.

    >>> ramp = SoftMovement(start=0, end=100)
    >>> [round(ramp.threshold_at(t), 4) for t in (0, 25, 50, 100)]
    [0.0, 0.0578, 0.0875, 0.1]
    """

    start: int | None = None
    threshold: float = 0.1
    penalty: float = 10.0
    rate: float = 1e-2
    by: By = "adam"
    facts: ClassVar[Facts] = Facts(
        source="Sanh, Wolf, Rush, “Movement pruning: adaptive sparsity by fine-tuning”, NeurIPS "
        "2020.",
        when="As movement pruning, at the highest sparsities, in runs long enough for the scores "
        "to part.",
        memory="The latent weights, a score of every unit and two numbers of Adam for each beside "
        "the weights; dense gradients and optimizer state.",
        flops="Training 2 f_S(t) + f_D a step, by what the threshold leaves; 3 f_S after the cut; "
        "inference f_S.",
        published="BERT-base with distillation, SQuAD with 3 % of the weights: 72.7 / 82.3 "
        "(EM / F1), beside 67.5 / 78.0 with the hard form (the authors' README).",
        departs="The paper's sparsity is what the threshold leaves; here the highest scores are "
        "kept at `end`, exactly as many as asked, and kept units that were below the threshold "
        "start anew from 0. Until then the mask reports all weights as present. `penalty` has a "
        "default of our own, and is of each layer's mean; so have `threshold`, `start` and `end` "
        "(the public code counts in warm-up steps, once before the ramp and twice after it).",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning("SoftMovement", self.rate, self.by)
        check_not_below("SoftMovement", 0, start=self.start, penalty=self.penalty)
        if not 0 < self.threshold < 1:
            raise ConfigError(
                f"method SoftMovement: threshold must be in (0, 1); got {self.threshold}"
            )

    def bind(self, steps: int | None) -> SoftMovement:
        bound = super().bind(steps)
        assert bound.end is not None
        return replace(bound, start=first_step("SoftMovement", self.start, bound.end, steps))

    def threshold_at(self, step: int) -> float:
        """From 0 to `threshold` on a cubic ramp."""
        assert self.end is not None, "bind() comes first"
        if step >= self.end:
            return self.threshold
        return Cubic(0.0, self.threshold, begin=self.start or 0, end=self.end)(step)

    def prepare(self, layer: Layer) -> None:
        learn_scores(layer, self.by)

    def form(self, layer: Layer, step: int) -> None:
        layer.weight.mul_(self._open(layer, step, recall(layer, SCORES).sigmoid()))

    def chain(self, layer: Layer, step: int) -> None:
        share = recall(layer, SCORES).sigmoid()
        scale = self.penalty * self.threshold_at(step) / self.threshold
        pull = (1 - share).mul_(share).mul_(scale / max(1, share.numel()))
        is_open = self._open(layer, step, share)
        descend(layer, SCORES, slope_of_scores(layer).add_(pull), self.rate)
        gradient_of(layer).mul_(is_open)

    def importance(self, layer: Layer) -> Tensor:
        return recall(layer, SCORES)

    def _open(self, layer: Layer, step: int, share: Tensor) -> Tensor:
        """1 in the weight's shape where `share`, sigmoid(score), is above the threshold, or of the
        least that stays; else 0."""
        above = torch.gt(share, self.threshold_at(step), out=torch.empty_like(share))
        least = math.ceil(LEAST * share.numel())
        if int(above.count_nonzero()) < least:
            scores = recall(layer, SCORES).view(1, -1)
            above = best_of(layer, scores, least).view_as(above).to(above.dtype)
        return layer.pattern.unfold(above, layer.shape)
