"""Scale free: neurons arrive one by one and join those of the other side that have many links
(Barabasi and Albert, Science 1999; between two layers: Zhang et al. 2025)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES
from ._network import evenly, gumbel, in_unit, links_of, scored, size_of


@dataclass(frozen=True)
class ScaleFree:
    """A start: a few neurons have very many links on both sides, most have few.

    Outputs and inputs arrive in random order, in proportion to their numbers. Each brings as many
    links, or what all before it could not place, to neurons of the other side that are there, drawn
    without replacement in proportion to their links plus one. To prune or to begin with; not to
    rank layers by.
    """

    needs_gradient: ClassVar[bool] = False
    needs_keep: ClassVar[bool] = True
    facts: ClassVar[Facts] = Facts(
        source=(
            "Barabasi, Albert, *Emergence of scaling in random networks*, Science 286, 1999; "
            "between two layers as a start of sparse training: Zhang et al., NeurIPS 2025"
        ),
        when=(
            "A start with hubs on both sides. Small world or random where every neuron is to have "
            "its share: some neurons have few links here, or none."
        ),
        memory="dense tables of the layer's weights while the mask is made, nothing after",
        flops="none in training",
        published="none verified",
        departs=(
            "Two sides grow together, and attraction is links plus one; how the paper makes it "
            "bipartite is not certain here."
        ),
    )

    def __call__(self, layer: View) -> Tensor:
        """In the weight's shape; ConfigError if it is not settled how many weights are kept."""
        rows, columns = size_of(layer)
        wanted = evenly(links_of(layer, "ScaleFree"), rows + columns).tolist()
        links = torch.zeros(rows, columns, dtype=torch.bool)
        arrivals = torch.randperm(rows + columns, generator=layer.generator)
        degrees = [torch.zeros(rows), torch.zeros(columns)]
        there = [torch.zeros(rows, dtype=torch.bool), torch.zeros(columns, dtype=torch.bool)]
        left = 0
        for new, links_of_new in zip(arrivals.tolist(), wanted, strict=True):
            side, own = (0, new) if new < rows else (1, new - rows)
            other = there[1 - side].nonzero().squeeze(1)
            count = min(len(other), links_of_new + left)
            left += links_of_new - count
            keys = (1.0 + degrees[1 - side][other]).log() + gumbel(layer, len(other))
            joined = other[keys.topk(count).indices]
            links[own if side == 0 else joined, joined if side == 0 else own] = True
            degrees[1 - side][joined] += 1
            degrees[side][own] = count
            there[side][own] = True
        pull = (1.0 + degrees[0]).log()[:, None] + (1.0 + degrees[1]).log()
        return scored(layer, links, in_unit(pull + gumbel(layer, rows, columns)))


SCORES.register("scale_free")(ScaleFree())
