"""DSR, dynamic sparse reparameterisation: one threshold for all layers, and budget that follows.

Mostafa, Wang, "Parameter efficient training of deep convolutional neural networks by dynamic sparse
reparameterization", ICML 2019.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Exchange, Layer, Score
from ..errors import ConfigError
from ..facts import Facts
from ..ranking import first_units, present_scores
from . import METHODS
from ._drop_grow import check_fraction
from ._interval import every_of, length_of
from ._redistribute import redistribute
from ._refill import refill
from ._timing import check_timing, is_due


@METHODS.register("dsr")
@dataclass(frozen=True)
class DSR:
    """Drop below one threshold in all layers, grow at random where most weights survived.

    every: steps between updates; None: 100, or a 25th of a shorter run. fraction: of all present
    weights, how many the threshold is to drop. threshold: the first one; after an update that
    dropped less than (1 - tolerance) of that number it is doubled, after one that dropped more
    than (1 + tolerance) halved. A unit of several weights is judged by the mean of |w|. Each layer
    gets of what all dropped a part in proportion to what it kept. end: by default that of the run.
    exclude_dropped: do not regrow at once what was just dropped. initial: score that picks the
    first mask.

    >>> dsr = DSR().bind(steps=1000)
    >>> dsr.every, dsr.due(0), dsr.due(40)
    (40, False, True)
    """

    published: ClassVar[int] = 100
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        source=(
            'Mostafa, Wang, "Parameter efficient training of deep convolutional neural networks '
            'by dynamic sparse reparameterization", ICML 2019'
        ),
        when=(
            "When nothing is known about how the sparsity should be shared out over the layers, "
            "and no gradient of an absent weight is to be had: the budgets find themselves. With "
            "a good allocation (erk) SET and RigL are steadier."
        ),
        memory="The mask and one number, the threshold.",
        flops=(
            "3 f_S a step; f_S changes while budget moves between layers, mostly upwards for "
            "convolutions."
        ),
        published=(
            "ResNet-50 on ImageNet: 73.3 % at 80 % sparsity, 71.6 % at 90 %, as quoted by Evci et "
            "al. 2020"
        ),
        departs=(
            "fraction is of the present weights; the paper gives a number of weights. The defaults "
            "of fraction, threshold and tolerance are this library's, and updates come every 100 "
            "steps unless told. A layer never loses its last unit. Layers whose pattern holds one "
            "count alone (N:M), or with a sparsity of their own, drop and grow among themselves. "
            "Frozen weights stay."
        ),
    )
    every: int | None = None
    fraction: float = 0.1
    threshold: float = 1e-3
    tolerance: float = 0.1
    end: int | None = None
    exclude_dropped: bool = False
    initial: str | Score = "random"

    def __post_init__(self) -> None:
        check_timing("DSR", 1 if self.every is None else self.every, 0, self.end)
        check_fraction("method DSR", self.fraction)
        if not self.threshold > 0:
            raise ConfigError(
                f"method DSR: threshold (of |w|, doubled and halved) must be above 0; got "
                f"{self.threshold}"
            )
        if not 0 <= self.tolerance < 1:
            raise ConfigError(f"method DSR: tolerance must be in [0, 1); got {self.tolerance}")

    def bind(self, steps: int | None) -> DSR:
        end = length_of("DSR", self.end, steps)
        return replace(self, end=end, every=every_of(self.every, self.published, end))

    def begin(self, layer: Layer) -> Tensor:
        layer.memory["threshold"] = torch.tensor(self.threshold, dtype=torch.float64)
        layer.memory["dropped"] = torch.tensor(0)
        return first_units(layer, self.initial)

    def due(self, step: int) -> bool:
        assert self.every is not None, "bind() comes first"
        return is_due(step, self.every, self.every, self.end)

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        trained = [layer for layer in layers if layer.weight.requires_grad]
        threshold = float(trained[0].memory["threshold"]) if trained else 0.0
        kept, below, present = {}, 0, 0
        for layer in trained:
            scores = present_scores(layer, "magnitude") / max(1, layer.unit_size)
            dropped = min(int((scores < threshold).sum()), max(0, len(scores) - 1))
            layer.memory["dropped"] = torch.tensor(dropped)
            kept[layer.name] = (len(scores) - dropped) * layer.unit_size
            below += dropped * layer.unit_size
            present += len(scores) * layer.unit_size
        redistribute(trained, kept, {name: float(count) for name, count in kept.items()})
        for layer in trained:
            layer.memory["threshold"] = torch.tensor(
                self.adapted(threshold, below, self.fraction * present), dtype=torch.float64
            )

    def adapted(self, threshold: float, dropped: float, wanted: float) -> float:
        """The next threshold, once this one has dropped so many weights.

        >>> [DSR().adapted(1.0, dropped, wanted=100) for dropped in (80, 95, 105, 120)]
        [2.0, 1.0, 1.0, 0.5]
        """
        if dropped < (1 - self.tolerance) * wanted:
            return 2 * threshold
        return threshold / 2 if dropped > (1 + self.tolerance) * wanted else threshold

    def update(self, layer: Layer, step: int) -> Exchange | None:
        return refill(
            layer,
            int(layer.memory["dropped"]),
            layer.keep,
            drop="magnitude",
            grow="random",
            exclude_dropped=self.exclude_dropped,
            regrown="reset",
        )
