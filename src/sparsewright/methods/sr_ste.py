"""SR-STE: dense weights of which the model computes with the best, gradients straight through.

Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, "Learning N:M fine-grained structured sparse neural
networks from scratch", ICLR 2021.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Layer
from ..facts import Facts
from . import METHODS
from ._latent import best_of, by_size, check_not_below, full_table, gradient_of


@METHODS.register("sr_ste")
@dataclass(frozen=True)
class SRSTE:
    """Compute with the largest weights of every group, and let the gradient reach all; absent
    weights decay, so that they seldom return.

    penalty: lambda, of absent weights; 0 is the plain straight-through estimator (STE). It is added
    to the gradient, so the optimizer's momentum sees it. start: steps with all weights, before the
    first mask; the paper has none. Any pattern will do.

    >>> SRSTE().due(0)
    True
    """

    penalty: float = 2e-4
    start: int = 0
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="Zhou, Ma, Zhu, Liu, Zhang, Yuan, Sun, Li, “Learning N:M fine-grained structured "
        "sparse neural networks from scratch”, ICLR 2021.",
        when="For N:M patterns trained from scratch in one run. At high unstructured sparsity a "
        "method that drops and grows (RigL) trains with less memory.",
        memory="The latent weights, dense, beside the weights; dense gradients and optimizer "
        "state.",
        flops="Training 2 f_S + f_D a step (the weights' gradient is dense); inference f_S.",
        published="ResNet-50 on ImageNet, top-1: 77.0 % at 2:4, 76.4 % at 2:8 (the authors' "
        "README).",
        departs=(
            "The paper has N:M alone; here any pattern takes part. Groups of N:M lie along the "
            "input channels, as in the code's version for hardware (NHWC); its plain version takes "
            "them in the order of the kernel. The public code's sparse Linear forgets its bias; no "
            "layer's forward is touched here."
        ),
    )

    def __post_init__(self) -> None:
        check_not_below("SRSTE", 0, penalty=self.penalty, start=self.start)

    def bind(self, steps: int | None) -> SRSTE:
        return self

    def begin(self, layer: Layer) -> Tensor:
        return full_table(layer) if self.start > 0 else self._best(layer)

    def due(self, step: int) -> bool:
        return True

    def update(self, layer: Layer, step: int) -> None:
        """The mask follows the weights, so it is chosen after every step."""

    def before_step(self, layer: Layer, step: int) -> None:
        if self.penalty:
            gradient_of(layer).add_(layer.weight * layer.absent, alpha=self.penalty)

    def after_step(self, layer: Layer, step: int) -> Tensor | None:
        return self._best(layer) if step + 1 >= self.start else None

    def _best(self, layer: Layer) -> Tensor:
        return best_of(layer, by_size(layer), layer.keep)
