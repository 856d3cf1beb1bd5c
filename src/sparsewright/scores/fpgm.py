"""FPGM: the filters nearest to all others go first, since these can stand in for them (He, Liu,
Wang, Hu, Yang 2019)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import Pattern, View
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._measured import check_rows
from ._wide import wide

TILE = 2**24
"""Weights compared at once."""


@dataclass(frozen=True)
class FPGM:
    """The sum of a filter's distances to all other filters of its layer; pattern "channel".

    The filter of the least sum is the one nearest to the geometric median, whatever its size. p:
    the norm of the distances, 2 as published. Absent filters are no neighbours. Sums of different
    layers cannot be compared: not for allocate="global".

    >>> from sparsewright import Channel
    >>> weight = torch.tensor([[0., 0.], [1., 0.], [5., 0.]])
    >>> view = View("fc", weight, torch.ones(3, 2, dtype=torch.bool), torch.Generator())
    >>> FPGM().of_units(view, Channel())
    tensor([[6., 5., 9.]])
    """

    p: float = 2.0
    needs_gradient: ClassVar[bool] = False
    of_rows: ClassVar[bool] = True
    sees: ClassVar[str] = "all"
    facts: ClassVar[Facts] = Facts(
        source="He, Liu, Wang, Hu, Yang: Filter Pruning via Geometric Median for Deep "
        "Convolutional Neural Networks Acceleration. CVPR 2019.",
        when="For whole filters where their norms differ little or none is near 0. Without data.",
        memory="Distances of some filters to all others at a time.",
        flops="Once, filters^2 * weights of a filter for every layer.",
        published="none verified",
        departs="The public code can first set aside filters of small norm; here that is another "
        "score. Its branch for the L1 distance is never reached there; here p=1 is.",
    )

    def __post_init__(self) -> None:
        if not self.p > 0:
            raise ConfigError(f"score FPGM: p must be above 0; got {self.p}")

    def of_units(self, layer: View, pattern: Pattern) -> Tensor:
        """MisfitError for a pattern whose units are no whole filters or neurons."""
        check_rows(self, layer.name, pattern, layer.shape)
        return self(layer).flatten(1).sum(dim=1).view(pattern.fold(layer.weight).shape)

    def __call__(self, layer: View) -> Tensor:
        """Every weight's share of its filter's sum."""
        filters = wide(layer.weight).flatten(1)
        present = layer.mask.flatten(1).any(dim=1)
        others = filters[present]
        step = max(1, TILE // max(1, others.numel()))
        sums = [
            torch.cdist(part, others, self.p, compute_mode="donot_use_mm_for_euclid_dist").sum(
                dim=1
            )
            for part in filters.split(step)
        ]
        share = torch.cat(sums) / max(1, filters.shape[1])
        return share.view(-1, *[1] * (layer.weight.dim() - 1)).expand(layer.shape)


SCORES.register("fpgm")(FPGM())
