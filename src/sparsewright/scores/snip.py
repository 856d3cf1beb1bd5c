"""SNIP: |w * dL/dw| on batches before training, what the loss would feel if the weight went
(Lee, Ajanthan, Torr 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from ..calibration import Calibration
from ..facts import Facts
from . import SCORES
from ._gradients import mean_gradients
from ._measured import Found, ToMeasure, dense


@dataclass(frozen=True)
class SNIP(ToMeasure):
    """|w * g| over its sum over all layers; g is the loss's gradient, added up over the batches
    before the absolute value is taken. "weight_gradient" is the same without the sum, by gradients
    that are there already. As published: allocate="global", before training, one batch.

    >>> from sparsewright import prune
    >>> model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.ReLU(), torch.nn.Linear(8, 2))
    >>> batch = torch.randn(16, 4), torch.randint(2, (16,))
    >>> prune(model, 0.5, score="snip", allocate="global", data=[batch]).sparsity
    0.5
    """

    facts: ClassVar[Facts] = Facts(
        source="Lee, Ajanthan, Torr: SNIP: Single-shot Network Pruning based on Connection "
        "Sensitivity. ICLR 2019.",
        when="To choose a sparse network before it is trained, up to about 95 % sparsity; where "
        "layers vanish, SynFlow. The initial values must keep the variance of activations.",
        memory="One dense gradient of every layer while it measures.",
        flops="One dense forward and backward for every batch (3 f_D each), before training; "
        "training and inference then cost as static sparse ones (3 f_S, f_S).",
        published="ResNet-50 on ImageNet at 80 / 90 / 95 / 96.5 % sparsity: 72.0 / 67.2 / 57.8 / "
        "52.0 % top-1, as run by Evci et al. 2020 for RigL.",
        departs="Biases are never pruned, while the public code prunes them too; weights are not "
        "drawn anew after pruning, which that code offers. As many are kept as the budget says, to "
        "the weight.",
    )

    def measured(self, calibration: Calibration) -> Found:
        """ConfigError without a loss; StateError for a layer that the loss does not depend on."""
        found = mean_gradients(calibration, calibration.losses(), self)
        with torch.no_grad():
            scores = {
                layer.name: (dense(layer, layer.weight) * gradient).abs()
                for layer, gradient in zip(calibration.layers, found, strict=True)
            }
            total = sum(float(score.double().sum()) for score in scores.values())
            if total > 0:
                scores = {name: score / total for name, score in scores.items()}
        return Found(scores)


SCORES.register("snip")(SNIP())
