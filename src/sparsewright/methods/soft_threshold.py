"""STR, soft threshold reparameterization: every layer learns the size below which weights are zero.

Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade, Farhadi, "Soft threshold weight
reparameterization for learnable sparsity", ICML 2020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer
from ..facts import Facts
from . import METHODS
from ._latent import UntilCut, by_size, check_not_below, gradient_of
from ._learned import check_learning, descend, learn, recall

THRESHOLD = "threshold"


@METHODS.register("str")
@dataclass(frozen=True)
class STR(UntilCut):
    """Compute with sign(w) * relu(|w| - sigmoid(s)), where every layer learns its s; at `end` the
    largest weights are kept.

    initial: s at first. decay: weight decay of s; while sigmoid(s) is 0, as it is at -3200 in
    float32, it alone moves s. rate: of s, as a factor on the weight's learning rate. momentum: of
    s. The first two defaults are of a run of 100 ImageNet epochs; in a short run s hardly moves
    with them: begin at -10 or so, and with a larger decay.

    >>> STR(end=100).due(100), STR().bind(steps=400).end
    (True, 300)
    """

    initial: float = -3200.0
    decay: float = 2.2517578e-5
    rate: float = 1.0
    momentum: float = 0.875
    facts: ClassVar[Facts] = Facts(
        source="Kusupati, Ramanujan, Somani, Wortsman, Jain, Kakade, Farhadi, “Soft threshold "
        "weight reparameterization for learnable sparsity”, ICML 2020.",
        when="To let training find how sparse each layer should be, in long runs. No sparsity can "
        "be dialled in: weight decay and `initial` decide how much is zero before the cut.",
        memory="The latent weights beside the weights, and one number of each layer.",
        flops="Training 3 f_S(t) a step, by what the threshold leaves at that step (f_D at "
        "first); 3 f_S after the cut; inference f_S.",
        published="ResNet-50 on ImageNet: 74.31 % top-1 at 90.23 % sparsity (the authors' README).",
        departs="The paper's sparsity is what the threshold leaves; here the largest weights are "
        "kept at `end`, exactly as many as asked. Weights below the threshold that are kept all "
        "the same start anew from 0. Until then the mask reports all weights as present. s is "
        "stepped by SGD; `momentum` and `end` have defaults of our own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        name = type(self).__name__
        check_learning(name, self.rate, momentum=self.momentum)
        check_not_below(name, 0, decay=self.decay)

    def leak(self, step: int) -> float:
        """The part of its gradient that a weight below the threshold gets."""
        return 0.0

    def prepare(self, layer: Layer) -> None:
        learn(layer, THRESHOLD, torch.full((), self.initial, device=layer.weight.device))

    def form(self, layer: Layer, step: int) -> None:
        threshold = recall(layer, THRESHOLD).sigmoid()
        weight = layer.weight.detach()
        above = weight.abs().sub_(threshold).relu_()
        weight.sign_().mul_(above)

    def chain(self, layer: Layer, step: int) -> None:
        gradient, s = gradient_of(layer), recall(layer, THRESHOLD)
        threshold = s.sigmoid()
        below = layer.weight.abs() <= threshold
        torch.where(below, gradient * self.leak(step), gradient, out=gradient)
        down = layer.weight.sign().mul_(gradient).float().sum()
        slope = -down * threshold * (1 - threshold)
        descend(layer, THRESHOLD, slope + self.decay * s, self.rate * layer.rate, self.momentum)

    def importance(self, layer: Layer) -> Tensor:
        return by_size(layer)
