"""l2: the Euclidean norm of a unit's weights, as filters are ranked by norms (Li et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from ..core import Pattern, View
from ..facts import Facts
from . import SCORES
from ._wide import wide


@dataclass(frozen=True)
class L2:
    """sqrt(sum of w^2) of every unit; of a single weight |w|.

    With pattern "channel" it ranks filters by their L2 norm; "magnitude" ranks them by their L1
    norm, the sum of |w| over the unit.

    >>> import torch
    >>> from sparsewright import Channel
    >>> weight = torch.tensor([[3., 4.], [0., 6.]])
    >>> view = View("fc", weight, weight == weight, torch.Generator())
    >>> L2().of_units(view, Channel())
    tensor([[5., 6.]])
    """

    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "all"
    facts: ClassVar[Facts] = Facts(
        source="Li, Kadav, Durdanovic, Samet, Graf: Pruning Filters for Efficient ConvNets. ICLR "
        "2017, which takes the L1 norm and reports the L2 norm to do much the same.",
        when="For whole filters, neurons or blocks without data. Where the sizes of filters differ "
        "little, FPGM or a Taylor score tells more.",
        memory="One dense tensor of a layer's size.",
        flops="None beside reading the weights once.",
        published="none verified",
        departs="The input slices of the next layer that a filter's absence makes useless are "
        "not counted as pruned, and stay: no layer becomes narrower, in sw.deploy either.",
    )

    def __call__(self, layer: View) -> Tensor:
        return wide(layer.weight).abs()

    def of_units(self, layer: View, pattern: Pattern) -> Tensor:
        weight = wide(layer.weight)
        largest = weight.abs().max().clamp_min(1e-30) if weight.numel() else 1.0
        return pattern.fold((weight / largest).square()).sqrt() * largest


SCORES.register("l2")(L2())
