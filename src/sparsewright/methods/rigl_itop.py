"""RigL-ITOP: RigL with rare, large updates to the end of the run (Liu et al., ICML 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Score
from ..facts import Facts
from . import METHODS
from ._itop import ITOP, SOURCE


@METHODS.register("rigl_itop")
@dataclass(frozen=True)
class RigLITOP(ITOP):
    """RigL that waits until grown weights can be judged, and moves half of them when it does.

    every: steps between updates; None: 4000, or a 25th of a shorter run. fraction: moved at the
    start of the run; it falls by half a cosine to final_fraction at `end`, by default the end of
    the run; or a schedule, step -> fraction. drop, grow: the two scores. exclude_dropped, regrown,
    grown, step_on_update, initial: as for RigL. `exploration.Exploration` measures how much of the
    network was tried (R_s).

    >>> itop = RigLITOP().bind(steps=100_000)
    >>> itop.every, itop.due(0), itop.due(4000), round(itop.fraction_at(50_000), 4)
    (4000, False, True, 0.2525)
    """

    published: ClassVar[int] = 4000
    facts: ClassVar[Facts] = Facts(
        source=SOURCE,
        when=(
            "For long runs, where it ends above RigL: what counts is the part of all weights that "
            "was ever tried, and that the tried ones had time to grow. In short runs take RigL."
        ),
        memory=(
            "The mask; at the steps of updates the gradients of all weights (masked storage) or "
            "of a tile at a time (packed)."
        ),
        flops=(
            "(3 f_S every + 2 f_S + f_D) / (every + 1) a step, which is 3 f_S for long intervals; "
            "inference f_S."
        ),
        published=(
            "ResNet-50 on ImageNet: 75.8 % at 80 % sparsity (R_s 0.93), 73.8 % at 90 % (R_s 0.83), "
            "from the authors' README"
        ),
        departs=(
            "The interval shrinks in runs shorter than 25 of the published ones. Updates use the "
            "gradient before the optimizer's step, the code's the one before its last. Starting "
            "masks hold the exact count; the code draws every weight by itself."
        ),
    )
    grow: str | Score = "gradient"

    @property
    def growth(self) -> str | Score:
        return self.grow
