"""SET-ITOP: SET with rare, large updates to the end of the run (Liu et al., ICML 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..core import Score
from ..facts import Facts
from . import METHODS
from ._itop import ITOP, SOURCE


@METHODS.register("set_itop")
@dataclass(frozen=True)
class SETITOP(ITOP):
    """SET that waits until grown weights can be judged, and moves half of them when it does.

    every: steps between updates; None: 1500, or a 25th of a shorter run. fraction: moved at the
    start of the run; it falls by half a cosine to final_fraction at `end`, by default the end of
    the run; or a schedule, step -> fraction. drop, grow: the two scores; unlike SET it drops over
    both signs together. exclude_dropped, regrown, grown, step_on_update, initial: as for RigL.
    `exploration.Exploration` measures how much of the network was tried (R_s).

    >>> itop = SETITOP().bind(steps=100_000)
    >>> itop.every, itop.due(0), itop.due(1500), itop.needs_gradient
    (1500, False, True, False)
    """

    published: ClassVar[int] = 1500
    facts: ClassVar[Facts] = Facts(
        source=SOURCE,
        when=(
            "For long runs that must stay sparse at every step, gradients included. Random growth "
            "explores evenly, so long runs try nearly every weight once."
        ),
        memory="Nothing but the mask.",
        flops="3 f_S a step; inference f_S.",
        published="none verified",
        departs=(
            "The interval shrinks in runs shorter than 25 of the published ones. Starting masks "
            "hold the exact count; the code draws every weight by itself, and grows by chance with "
            "a mean of the count."
        ),
    )
    grow: str | Score = "random"

    @property
    def growth(self) -> str | Score:
        return self.grow
