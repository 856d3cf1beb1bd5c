"""AutoSparse: a learned threshold without regulariser, and gradients of zeroed weights that fade.

Kundu, Mellempudi, Vooturi, Kaul, Dubey, "AutoSparse: towards automated sparse training of deep
neural networks", arXiv:2304.06941, 2023.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..facts import Facts
from . import METHODS
from .soft_threshold import STR

STEEP = 6.0
"""The sigmoid falls from sigmoid(6) to sigmoid(-6) over the run."""


@METHODS.register("autosparse")
@dataclass(frozen=True)
class AutoSparse(STR):
    """STR without decay of its threshold, where a weight below it gets alpha times its gradient,
    and alpha falls to 0 at `end` (gradient annealing).

    alpha: at first, in [0, 1]; larger leaves more weights a way back. initial, rate, momentum: of
    the layer's s as for STR, decay 0.

    >>> annealed = AutoSparse(end=100)
    >>> [round(annealed.leak(t), 4) for t in (0, 25, 50, 75, 100)]
    [0.75, 0.7144, 0.375, 0.1098, 0.0]
    """

    initial: float = -5.0
    decay: float = 0.0
    momentum: float = 0.0
    alpha: float = 0.75
    facts: ClassVar[Facts] = Facts(
        source="Kundu, Mellempudi, Vooturi, Kaul, Dubey, “AutoSparse: towards automated sparse "
        "training of deep neural networks”, arXiv:2304.06941, 2023.",
        when="As for STR, where weights that fell below the threshold early should be able to "
        "return.",
        memory="As STR: the latent weights beside the weights, and one number of each layer.",
        flops="Training 2 f_S + f_D a step while alpha is above 0, f_S by what the threshold "
        "leaves; 3 f_S after the cut; inference f_S.",
        published="The authors' abstract: 2 times fewer training and 7 times fewer inference FLOPs "
        "for ResNet-50 on ImageNet at 80 % sparsity. Its tables: none verified.",
        departs="No public code was found. The curve of alpha is our reading, not checked against "
        "the paper's formula: alpha times the larger of half a cosine and a sigmoid from 6 to -6, "
        "0 at `end`. So are the values of `alpha` and `initial`, and that what alpha lets through "
        "moves the threshold too. At `end` the largest weights are kept, exactly as many as asked.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.alpha <= 1:
            raise ConfigError(f"method AutoSparse: alpha must be in [0, 1]; got {self.alpha}")

    def leak(self, step: int) -> float:
        assert self.end is not None, "bind() comes first"
        if step >= self.end:
            return 0.0
        over = step / self.end
        cosine = 0.5 * (1 + math.cos(math.pi * over))
        sigmoid = 1 / (1 + math.exp(STEEP * (2 * over - 1)))
        return self.alpha * max(cosine, sigmoid)
