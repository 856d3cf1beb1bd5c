"""AC/DC: compressed and decompressed phases in turn (Peste, Iofinova, Vladu, Alistarh 2021)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..errors import ConfigError
from ..facts import Facts
from . import METHODS
from ._drop_grow import check_option
from ._phases import Phased
from ._share import SCOPES, Scope

RECIPE = (0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.85)
"""Of the published 100 epochs: sparse from 10, 20, ... 70 and 85, dense from 15, 25, ... 75."""


@METHODS.register("acdc")
@dataclass(frozen=True)
class ACDC(Phased):
    """Alternate dense phases with phases under a fixed mask of the largest weights, ending sparse.

    phases: where the network turns sparse, dense, sparse, ..., as ascending parts of the run in
    [0, 1), an odd number of them; by default the paper's recipe for ResNet-50. In a dense phase
    the weights that were cut start at 0. scope: weights are ranked over all layers together
    ("global", the paper's), or in every "layer" by themselves within the budget that `allocate`
    gave it (the paper's uniform). reset_momentum: as a dense phase begins the optimizer forgets
    the weights that stayed too. turns: steps in place of phases.

    >>> ACDC().bind(steps=100).turns
    (10, 15, 20, 25, 30, 35, 40, 45, 50, 55, 60, 65, 70, 75, 85)
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            'Peste, Iofinova, Vladu, Alistarh, "AC/DC: alternating compressed/decompressed '
            'training of deep neural networks", NeurIPS 2021'
        ),
        when=(
            "For accuracy at a fixed number of epochs, when half of the training may be dense; it "
            "leaves a dense network on the way, too. Phases must last some epochs each."
        ),
        memory="Dense in dense phases; in the others nothing but the mask.",
        flops="3 f_D a step in dense phases, half of the run, else 3 f_S; inference f_S.",
        published=(
            "ResNet-50 on ImageNet, global, 100 epochs: 76.45 % top-1 at 80 %, 75.03 % at 90 %, "
            "73.14 % at 95 %, 68.48 % at 98 % (authors' results)"
        ),
        departs=(
            "Weights that return start without momentum, and have no gradient in that step; the "
            "published code has an option that resets momentum (reset_momentum_after_recycling). "
            "The published recipe prunes the first and the last layer, too, as `attach` does by "
            "default. Every group keeps a unit at least."
        ),
    )
    phases: tuple[float, ...] = RECIPE
    scope: Scope = "global"
    reset_momentum: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("ACDC", "scope", self.scope, SCOPES)
        for name, turns in (("phases", self.phases), ("turns", self.turns)):
            if turns is not None and len(turns) % 2 == 0:
                raise ConfigError(
                    f"method ACDC: {name} must be an odd number of turns, so that the last phase "
                    f"is sparse; got {len(turns)}"
                )

    @property
    def parts(self) -> tuple[float, ...]:
        return tuple(self.phases)

    @property
    def resets(self) -> bool:
        return self.reset_momentum
