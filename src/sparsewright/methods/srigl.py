"""SRigL: RigL whose neurons all keep as many inputs, and that lets neurons go which hold few
salient weights (Lasby, Golubeva, Evci, Nica, Ioannou, ICLR 2024)."""

from __future__ import annotations

import fnmatch
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal, get_args

import torch
from torch import Tensor, nn

from ..core import Exchange, Layer
from ..errors import ConfigError
from ..facts import Facts
from ..keeping import keep_best
from ..kernels.best import best_table
from ..ranking import all_scores, present_scores, worst
from ..weights import find_weights
from . import METHODS
from ._drop_grow import check_option, starting_values
from .rigl import RigL

Steep = Literal["absent", "all"]
STEEP: tuple[str, ...] = get_args(Steep)


@METHODS.register("srigl")
@dataclass(frozen=True)
class SRigL(RigL):
    """RigL with a constant fan-in, and with neurons ablated that hold few salient weights.

    For pattern fan_in. At an update K = floor(alpha(t) * present weights) of a layer. Salient are
    its weights that are not the K of least drop score, and the K of steepest gradient. A neuron
    with fewer salient weights than max(1, floor(saliency * fan-in)) is ablated: it keeps none. The
    layer's budget is shared out evenly over the active neurons, k' = floor(budget / active); each
    keeps its best k' of those not dropped, and grows the rest by gradient. Ablated neurons may come
    back. Other patterns have no neuron that could be ablated with its budget shared out: there
    the method is RigL.

    saliency: gamma_sal, in [0, 1]; the authors take 0.3 for convolutional networks, 0.95 for
    vision transformers; 0 still ablates a neuron without a salient weight. ablate: False keeps all
    neurons. spared: names or globs of layers whose neurons all stay; None spares the model's last
    weight. Embeddings are spared always, as their rows are inputs. steep: gradients that count as
    salient are those of "absent" weights (paper) or of "all" (public code). every, fraction, end,
    drop, grow, regrown, grown, initial: as for RigL. start: the first update comes `every` steps
    after it, and step_on_update is on, both as in the public code.

    >>> SRigL(end=300).due(0), SRigL(end=300).due(100)
    (False, True)
    """

    step_on_update: bool = True
    saliency: float = 0.3
    ablate: bool = True
    steep: Steep = "absent"
    spared: tuple[str, ...] | None = None
    facts: ClassVar[Facts] = Facts(
        source=(
            "Lasby, Golubeva, Evci, Nica, Ioannou, *Dynamic Sparse Training with Structured "
            "Sparsity*, ICLR 2024"
        ),
        when=(
            "Where rows of equal length are served faster, and above 90 % sparsity, where layers "
            "may shrink. Take RigL where any set of zeros will do."
        ),
        memory="nothing between updates; at an update the scores of one layer's weights, dense.",
        flops=(
            "training (3 f_S every + 2 f_S + f_D) / (every + 1) as RigL; inference f_S, less the "
            "rows of ablated neurons where these are cut out"
        ),
        published=(
            "ResNet-18 on CIFAR-10 at 99 %: 92.79 % with ablation, 91.47 % without, RigL 92.88 %, "
            "dense 95.45 % (five seeds; the authors' notebook of final results)"
        ),
        departs=(
            "Rows above k' keep their best weights; the public code cuts them by order of index. "
            "The fewest neurons that may stay are ceil(budget / inputs), so that they can hold the "
            "budget; the code rounds down. What k' = floor(...) leaves over, fewer weights than "
            "active neurons, is not used. The optimizer's whole state starts anew for new weights, "
            "not only its momentum."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("SRigL", "steep", self.steep, STEEP)
        if not 0.0 <= self.saliency <= 1.0:
            raise ConfigError(
                "method SRigL: saliency (gamma_sal, a part of the fan-in) must be in [0, 1]; got "
                f"{self.saliency}"
            )
        if self.exclude_dropped:
            raise ConfigError(
                "method SRigL: exclude_dropped must be False: a neuron refills from all it lacks"
            )

    def meet(self, model: nn.Module, layers: Sequence[Layer]) -> SRigL:
        """The same, that knows the model's last weight; ConfigError if `spared` names none."""
        if self.spared is None:
            return replace(self, spared=(find_weights(model)[-1].name,))
        for glob in self.spared:
            if not any(fnmatch.fnmatchcase(layer.name, glob) for layer in layers):
                raise ConfigError(
                    f"method SRigL: spared names no sparse layer by {glob!r}; there are: "
                    f"{', '.join(layer.name for layer in layers)}"
                )
        return self

    def due(self, step: int) -> bool:
        return step > self.start and super().due(step)

    def update(self, layer: Layer, step: int) -> Exchange | None:
        if not has_rows(layer):
            return super().update(layer, step)
        moved = math.floor(self.fraction_at(step) * layer.storage.count() + 1e-9)
        if moved == 0 or layer.keep == layer.units:
            return None
        here = layer.table
        value = torch.full_like(here, -torch.inf, dtype=torch.float32)
        value[here] = present_scores(layer, self.drop).float()
        slope = all_scores(layer, self.grow).float().clamp(max=torch.finfo(torch.float32).max)
        kept = torch.zeros_like(here)
        kept[here] = ~worst(layer, self.drop, moved)
        active = self._active(layer, here, kept | self._steepest(slope, here, moved))
        fan_in = min(layer.units, layer.keep * layer.groups // int(active.sum()))
        stays = keep_best(value.masked_fill(~kept, -torch.inf), fan_in) & kept
        wanted = slope.masked_fill(kept, -torch.inf).masked_fill(stays, torch.inf)
        after = keep_best(wanted, fan_in) & active[:, None]
        old = here if self.regrown == "keep" else stays & here
        comes = (after & ~old).view(-1).nonzero().squeeze(1)
        leaves = ~(after & old)[here]
        return Exchange(leaves, comes, starting_values(layer, self.grown, len(comes)))

    def _steepest(self, slope: Tensor, here: Tensor, moved: int) -> Tensor:
        """(groups, units) bool: the units of steepest gradient, as many as are moved."""
        if self.steep == "all":
            return best_table(slope.view(1, -1), moved).view(slope.shape)
        moved = min(moved, int((~here).sum()))
        absent = slope.masked_fill(here, -torch.inf)
        return best_table(absent.view(1, -1), moved).view(slope.shape) & ~here

    def _active(self, layer: Layer, here: Tensor, salient: Tensor) -> Tensor:
        """(groups) bool: the neurons that are not ablated."""
        spared = any(fnmatch.fnmatchcase(layer.name, glob) for glob in self.spared or ())
        if not self.ablate or spared or layer.is_lookup:
            return torch.ones(layer.groups, dtype=torch.bool, device=here.device)
        fan_in = int(here.sum(dim=1).max())
        least = max(1, math.floor(self.saliency * fan_in + 1e-9))
        return surviving(salient.sum(dim=1), least, -(-layer.keep * layer.groups // layer.units))


def surviving(salient: Tensor, least: int, fewest: int) -> Tensor:
    """(neurons) counts of salient weights -> bool, which neurons stay: those with `least` or more.

    If fewer than `fewest` would stay, the bound falls to the count of the neuron of that rank.

    >>> surviving(torch.tensor([5, 0, 2, 1]), least=4, fewest=2)
    tensor([ True, False,  True, False])
    """
    stay = salient >= least
    if int(stay.sum()) >= fewest:
        return stay
    return salient >= salient.sort(descending=True).values[fewest - 1]


def has_rows(layer: Layer) -> bool:
    """Whether the groups are output neurons, of single weights, of which any number may be kept."""
    of_rows = layer.groups == layer.shape[0] and layer.unit_size == 1
    return of_rows and len(layer.pattern.allowed(layer.units)) == layer.units + 1
