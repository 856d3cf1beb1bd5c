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
from ..ranking import all_scores, present_scores
from ..weights import find_weights
from . import METHODS
from ._drop_grow import check_option, starting_values
from .rigl import RigL

Steep = Literal["absent", "all"]
STEEP: tuple[str, ...] = get_args(Steep)
PartOf = Literal["fan_in", "first_fan_in", "inputs"]
PART_OF: tuple[str, ...] = get_args(PartOf)


@METHODS.register("srigl")
@dataclass(frozen=True)
class SRigL(RigL):
    """RigL with a constant fan-in, and with neurons ablated that hold few salient weights.

    For pattern fan_in. At an update K = floor(alpha(t) * present weights) of a layer, or as many as
    are 0 if these are more. Salient are its weights that are not the K of least drop score, and the
    K of steepest gradient. A neuron with fewer salient weights than max(1, floor(saliency *
    fan-in)) is ablated: it keeps none. The layer's budget is shared out evenly over the active
    neurons, k' = floor(budget / active). K weights are dropped, those of ablated neurons before any
    other; each active neuron keeps its best k' of what is left, and grows the rest by gradient.
    Ablated neurons may come back. Other patterns have no neuron that could be ablated with its
    budget shared out: there the method is RigL.

    saliency: gamma_sal, in [0, 1]; the authors take 0.3 for convolutional networks, 0.95 for
    vision transformers; 0 still ablates a neuron without a salient weight. part_of: what it is a
    part of: the "fan_in" of the moment, the "first_fan_in", before any neuron was ablated, or all
    "inputs". ablate: False keeps all neurons, as packed weights need it in
    DistributedDataParallel: what k' leaves over changes how many there are. spared: names or globs
    of layers whose neurons all stay; None spares the model's last weight. Embeddings are spared
    always, as their rows are inputs. steep: gradients that count as salient are those of "absent"
    weights (paper) or of "all" (public code). every, fraction, end, drop, grow, regrown, grown,
    initial: as for RigL. start: the first update comes `every` steps after it, and step_on_update
    is on, both as in the public code.

    >>> SRigL(end=300).due(0), SRigL(end=300).due(100)
    (False, True)
    """

    step_on_update: bool = True
    saliency: float = 0.3
    ablate: bool = True
    steep: Steep = "absent"
    spared: tuple[str, ...] | None = None
    part_of: PartOf = "fan_in"
    facts: ClassVar[Facts] = Facts(
        source=(
            "Lasby, Golubeva, Evci, Nica, Ioannou, *Dynamic Sparse Training with Structured "
            "Sparsity*, ICLR 2024"
        ),
        when=(
            "Where rows of equal length are served faster, and above 90 % sparsity, where "
            "neurons may go. Take RigL where any set of zeros will do."
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
            "Where active neurons hold fewer weights than the layer is to keep, the code lets "
            "absent places count as kept; here the gradient chooses all that grows. A version of "
            "the code takes gamma_sal of the fan-in before any ablation: part_of='first_fan_in'; "
            "its option for the dense fan-in is part_of='inputs'. The fewest neurons that may stay "
            "are ceil(budget / inputs), so that they can hold the budget; the code rounds down. "
            "What k' = floor(...) leaves over, fewer weights than active neurons, is not used. The "
            "authors draw first weights by every neuron's own fan-in: attach(init='fan_in'). The "
            "optimizer's whole state starts anew for new weights, not only its momentum."
        ),
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_option("SRigL", "steep", self.steep, STEEP)
        check_option("SRigL", "part_of", self.part_of, PART_OF)
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
        count = layer.storage.count()
        moved = math.floor(self.fraction_at(step) * count + 1e-9)
        if moved == 0 or layer.keep == layer.units:
            return None
        here = layer.table
        value = torch.full_like(here, -torch.inf, dtype=torch.float32)
        value[here] = present_scores(layer, self.drop).float()
        moved = max(moved, int((value == 0).sum()))
        slope = all_scores(layer, self.grow).float().clamp(max=torch.finfo(torch.float32).max)
        salient = _best(value, count - moved) | self._steepest(slope, here, moved)
        active = self._active(layer, here, salient)
        fan_in = min(layer.units, layer.keep * layer.groups // int(active.sum()))
        kept = _best(value.masked_fill(~active[:, None], -torch.inf), count - moved)
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
        now = int(here.sum(dim=1).max())
        whole = {"fan_in": now, "first_fan_in": layer.keep, "inputs": layer.units}[self.part_of]
        least = max(1, math.floor(self.saliency * whole + 1e-9))
        return surviving(salient.sum(dim=1), least, -(-layer.keep * layer.groups // layer.units))


def _best(value: Tensor, count: int) -> Tensor:
    """Bool: the `count` best of the whole table, fewer where fewer are above -inf."""
    return best_table(value.view(1, -1), count).view(value.shape) & (value > -torch.inf)


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
