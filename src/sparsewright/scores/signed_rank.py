"""Signed rank: how far from zero a weight stands among the weights of its own sign.

SET removes the same fraction of the smallest positive and of the largest negative weights (Mocanu
et al. 2018); ranking within each sign turns that into one score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..core import View
from ..facts import Facts
from . import SCORES


@dataclass(frozen=True)
class SignedRank:
    """Rank of |w| among the present weights of the same sign, in (0, 1]; zeros count as positive.

    Ties are ranked by position, the later one higher. Absent weights score 0.
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta, "Scalable training of artificial '
            'neural networks with adaptive sparse connectivity inspired by network science", '
            "Nature Communications 9:2383, 2018"
        ),
        when="To drop by in SET: as many of the positive as of the negative weights, in parts.",
        memory="Nothing.",
        flops="None.",
        published="none verified",
    )
    needs_gradient: ClassVar[bool] = False
    sees: ClassVar[str] = "single"

    def __call__(self, layer: View) -> Tensor:
        weight = layer.weight.detach().float().flatten()
        present = layer.mask.flatten()
        scores = torch.zeros_like(weight)
        for of_sign in (present & (weight >= 0), present & (weight < 0)):
            size = weight[of_sign].abs()
            # Bits of numbers that are 0 or more ascend as they do, and whole numbers sort faster.
            order = size.view(torch.int32).argsort(stable=True)
            ranks = torch.empty_like(size)
            ranks[order] = torch.arange(1, len(size) + 1, device=size.device) / max(1, len(size))
            scores[of_sign] = ranks
        return scores.reshape(layer.shape)


SCORES.register("signed_rank")(SignedRank())
