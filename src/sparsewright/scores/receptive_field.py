"""Receptive field: outputs begin joined to inputs that lie near them, by chance (the Bipartite
Receptive Field of CHTs, Zhang et al., NeurIPS 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._network import best_of_rows, evenly, gumbel, in_unit, links_of, scored, size_of


@dataclass(frozen=True)
class ReceptiveField:
    """A start: links are drawn in proportion to distance^((r - 1) / r), r the `spread`.

    spread: in (0, 1]; 1 draws without regard of the distance, towards 0 the nearest inputs win.
    Every output has as many inputs. The distance is that on a ring on which outputs and inputs lie
    evenly, in inputs, plus one. To prune or to begin with; not to rank layers by. What the paper's
    distance is exactly, and its default of r, is not certain here.
    """

    spread: float = 0.25
    needs_gradient: ClassVar[bool] = False
    needs_keep: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source=(
            "Zhang et al., *Brain network science modelling of sparse neural networks enables "
            "Transformers and LLMs to perform as fully connected*, NeurIPS 2025"
        ),
        when=("The start of CHTs, where inputs have an order."),
        memory="dense tables of the layer's weights while the mask is made, nothing after",
        flops="none in training",
        published="none verified",
        departs=("The paper's distance and its default of r are not certain here."),
    )

    def __post_init__(self) -> None:
        if not 0.0 < self.spread <= 1.0:
            raise ConfigError(f"start ReceptiveField: spread must be in (0, 1]; got {self.spread}")

    def __call__(self, layer: View) -> Tensor:
        """In the weight's shape; ConfigError if it is not settled how many weights are kept."""
        rows, columns = size_of(layer)
        out = torch.arange(rows, dtype=torch.float64)[:, None] * (columns / max(1, rows))
        apart = (out - torch.arange(columns, dtype=torch.float64)).abs()
        apart = 1.0 + torch.minimum(apart, columns - apart)
        keys = (1.0 - 1.0 / self.spread) * apart.log() + gumbel(layer, rows, columns)
        chosen = best_of_rows(keys, evenly(links_of(layer, "ReceptiveField"), rows))
        return scored(layer, chosen, in_unit(keys))


SCORES.register("receptive_field")(ReceptiveField())
