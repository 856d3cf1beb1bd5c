"""L0 regularisation: random gates that are often exactly 0 or 1, and a price on those not 0.

Louizos, Welling, Kingma, "Learning sparse neural networks through L0 regularization", ICLR 2018.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor

from ..core import Layer
from ..errors import ConfigError
from ..facts import Facts
from . import METHODS
from ._drop_grow import check_option
from ._latent import UntilCut, check_not_below, fold, gradient_of, is_cut
from ._learned import By, check_learning, descend, learn, recall

LOG_ALPHA, GATE, SLOPE = "log_alpha", "gate", "slope"
GAMMA, ZETA, BETA = -0.1, 1.1, 2 / 3
"""The hard concrete distribution: how far it is stretched, and its temperature."""
SHIFT = BETA * math.log(-GAMMA / ZETA)
SPREAD = 0.01
LOWEST = 1e-6
"""Uniform draws lie in [LOWEST, 1 - LOWEST], as in the public code."""
LIMIT = math.log(1e2)
"""|log alpha| is held within, as in the public code."""
Of = Literal["unit", "input"]
OF: tuple[str, ...] = get_args(Of)


def stretched(share: Tensor) -> tuple[Tensor, Tensor]:
    """The gate of a concrete variable in (0, 1), and the part of a slope that passes the clip.

    >>> stretched(torch.tensor([0.01, 0.5, 0.99]))
    (tensor([0.0000, 0.5000, 1.0000]), tensor([0.0000, 1.2000, 0.0000]))
    """
    wide = (share * (ZETA - GAMMA)).add_(GAMMA)
    inside = torch.gt(wide, 0, out=torch.empty_like(wide))  # a number: so it is multiplied faster
    inside.mul_(torch.lt(wide, 1, out=torch.empty_like(wide)))
    return wide.clamp_(0, 1), inside.mul_(ZETA - GAMMA)


def resting_gate(log_alpha: Tensor) -> tuple[Tensor, Tensor]:
    """The gate without chance, and its derivative by log alpha.

    >>> resting_gate(torch.tensor([-3.0, -2.0, 0.0, 2.0]))[0]
    tensor([0.0000, 0.0430, 0.5000, 0.9570])
    """
    share = log_alpha.sigmoid()
    gate, passed = stretched(share)
    return gate, passed.mul_(share).mul_(1 - share)


def drawn_gate(log_alpha: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor]:
    """The gate of uniform draws, and its derivative by log alpha."""
    logit = uniform.log().sub_((-uniform).log1p_())
    share = logit.add_(log_alpha).div_(BETA).sigmoid_()
    gate, passed = stretched(share)
    return gate, passed.mul_(share).mul_(1 - share).div_(BETA)


def chance(log_alpha: Tensor) -> Tensor:
    """P(gate != 0).

    >>> chance(torch.tensor([-3.0, -2.0, 0.0, 2.0]))
    tensor([0.1976, 0.4010, 0.8318, 0.9734])
    """
    return (log_alpha - SHIFT).sigmoid_()


@METHODS.register("l0")
@dataclass(frozen=True)
class L0(UntilCut):
    """Multiply weights by random hard concrete gates and pay for every gate that is not 0; at
    `end` the units of the largest |w| * P(gate != 0) are kept.

    penalty: of the expected number of weights that are not 0, added to the loss (the paper's lambda
    / N, N the size of the training set). of: a gate for each "unit" of the pattern, or for each
    "input" of a Linear or input channel. droprate: 1 - the first gates' sigmoid(log alpha). rate,
    by: learning rate of log alpha, and how it is stepped.

    >>> L0(end=100).due(100)
    True
    """

    penalty: float = 1e-6
    of: Of = "unit"
    droprate: float = 0.5
    rate: float = 1e-2
    by: By = "adam"
    facts: ClassVar[Facts] = Facts(
        source="Louizos, Welling, Kingma, “Learning sparse neural networks through L0 "
        "regularization”, ICLR 2018.",
        when="To learn which inputs or channels a small network can do without, in a long run: "
        "the gates' noise slows training. Magnitude is the simpler choice elsewhere.",
        memory="The latent weights and, of every gate, log alpha, two numbers of Adam, the last "
        "gate and its slope beside the weights.",
        flops="Training 3 f_D until the cut, 3 f_S after it; inference f_S.",
        published="LeNet-300-100 on MNIST, left with 266-88-33 neurons: 1.6 % error, as Evci et "
        "al. (RigL, ICML 2020) quote it.",
        departs="The paper's sparsity is what the gates leave; here it is cut at `end` to exactly "
        "what was asked, the gates' last values are multiplied into the weights, and no gate is "
        "left. Until then the mask reports all weights as present. One draw of the gates serves "
        "all samples of a step, as by default in the public code. The paper's L2 term is left to "
        "the optimizer's weight decay, and the public code's moving average of the weights, for "
        "tests, to the loop. Gates are of the pattern's units unless of='input' (the public "
        "code's). `penalty`, `rate`, `by` and `end` have defaults of our own.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_learning("L0", self.rate, self.by)
        check_option("L0", "of", self.of, OF)
        check_not_below("L0", 0, penalty=self.penalty)
        if not 0 < self.droprate < 1:
            raise ConfigError(f"method L0: droprate must be in (0, 1); got {self.droprate}")

    def prepare(self, layer: Layer) -> None:
        shape = (layer.groups, layer.units) if self.of == "unit" else (layer.shape[1],)
        middle = math.log((1 - self.droprate) / self.droprate)
        noise = torch.randn(shape, generator=layer.generator) * SPREAD
        learn(layer, LOG_ALPHA, (middle + noise).to(layer.weight.device), self.by)
        self._remember(layer, *resting_gate(layer.memory[LOG_ALPHA]))

    def before_forward(self, layer: Layer, step: int) -> None:
        if is_cut(layer):
            return
        log_alpha = recall(layer, LOG_ALPHA)
        drawn = torch.rand(log_alpha.shape, generator=layer.generator).to(log_alpha)
        self._remember(layer, *drawn_gate(log_alpha, drawn.clamp(LOWEST, 1 - LOWEST)))
        layer.weight.copy_(layer.memory["latent"] * self._spread(layer, layer.memory[GATE]))

    def form(self, layer: Layer, step: int) -> None:
        self._remember(layer, *resting_gate(recall(layer, LOG_ALPHA)))
        layer.weight.mul_(self._spread(layer, layer.memory[GATE]))

    def chain(self, layer: Layer, step: int) -> None:
        gradient, log_alpha = gradient_of(layer), recall(layer, LOG_ALPHA)
        slope = self._gathered(layer, gradient * layer.weight).mul_(recall(layer, SLOPE))
        gradient.mul_(self._spread(layer, recall(layer, GATE)))
        share, each = chance(log_alpha), layer.numel / max(1, log_alpha.numel())
        price = (self.penalty * each * share).mul_(1 - share)
        descend(layer, LOG_ALPHA, slope.add_(price), self.rate)
        log_alpha.clamp_(-LIMIT, LIMIT)

    def importance(self, layer: Layer) -> Tensor:
        share = self._spread(layer, chance(recall(layer, LOG_ALPHA)))
        return fold(layer, layer.weight.detach().abs() * share)

    def _remember(self, layer: Layer, gate: Tensor, slope: Tensor) -> None:
        layer.memory[GATE], layer.memory[SLOPE] = gate, slope

    def _spread(self, layer: Layer, gates: Tensor) -> Tensor:
        """A number of every gate -> one of every weight, in its shape or broadcast to it."""
        if self.of == "unit":
            return layer.pattern.unfold(gates, layer.shape)
        return gates.view(1, -1, *[1] * (len(layer.shape) - 2))

    def _gathered(self, layer: Layer, weights: Tensor) -> Tensor:
        """A number of every weight -> sums of every gate."""
        if self.of == "unit":
            return fold(layer, weights)
        return weights.float().transpose(0, 1).flatten(1).sum(dim=1)
