"""Allocation: how a whole-model sparsity is shared out over layers.

Uniform and ER/ERK look at shapes only (Mocanu et al. 2018; Evci et al. 2020); global and LAMP
(Lee et al. 2021) put the units of all layers into one ranking. An allocation proposes real
numbers; `budget.py` rounds them to what the patterns hold. Those that must measure the model are
files of their own in allocations/.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from .arguments import check_part
from .core import Allocate, Shape
from .errors import BudgetError
from .facts import Facts
from .registry import Table

ALLOCATIONS: Table[Allocate] = Table("allocation", "sparsewright.allocations")
NEEDS = ("__call__", "needs_scores", "dense_first")


def as_allocation(spec: str | Allocate) -> Allocate:
    """An allocation from its object or its name; UnknownNameError if the name is in no table.

    >>> as_allocation("erk")
    ERK(dense_first=False)
    """
    return ALLOCATIONS[spec] if isinstance(spec, str) else check_part("allocate", spec, NEEDS)


@dataclass(frozen=True)
class Uniform:
    """The same sparsity in every layer: `uniform` leaves the first one dense, `uniform_all` none.

    dense_first: leave the model's first layer dense and outside the budget, as in the tables of
    RigL (Evci et al. 2020). It is taken out before the others are shared out among.

    >>> Uniform(dense_first=False)({"a": (4, 4), "b": (8, 4)}, 0.5)
    {'a': 0.5, 'b': 0.5}
    """

    facts: ClassVar[Facts] = Facts(
        source="Common practice; the dense first layer as in Evci, Gale, Menick, Castro, Elsen: "
        "Rigging the Lottery: Making All Tickets Winners. ICML 2020.",
        when="To compare with published tables, and for few FLOPs at a given number of weights.",
        memory="Nothing.",
        flops="None to share out; what is left dense costs f_D.",
        published="AC/DC, ResNet-50 on ImageNet, first and last layer dense: 75.04 % top-1 at "
        "90 %, 73.28 % at 95 % (authors' results)",
        departs="The dense first layer counts in no sparsity asked for, so that the whole model is "
        "less sparse. The public code of SRigL solves anew for the whole, and that of LAMP keeps a "
        "fifth of the last layer, too (Unif+): neither is offered.",
    )
    dense_first: bool = True
    needs_scores: ClassVar[bool] = False

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        return dict.fromkeys(shapes, sparsity)


@dataclass(frozen=True)
class ER:
    """Erdos-Renyi: density in proportion to (in + out) / (in * out) (Mocanu et al. 2018).

    The kernel of a convolution plays no part. dense_first: as in Uniform.

    >>> ER()({"a": (10, 10), "b": (20, 20)}, 0.5)
    {'a': 0.16..., 'b': 0.58...}
    """

    facts: ClassVar[Facts] = Facts(
        source="Mocanu, Mocanu, Stone, Nguyen, Gibescu, Liotta: Scalable training of artificial "
        "neural networks with adaptive sparse connectivity inspired by network science. Nature "
        "Communications 9, 2018.",
        when="For networks of fully connected layers, where it is ERK; for convolutions take that.",
        memory="Nothing.",
        flops="None to share out; small layers stay denser, which costs more where outputs are "
        "large.",
        published="none verified",
        departs="Its epsilon follows from the sparsity asked for, where the paper gives it. Layers "
        "whose share would exceed their size are dense.",
    )
    dense_first: bool = False
    needs_scores: ClassVar[bool] = False

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        raw = {name: _ratio(shape[:2]) for name, shape in shapes.items()}
        return _in_proportion(raw, shapes, sparsity)


@dataclass(frozen=True)
class ERK:
    """Erdos-Renyi-Kernel: density in proportion to sum(shape) / prod(shape) (Evci et al. 2020).

    Layers whose share would exceed their size are dense, and the rest is solved again.
    dense_first: as in Uniform; RigL's tables have it at 99 %.

    >>> ERK()({"fc1": (300, 784), "fc2": (100, 300), "fc3": (10, 100)}, 0.9)
    {'fc1': 0.92..., 'fc2': 0.76..., 'fc3': 0.0}
    """

    facts: ClassVar[Facts] = Facts(
        source="Evci, Gale, Menick, Castro, Elsen: Rigging the Lottery: Making All Tickets "
        "Winners. ICML 2020.",
        when="The usual choice for sparse training.",
        memory="Nothing.",
        flops="None to share out; f_S of a ResNet-50 at 80 % is 0.42 f_D, beside 0.23 f_D uniform "
        "(Evci et al. 2020).",
        published="RigL, ResNet-50 on ImageNet: 69.7 % top-1 at 95 %, 67.2 % at 96.5 %, beside "
        "67.5 % and 65.0 % uniform (Evci et al. 2020, table 4)",
        departs="Of the layers whose share would exceed their size, those of the largest share "
        "become dense at once; the public code of LAMP makes one dense at a time.",
    )
    dense_first: bool = False
    needs_scores: ClassVar[bool] = False

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        raw = {name: _ratio(shape) for name, shape in shapes.items()}
        return _in_proportion(raw, shapes, sparsity)


@dataclass(frozen=True)
class Global:
    """One threshold over the units of all layers: the best ones stay, wherever they are.

    Units are compared by their mean score per weight. It can nearly empty layers of small scores;
    the budget keeps one unit per group. Among equals the first layer wins.

    >>> scores = {"a": torch.tensor([[4., 3.]]), "b": torch.tensor([[2., 1.]])}
    >>> Global()({"a": (1, 2), "b": (1, 2)}, 0.5, scores)
    {'a': 0.0, 'b': 1.0}
    """

    facts: ClassVar[Facts] = Facts(
        source="Common practice; compared under this name by Blalock, Gonzalez Ortiz, Frankle, "
        "Guttag: What is the State of Neural Network Pruning? MLSys 2020.",
        when="With scores that are made for it (snip, grasp, synflow, slimming), and for trained "
        "networks whose layers are of like scales.",
        memory="The scores of all layers at once.",
        flops="Those of the score.",
        published="AC/DC, ResNet-50 on ImageNet: 75.03 % top-1 at 90 %, 73.14 % at 95 %, beside "
        "75.04 % and 73.28 % uniform (authors' results)",
        departs="Every group keeps a unit at least, where one threshold may empty layers; as many "
        "stay as the budget says, whatever ties.",
    )
    dense_first: bool = False
    needs_scores: ClassVar[bool] = True

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        return _one_ranking(shapes, sparsity, _checked(shapes, scores))


@dataclass(frozen=True)
class LAMP:
    """Layer-adaptive magnitude: score^2 over the sum of those at or above it, ranked globally.

    The best unit of every layer scores exactly 1, so no layer empties before the others
    (Lee, Park, Mo, Ahn, Shin 2021). Units are compared by their mean score per weight; those of
    score -inf, which are absent, come last.

    >>> scores = {"a": torch.tensor([[4., 3.]]), "b": torch.tensor([[2., 1.]])}
    >>> LAMP()({"a": (1, 2), "b": (1, 2)}, 0.5, scores)
    {'a': 0.5, 'b': 0.5}
    """

    facts: ClassVar[Facts] = Facts(
        source="Lee, Park, Mo, Ahn, Shin: Layer-adaptive Sparsity for the Magnitude-based Pruning. "
        "ICLR 2021.",
        when="For trained networks by magnitude, where global empties layers.",
        memory="The scores of all layers at once, in float64.",
        flops="Those of the score.",
        published="none verified",
        departs="As many stay as the budget says; the public code keeps all that tie with the "
        "threshold. Units of several weights go by their mean score.",
    )
    dense_first: bool = False
    needs_scores: ClassVar[bool] = True

    def __call__(
        self,
        shapes: Mapping[str, Shape],
        sparsity: float,
        scores: Mapping[str, Tensor] | None = None,
    ) -> dict[str, float]:
        given = _checked(shapes, scores)
        for name, one in given.items():
            if not ((one >= 0) & torch.isfinite(one) | (one == -torch.inf)).all():
                raise BudgetError(
                    f"layer {name!r}: LAMP squares scores, which must be finite and 0 or more; "
                    f"got from {float(one.min())} to {float(one.max())}"
                )
        return _one_ranking(shapes, sparsity, {n: lamp_scores(s) for n, s in given.items()})


_BY_NAME: dict[str, Allocate] = {
    "uniform": Uniform(),
    "uniform_all": Uniform(dense_first=False),
    "er": ER(),
    "erk": ERK(),
    "global": Global(),
    "lamp": LAMP(),
}
for _name, _allocation in _BY_NAME.items():
    ALLOCATIONS.register(_name)(_allocation)


def lamp_scores(scores: Tensor) -> Tensor:
    """Scores of one layer, any shape -> their LAMP scores, flat and ascending, float64.

    The last is exactly 1. scores: finite, 0 or more; or -inf, which stays so.

    >>> lamp_scores(torch.tensor([3., 1., 2.]))
    tensor([0.0714, 0.3077, 1.0000], dtype=torch.float64)
    """
    ascending = scores.detach().flatten().double().sort().values
    absent = int((ascending == -torch.inf).sum())
    if absent:
        return torch.cat([ascending[:absent], lamp_scores(ascending[absent:])])
    if len(ascending) == 0:
        return ascending
    # Scaling by the largest changes no ratio, and no square can overflow.
    squares = (ascending / ascending[-1].clamp_min(torch.finfo(torch.float64).tiny)).square()
    at_or_above = squares.flip(0).cumsum(0).flip(0)
    lamp = torch.where(at_or_above > 0, squares / at_or_above, 0.0)
    lamp[-1] = 1.0
    return lamp


def _ratio(shape: Shape) -> float:
    """sum(shape) / prod(shape); 0 for an empty weight, which has nothing to share."""
    return sum(shape) / max(1, math.prod(shape))


def _in_proportion(
    raw: Mapping[str, float], shapes: Mapping[str, Shape], sparsity: float
) -> dict[str, float]:
    """Densities eps * raw that meet the sparsity over all layers, none above 1.

    While the largest would exceed 1, all layers equal to it become dense and eps is solved again.
    """
    sizes = {name: math.prod(shape) for name, shape in shapes.items()}
    budget = (1.0 - sparsity) * sum(sizes.values())
    dense = {name for name, size in sizes.items() if size == 0}
    while rest := [name for name in shapes if name not in dense]:
        left = budget - sum(sizes[name] for name in dense)
        eps = left / math.fsum(raw[name] * sizes[name] for name in rest)
        largest = max(raw[name] for name in rest)
        if largest * eps <= 1:
            return {n: 0.0 if n in dense else 1.0 - eps * raw[n] for n in shapes}
        dense |= {name for name in rest if raw[name] == largest}
    # A layer's share never exceeds what is left, so this is a sparsity of (nearly) 0.
    return dict.fromkeys(shapes, 0.0)


def _checked(shapes: Mapping[str, Shape], scores: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """Scores in the order of `shapes`; BudgetError for a missing or NaN one."""
    given = scores or {}
    for name in shapes:
        if name not in given:
            raise BudgetError(f"layer {name!r}: this allocation ranks scores, and none was given")
        if torch.isnan(given[name]).any():
            raise BudgetError(f"layer {name!r}: scores hold NaN, so they cannot be ranked")
    return {name: given[name] for name in shapes}


def _one_ranking(
    shapes: Mapping[str, Shape], sparsity: float, scores: Mapping[str, Tensor]
) -> dict[str, float]:
    """Sparsities when the best units of all layers together stay, as many as the budget holds."""
    names = [name for name in shapes if math.prod(shapes[name])]
    total = sum(math.prod(shapes[name]) for name in names)
    budget = round((1.0 - sparsity) * total)
    counts = torch.tensor([scores[name].numel() for name in names])
    sizes = torch.tensor([math.prod(shapes[name]) for name in names]) // counts  # weights in a unit
    flat = torch.cat([scores[name].detach().flatten().cpu() for name in names])
    layer = torch.repeat_interleave(torch.arange(len(names)), counts)
    there = flat != -torch.inf
    if int(sizes[layer[there]].sum()) >= budget:  # the absent ones need no order then
        flat, layer = flat[there], layer[there]
    layer = layer[flat.sort(descending=True, stable=True).indices]
    best = int(torch.searchsorted(sizes[layer].cumsum(0), budget, right=True))
    kept = torch.bincount(layer[:best], minlength=len(names)).tolist()
    found = dict.fromkeys(shapes, 0.0)
    found.update({n: 1.0 - k / c for n, k, c in zip(names, kept, counts.tolist(), strict=True)})
    return found
