"""Top-KAST: compute with the largest weights, train a few more than those.

Jayakumar, Pascanu, Rae, Osindero, Elsen, "Top-KAST: Top-K always sparse training", NeurIPS 2020.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Layer
from ..errors import ConfigError
from ..facts import Facts
from ..kernels.masking import zero_, zeroed
from . import METHODS
from ._latent import best_of, by_size, check_not_below, gradient_of
from ._learned import recall
from ._timing import check_timing, is_due

TRAINED = "trained"
BEFORE = "before"


@METHODS.register("top_kast")
@dataclass(frozen=True)
class TopKAST:
    """Compute with the largest weights (the set A), and train those and some next in size (B), so
    that a weight outside can grow into the model.

    every: steps between new sets; 1 renews them after every step. extra: units of B besides A, as a
    part of A (the paper's M, if A has density D, is extra * D). penalty: of the exploration loss,
    w^2 / 2: times 1 on A, times 1 / D on the rest of B, 0 elsewhere.

    >>> [step for step in range(250) if TopKAST().due(step)]
    [0, 100, 200]
    """

    every: int = 100
    extra: float = 1.0
    penalty: float = 1e-4
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source="Jayakumar, Pascanu, Rae, Osindero, Elsen, “Top-KAST: Top-K always sparse "
        "training”, NeurIPS 2020.",
        when="For sparse training without dense gradients where masks should follow the weights' "
        "sizes. RigL explores farther, by gradients of all weights.",
        memory="Here two dense copies of the weights; by the definition only the weights of B, "
        "since those outside rest.",
        flops="Training 2 f_A + f_B a step, with f_A, f_B of a forward at A's and B's sparsity; "
        "inference f_A.",
        published="ResNet-50 on ImageNet, top-1: 74.76 % at 80 % sparsity, 70.42 % at 90 %, as "
        "Lasby et al. (SRigL, ICLR 2024) list it among their baselines.",
        departs=(
            "The sets may be renewed at every step (every=1); the default of 100 is reported to "
            "lose nothing. `extra` and `penalty` have defaults of our own: the paper's vary with "
            "the setting. Weights outside B are put back after every step, as the optimizer's "
            "momentum or weight decay would move them."
        ),
    )

    def __post_init__(self) -> None:
        check_timing("TopKAST", self.every, 0, None)
        check_not_below("TopKAST", 0, penalty=self.penalty)
        if not self.extra > 0:
            raise ConfigError(
                f"method TopKAST: extra (units of B besides A, as a part of A) must be above 0; "
                f"got {self.extra}"
            )

    def bind(self, steps: int | None) -> TopKAST:
        return self

    def begin(self, layer: Layer) -> Tensor:
        layer.memory[BEFORE] = layer.weight.detach().clone()
        return self._renew(layer)

    def due(self, step: int) -> bool:
        return is_due(step, self.every, 0, None)

    def update(self, layer: Layer, step: int) -> None:
        """The sets follow the weights, so they are chosen after a step."""

    def before_step(self, layer: Layer, step: int) -> None:
        gradient, outside = gradient_of(layer), ~self._inside(layer)
        zero_(gradient, outside)
        if self.penalty:
            trained = zeroed(layer.weight, outside)
            density = layer.keep / max(1, layer.units)
            pull = torch.where(layer.absent, trained / density, trained)
            gradient.add_(pull, alpha=self.penalty)

    def after_step(self, layer: Layer, step: int) -> Tensor | None:
        if step >= 0:  # before the first step values were drawn, not trained
            trained = layer.weight.where(self._inside(layer), recall(layer, BEFORE))
            layer.weight.copy_(trained)
            layer.memory["latent"].copy_(trained)
        layer.memory[BEFORE] = layer.weight.detach().clone()
        return self._renew(layer) if (step + 1) % self.every == 0 else None

    def reads_absent(self, layer: Layer, step: int) -> int:
        """What is in B and not in A."""
        return (self.trained(layer) - layer.keep) * layer.groups * layer.unit_size

    def trained(self, layer: Layer) -> int:
        """Units of B in every group."""
        more = math.ceil(self.extra * layer.keep - 1e-9)
        return min(layer.units, layer.keep + more)

    def _renew(self, layer: Layer) -> Tensor:
        """A's table; that of B is remembered."""
        sizes = by_size(layer)
        layer.memory[TRAINED] = best_of(layer, sizes, self.trained(layer))
        return best_of(layer, sizes, layer.keep)

    def _inside(self, layer: Layer) -> Tensor:
        return layer.pattern.unfold(recall(layer, TRAINED), layer.shape)
