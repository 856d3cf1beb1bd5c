"""DSD: dense, sparse, dense: a sparse phase on the way to a better network (Han et al. 2017)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..budget import Budgeted
from ..core import Layer
from ..errors import ConfigError
from ..facts import Facts
from . import METHODS
from ._drop_grow import check_option
from ._phases import Phased
from ._share import SCOPES, Scope


@METHODS.register("dsd")
@dataclass(frozen=True)
class DSD(Phased):
    """Train dense, then under a mask of the largest weights, then dense again; then cut once more.

    sparse, dense: where the sparse phase begins, and where it ends, as parts of the run. last:
    where the network is cut to the budget for good. None leaves it dense at the end, which is
    DSD as published and a regularizer of dense networks: the sparsity asked for is then that of
    the sparse phase only. middle: sparsity of every layer in the sparse phase, never above the
    one asked for; None: that one. The paper's are 25 to 50 %. Weights that return start at 0. Lower
    the learning rate to a tenth yourself where the second dense phase begins, as the paper does.
    scope: of the cuts. turns: steps in place of parts.

    >>> DSD().bind(steps=100).turns
    (33, 66, 90)
    """

    facts: ClassVar[Facts] = Facts(
        source=(
            "Han, Pool, Narang, Mao, Gong, Tang, Elsen, Vajda, Paluri, Tran, Catanzaro, Dally, "
            '"DSD: dense-sparse-dense training for deep neural networks", ICLR 2017'
        ),
        when=(
            "With last=None, to better a dense network at no cost in inference. For a sparse one "
            "acdc does the same several times over."
        ),
        memory="Dense in dense phases; in the sparse one nothing but the mask.",
        flops="3 f_D a step in dense phases, 3 f_S in the sparse one; inference f_S, or f_D.",
        published="none verified",
        departs=(
            "By default the network is cut to the budget once more, and trains on under that mask: "
            "whoever asks for a sparsity gets it. The published method ends dense (last=None). "
            "`sparse`, `dense` and `last` have defaults of our own; `middle` is the sparsity asked "
            "for unless given, the paper's 0.25 to 0.5. The learning rate is left to the loop; the "
            "paper lowers it to a tenth for the second dense phase."
        ),
    )
    sparse: float = 1 / 3
    dense: float = 2 / 3
    last: float | None = 0.9
    middle: float | None = None
    scope: Scope = "layer"

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("DSD", "scope", self.scope, SCOPES)
        if self.turns is not None and len(self.turns) != len(self.parts):
            raise ConfigError(
                f"method DSD: turns must be {len(self.parts)} steps, one for each of sparse, dense "
                f"and last, if that is not None; got {self.turns}"
            )
        if self.middle is not None and not 0.0 <= self.middle < 1.0:
            raise ConfigError(f"method DSD: middle must be in [0, 1); got {self.middle}")

    @property
    def parts(self) -> tuple[float, ...]:
        return (self.sparse, self.dense) + (() if self.last is None else (self.last,))

    def kept(self, layer: Layer, step: int) -> int:
        assert self.turns is not None, "bind() comes first"
        is_last = len(self.turns) > 2 and step >= self.turns[2]
        if self.middle is None or is_last:
            return layer.keep
        asked = Budgeted.of(layer.name, layer.shape, layer.pattern)
        return max(layer.keep, asked.nearest((1.0 - self.middle) * layer.numel))
