"""Sparse variational dropout: every weight learns its noise, and those that are all noise go.

Molchanov, Ashukha, Vetrov, "Variational dropout sparsifies deep neural networks", ICML 2017.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Layer
from ..facts import Facts
from ..kernels.masking import zero_
from ..scores._wide import wide
from . import METHODS
from ._latent import UntilCut, check_not_below, fold, gradient_of, is_cut
from ._learned import By, check_learning, descend, learn, recall

LOG_VARIANCE, NOISE = "log_variance", "noise"
K1, K2, K3 = 0.63576, 1.87320, 1.48695
"""The paper's fit of the KL divergence from a log-uniform prior."""
TINY = 1e-8
LIMIT = 8.0
"""|log alpha| is clipped to this, as in code of Gale et al. 2019 after the authors' own."""


def log_alpha(weight: Tensor, log_variance: Tensor) -> Tensor:
    """log(sigma^2 / w^2), clipped to [-8, 8]."""
    power = weight.square().add_(TINY).log_()
    return torch.sub(log_variance, power, out=power).clamp_(-LIMIT, LIMIT)


def divergence(log_alpha: Tensor) -> Tensor:
    """The paper's approximation of KL(q || prior) of every weight, 0 at infinite noise.

    >>> divergence(torch.tensor([-3.0, 0.0, 3.0]))
    tensor([2.1156, 0.4312, 0.0254])
    """
    return K1 * (1 - (K2 + K3 * log_alpha).sigmoid()) + 0.5 * F.softplus(-log_alpha)


def slope_of_divergence(log_alpha: Tensor) -> Tensor:
    """Its derivative by log alpha; 0 where that is clipped."""
    share = (K3 * log_alpha).add_(K2).sigmoid_()
    slope = (-K1 * K3 * share).mul_(1 - share).sub_((-log_alpha).sigmoid_().mul_(0.5))
    return slope.mul_(log_alpha.abs().lt_(LIMIT))  # by 1 or 0: faster than by True or False


@METHODS.register("variational_dropout")
@dataclass(frozen=True)
class VariationalDropout(UntilCut):
    """Add to every weight noise whose size it learns, pulled towards more of it; at `end` the
    weights of the most signal beside their noise are kept.

    threshold: of log alpha = log(sigma^2 / w^2), above which a weight is 0 in evaluation. penalty:
    of the KL divergence summed over weights, added to the loss (1 / N in the paper's bound, N the
    size of the training set). warmup: steps over which the penalty rises from 0, by default half of
    those before `end`. initial: log sigma^2 at first. rate, by: learning rate of log sigma^2 and
    how it is stepped.

    >>> VariationalDropout().bind(steps=400).warmup
    150
    """

    threshold: float = 3.0
    penalty: float = 2e-5
    warmup: int | None = None
    initial: float = -10.0
    rate: float = 1e-2
    by: By = "adam"
    facts: ClassVar[Facts] = Facts(
        source="Molchanov, Ashukha, Vetrov, “Variational dropout sparsifies deep neural "
        "networks”, ICML 2017.",
        when="For small networks, where noise finds what can go. It takes long training, and twice "
        "the learned numbers; magnitude is the simpler choice elsewhere.",
        memory="The latent weights and, of every weight, log sigma^2, two numbers of Adam and the "
        "last noise beside the weights.",
        flops="Training 3 f_D until the cut, 3 f_S after it; inference f_S.",
        published="none verified",
        departs="One draw of every weight serves all samples of a step: the paper draws a layer's "
        "outputs instead (local reparameterisation), which has less variance and needs the layers' "
        "own forward. The paper's sparsity is what the threshold leaves; here the weights of the "
        "largest w^2 / sigma^2 are kept at `end`, exactly as many as asked, and noise ends there. "
        "Until then the mask reports all weights as present. `rate`, `penalty` and `warmup` have "
        "defaults of our own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning("VariationalDropout", self.rate, self.by)
        check_not_below("VariationalDropout", 0, penalty=self.penalty, warmup=self.warmup)

    def bind(self, steps: int | None) -> VariationalDropout:
        bound = super().bind(steps)
        assert bound.end is not None
        return bound if self.warmup is not None else replace(bound, warmup=bound.end // 2)

    def penalty_at(self, step: int) -> float:
        """A straight line from 0 to `penalty` over the warm-up."""
        return self.penalty * min(1.0, step / self.warmup) if self.warmup else self.penalty

    def prepare(self, layer: Layer) -> None:
        start = torch.full(layer.shape, self.initial, device=layer.weight.device)
        learn(layer, LOG_VARIANCE, start, self.by)
        layer.memory[NOISE] = torch.zeros_like(start)

    def before_forward(self, layer: Layer, step: int) -> None:
        if is_cut(layer):
            return
        noise = torch.randn(layer.shape, generator=layer.generator).to(layer.weight.device)
        layer.memory[NOISE] = noise
        layer.weight.copy_(layer.memory["latent"] + self._deviation(layer).mul_(noise))

    def form(self, layer: Layer, step: int) -> None:
        layer.memory[NOISE] = torch.zeros_like(recall(layer, NOISE))
        zero_(layer.weight, self._alpha(layer) >= self.threshold)

    def chain(self, layer: Layer, step: int) -> None:
        gradient, weight = gradient_of(layer), wide(layer.weight)  # a half holds no TINY
        pull = slope_of_divergence(self._alpha(layer)).mul_(self.penalty_at(step))
        slope = (gradient * recall(layer, NOISE)).mul_(self._deviation(layer)).div_(2).add_(pull)
        of_weight = (pull.mul_(2) * weight).div_(weight.square().add_(TINY))
        gradient.sub_(of_weight.to(gradient))
        descend(layer, LOG_VARIANCE, slope, self.rate)

    def importance(self, layer: Layer) -> Tensor:
        weight = layer.weight.detach().float()
        return fold(layer, weight.square() * (-recall(layer, LOG_VARIANCE)).exp())

    def _deviation(self, layer: Layer) -> Tensor:
        return (recall(layer, LOG_VARIANCE) / 2).exp_()

    def _alpha(self, layer: Layer) -> Tensor:
        return log_alpha(layer.weight.detach().float(), recall(layer, LOG_VARIANCE))
