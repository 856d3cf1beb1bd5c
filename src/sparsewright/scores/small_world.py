"""Small world: outputs begin joined to their nearest inputs on a ring, and a part of the links is
moved to random ones (Watts and Strogatz, Nature 1998; between two layers: Zhang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._network import best_of_rows, evenly, links_of, scored, size_of, uniform


@dataclass(frozen=True)
class SmallWorld:
    """A start: every output has as many inputs, its nearest ones, each moved with chance `rewired`.

    rewired: beta in [0, 1]; 0 is the ring, 1 a random network with equal rows. A moved link goes to
    an input of the same output, uniformly among those that it is not joined to once all links that
    move have left, so it may come back. Outputs and inputs lie evenly on the ring. To prune or to
    begin with; not to rank layers by.
    """

    rewired: float = 0.1
    needs_gradient: ClassVar[bool] = False
    needs_keep: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source=(
            "Watts, Strogatz, *Collective dynamics of small-world networks*, Nature 393, 1998; "
            "between two layers as a start of sparse training: Zhang et al., NeurIPS 2025"
        ),
        when=(
            "A start with short paths and local rows, where inputs have an order (images row by "
            "row, time, hidden layers that begin so). Random where they have none."
        ),
        memory="dense tables of the layer's weights while the mask is made, nothing after",
        flops="none in training",
        published="none verified",
        departs=(
            "A link that moves may come back to a place that was left; every output has as many "
            "links, to one, so that counts are exact."
        ),
    )

    def __post_init__(self) -> None:
        if not 0.0 <= self.rewired <= 1.0:
            raise ConfigError(f"start SmallWorld: rewired must be in [0, 1]; got {self.rewired}")

    def __call__(self, layer: View) -> Tensor:
        """In the weight's shape; ConfigError if it is not settled how many weights are kept."""
        rows, columns = size_of(layer)
        counts = evenly(links_of(layer, "SmallWorld"), rows)
        out = torch.arange(rows, dtype=torch.float64)[:, None] / max(1, rows)
        apart = (out - torch.arange(columns, dtype=torch.float64) / max(1, columns)).abs()
        near = 1.0 - 2.0 * torch.minimum(apart, 1.0 - apart)  # 1 on the spot, 0 across the ring
        ring = best_of_rows(near, counts)
        stays = ring & (uniform(layer, rows, columns) >= self.rewired)
        keys = uniform(layer, rows, columns) + stays
        return scored(layer, best_of_rows(keys, counts), near * 0.999)


SCORES.register("small_world")(SmallWorld())
