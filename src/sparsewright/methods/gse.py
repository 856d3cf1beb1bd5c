"""GSE, guided stochastic exploration: grow by gradient, of a random sample of the absent weights.

Heddes, Srinivasa, Givargis, Nicolau, "Always-sparse training by growing connections with guided
stochastic exploration", 2024, whose sample is as large as the network: then no step, not even that
of an update, takes more time or memory than the present weights do.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from ..core import Layer
from ..errors import ConfigError
from ..facts import Facts
from . import METHODS
from .rigl import RigL


@METHODS.register("gse")
@dataclass(frozen=True)
class GSE(RigL):
    """RigL with the gradients of a sample: drop by magnitude, grow the steepest of the sampled.

    sample: absent units whose gradients are looked at, in every group, as a part of those kept
    (the paper's gamma, 1). They are drawn uniformly, the paper's first distribution; its two others
    ask for activations that masked storage has not. Other options as for RigL, but for
    exclude_dropped: the sample is of all that was not kept.

    >>> GSE(end=100).due(0), GSE().bind(steps=100).end
    (True, 75)
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Heddes, Srinivasa, Givargis, Nicolau, "Always-sparse training by growing '
            'connections with guided stochastic exploration", 2024'
        ),
        when=(
            "Instead of RigL where the layers are so large and so sparse that not even one dense "
            "gradient can be afforded."
        ),
        memory="At updates the gradients of the sample, as many as there are present weights.",
        flops="3 f_S a step, and at updates f_S more for the sample; inference f_S.",
        published="none verified",
        departs="Only the paper's uniform sampling; its other two need activations.",
    )
    sample: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.sample > 0:
            raise ConfigError(
                f"method GSE: sample (of the units kept) must be above 0; got {self.sample}"
            )
        if self.exclude_dropped:
            raise ConfigError(
                "method GSE: exclude_dropped must be False: the sample is of all that was not kept"
            )

    def reads_absent(self, layer: Layer, step: int) -> int:
        """The sample alone, at updates."""
        sampled = min(math.ceil(self.sample * layer.keep), layer.units - layer.keep)
        return sampled * layer.groups * layer.unit_size if self.due(step) else 0

    @property
    def sampled(self) -> float | None:
        return self.sample
