"""CHTs: links go by chance, small ones first, and come where paths of length three are many; no
gradient is looked at (Zhang, Zhao, Wu, Cannistraci et al., ICLR 2024 and NeurIPS 2025)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor, nn

from ..core import Exchange, Layer, Score, Update
from ..errors import ConfigError, SparsityWarning
from ..facts import Facts
from ..kernels.best import best_table
from ..patterns import places_of
from ..ranking import first_units
from . import METHODS
from ._drop_grow import check_fraction, check_option
from ._percolate import Chains, chains_of, check_chains, pairs_among, percolated
from ._refill import refill
from ._timing import check_timing, check_within, end_of, is_due
from ._topology import LINKS

LAST = -1e30
"""Key of what is taken only where nothing with a probability above 0 is left."""
STAYS = "stays"
"""Table of what percolation left, from the removal to the growth of one update; else empty."""
STEEPNESS = 6.0
"""Of the sigmoid decay of CHTss (the paper's k)."""


@METHODS.register("chts")
@dataclass(frozen=True)
class CHTs:
    """Links go by a draw over magnitude and relative importance, and come where the network's own
    topology makes them likely; no gradient is looked at.

    Every `every` steps floor(fraction * present) units go: those that stay are drawn with
    probabilities in proportion to S^(d / (1 - d)), S = |w| / (a + (1 - a) * row) + |w| / (a +
    (1 - a) * column), row and column the sums of |w| there. Others come, drawn in proportion to
    their Cannistraci-Hebb score, as many as every group lacks; where too few have one, by chance.

    fraction: zeta. magnitude: a in [0, 1], 1 for |w| alone, 0 for relative importance alone.
    softness: d at the first and at the last step, in [0, 1], on a straight line between; 0 draws
    without regard of the weights, 1 removes the smallest without a draw. links: "CH2-L3n", by nodes
    of paths, or "CH3-L3p", by paths. grow_softness: d of the growth; CHT's is 1, the best come.
    initial_sparsity: CHTss's; the sparsity rises from it to the asked one along a sigmoid, met at
    `end` exactly; None holds it from the start. A convolution's inputs are its channels at every
    place of the kernel. chains: names of layers that feed one another, in order. Between two of a
    chain a neuron that the removal left without inputs or outputs is inactive: its other links go,
    until nothing changes, and as many grow elsewhere in the layer. None finds the chains inside
    every nn.Sequential, over activations, norms, pooling, dropout and Flatten, and warns where
    there are none; () removes no neurons. end: by default three quarters of the run. initial: score
    of the first mask, by default the paper's bipartite receptive field.

    >>> chts = CHTs(every=10, end=100)
    >>> [round(chts.softness_at(step), 3) for step in (0, 50, 100)]
    [0.5, 0.625, 0.75]
    """

    every: int = 100
    fraction: float = 0.3
    end: int | None = None
    magnitude: float = 0.0
    softness: tuple[float, float] = (0.5, 0.75)
    links: str = "CH2-L3n"
    grow_softness: float = 0.5
    initial_sparsity: float | None = None
    initial: str | Score = "receptive_field"
    chains: Chains | None = None
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    facts: ClassVar[Facts] = Facts(
        source=(
            "Zhang, Zhao, Wu, Muscoloni, Cannistraci, *Epitopological learning and "
            "Cannistraci-Hebb network shape intelligence brain-inspired theory for ultra-sparse "
            "advantage in deep learning*, ICLR 2024 (CHT); Zhang et al., *Brain network science "
            "modelling of sparse neural networks enables Transformers and LLMs to perform as "
            "fully connected*, NeurIPS 2025 (CHTs, CHTss)"
        ),
        when=(
            "Where gradients of absent weights are not to be had or not to be trusted. At an "
            "update it multiplies dense matrices of links: take SET for layers of very many "
            "neurons."
        ),
        memory=(
            "nothing between updates; at an update dense tables of outputs x inputs, outputs x "
            "outputs and inputs x inputs, of one layer at a time"
        ),
        flops=(
            "training 3 f_S, inference f_S; an update takes about 4 * outputs * inputs * (outputs "
            "+ inputs) besides in every layer, whatever the batch"
        ),
        published=(
            "CIFAR-10, MLP at 99 %: CHTs 69.97 %, CHTss 71.29 %, SET 62.70 %, RigL 63.90 %, dense "
            "62.85 % (NeurIPS 2025)"
        ),
        departs=(
            "Counts are exact in every group of the pattern. Not certain, and chosen here: that "
            "the survivors are drawn and not the removed, the growth's softness, the fraction's "
            "default and that it is constant, links scored after the removal, new weights of 0, "
            "and the sigmoid's scale (k times the fraction of the ramp less a half, stretched so "
            "that both ends are met). Inactive neurons are removed only where layers are known to "
            "feed one another; a group that must hold a number of units (fan_in, N:M) may link "
            "them again, and a unit of several weights stays while one of them joins active ones. "
            "The constant that a neuron without inputs passes on, its bias, is lost with it."
        ),
    )

    def __post_init__(self) -> None:
        name = type(self).__name__
        check_timing(name, self.every, 0, self.end)
        check_fraction(f"method {name}", self.fraction)
        check_option(name, "links", self.links, tuple(LINKS))
        numbers = {"magnitude": self.magnitude, "grow_softness": self.grow_softness}
        numbers |= {f"softness[{i}]": d for i, d in enumerate(self.softness)}
        for option, value in numbers.items():
            if not 0.0 <= value <= 1.0:
                raise ConfigError(f"method {name}: {option} must be in [0, 1]; got {value}")
        if self.initial_sparsity is not None and not 0.0 <= self.initial_sparsity < 1.0:
            raise ConfigError(
                f"method {name}: initial_sparsity must be in [0, 1); got {self.initial_sparsity}"
            )

    def bind(self, steps: int | None) -> CHTs:
        """Raises ConfigError if the run ends before a sparsity that rises is met."""
        end = end_of(type(self).__name__, 0, self.end, steps)
        if self.initial_sparsity is not None:
            check_within(type(self).__name__, "the sparsity must be met", end, steps)
        return replace(self, end=end)

    def meet(self, model: nn.Module, layers: Sequence[Layer]) -> CHTs:
        """The same, that knows which layers feed one another."""
        if self.chains is not None:
            check_chains(type(self).__name__, self.chains, layers)
            return self
        chains = chains_of(model, layers)
        if len(layers) > 1 and not chains:
            warnings.warn(
                f"method {type(self).__name__} removes no inactive neurons: no nn.Sequential says "
                "which layers feed one another; name them (chains=((first, second, ...),)), or "
                "do without (chains=())",
                SparsityWarning,
                stacklevel=3,
            )
        return replace(self, chains=chains)

    def begin(self, layer: Layer) -> Tensor:
        layer.memory[STAYS] = torch.empty(0, dtype=torch.bool)
        first = replace(layer, keep=self.kept(layer, 0))
        return first_units(first, self.initial)

    def due(self, step: int) -> bool:
        if self.initial_sparsity is not None:
            return step > 0 and step <= (self.end or 0)
        return self._moves(step)

    def _moves(self, step: int) -> bool:
        return is_due(step, self.every, self.every, self.end)

    def kept(self, layer: Layer, step: int) -> int:
        """Units present in every group at a step."""
        if self.initial_sparsity is None:
            return layer.keep
        assert self.end is not None, "bind() comes first"
        first = layer.units - math.floor(self.initial_sparsity * layer.units + 1e-9)
        fallen = sigmoid_ramp(step / max(1, self.end))
        return max(layer.keep, math.ceil(first + (layer.keep - first) * fallen - 1e-9))

    def softness_at(self, step: int) -> float:
        """d at a step, on the line between the two."""
        assert self.end is not None, "bind() comes first"
        return self.softness[0] + (self.softness[1] - self.softness[0]) * min(
            1.0, step / max(1, self.end)
        )

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        """The removal in layers that feed one another, of all of them before any grows; budgets
        stay."""
        pairs = pairs_among(layers, self.chains or ()) if self._acts(step) else []
        chained = {layer.name for pair in pairs for layer in pair}
        stays = {y.name: self._stays(y, step) for y in layers if y.name in chained}
        fixed = {name for name, table in stays.items() if table is None}
        tables = {
            layer.name: layer.table if (table := stays[layer.name]) is None else table
            for layer in layers
            if layer.name in chained
        }
        left = percolated(pairs, tables, fixed)
        for layer in layers:
            if layer.name in chained - fixed:
                layer.memory[STAYS] = left[layer.name]

    def update(self, layer: Layer, step: int) -> Update | Exchange | None:
        if not self._acts(step):
            return None
        keep = self.kept(layer, step)
        if not layer.weight.requires_grad:  # what it grew would be 0 for ever
            return refill(layer, 0, keep, drop="magnitude", grow="random")
        left = layer.memory.pop(STAYS, torch.empty(0, dtype=torch.bool))
        layer.memory[STAYS] = torch.empty(0, dtype=torch.bool)
        stays = left if left.numel() else self._stays(layer, step)
        if stays is None:
            return None
        wanted = drawn(self._likely(layer, stays), self.grow_softness, layer)
        table = best_table(wanted.masked_fill_(stays, torch.inf), keep)
        return Update(table, table & ~stays)

    def _acts(self, step: int) -> bool:
        return self._ends(step) or self._moves(step)

    def _ends(self, step: int) -> bool:
        return self.initial_sparsity is not None and step == self.end

    def _stays(self, layer: Layer, step: int) -> Tensor | None:
        """(groups, units) bool: what the removal leaves; None for a layer in which nothing moves"""
        here, keep = layer.table, self.kept(layer, step)
        present = layer.storage.count()
        moved = math.floor(self.fraction * present + 1e-9)
        still = (moved == 0 and not self._ends(step)) or keep == layer.units
        if still or not layer.weight.requires_grad:
            return None
        keys = drawn(self._importance(layer), self.softness_at(step), layer)
        keys.masked_fill_(~here, -torch.inf)
        stays = best_table(keys.view(1, -1), present - moved).view(here.shape)
        return stays & best_table(keys.masked_fill(~stays, -torch.inf), keep)

    def _importance(self, layer: Layer) -> Tensor:
        """(groups, units) S, summed over the weights of a unit; 0 where absent."""
        places = places_of(layer.pattern, layer.present_units, layer.shape)
        weight = torch.zeros(layer.numel, device=layer.weight.device)
        weight[places] = layer.storage.take(places)[0].float().abs()
        size = weight.view(layer.shape[0] if layer.shape else 1, -1)
        share = 1.0 - self.magnitude
        row = (self.magnitude + share * size.sum(dim=1, keepdim=True)).clamp_(min=1e-30)
        column = (self.magnitude + share * size.sum(dim=0)).clamp_(min=1e-30)
        return layer.pattern.fold((size / row + size / column).view(layer.shape))

    def _likely(self, layer: Layer, table: Tensor) -> Tensor:
        """(groups, units) scores of links in the network of a table."""
        links = layer.pattern.unfold(table, layer.shape).flatten(1).float()
        return layer.pattern.fold(LINKS[self.links](links).view(layer.shape))


@METHODS.register("chtss")
@dataclass(frozen=True)
class CHTss(CHTs):
    """CHTs whose sparsity rises from `initial_sparsity` along a sigmoid to the asked one.

    Options as for CHTs.

    >>> CHTss(end=100).initial_sparsity
    0.5
    """

    initial_sparsity: float | None = 0.5


def drawn(scores: Tensor, softness: float, layer: Layer) -> Tensor:
    """Keys whose largest n are a draw of n without replacement, in proportion to
    scores^(softness / (1 - softness)); what scores 0 comes after all others, by chance.

    (Gumbel's trick: Efraimidis and Spirakis 2006; Kool, van Hoof, Welling 2019.)
    """
    chance = torch.rand(scores.shape, generator=layer.generator, dtype=torch.float64)
    chance = chance.to(scores.device)
    last = LAST * (1.0 + chance)
    if softness >= 1.0:
        return torch.where(scores > 0, scores.double(), last)
    power = softness / (1.0 - softness)
    keys = power * scores.double().log() - (-chance.clamp(min=1e-300).log()).log()
    return torch.where(scores > 0, keys, last)


def sigmoid_ramp(x: float) -> float:
    """From 0 at x = 0 to 1 at x = 1 along a logistic curve.

    >>> [round(sigmoid_ramp(x), 4) for x in (0.0, 0.25, 0.5, 1.0)]
    [0.0, 0.1491, 0.5, 1.0]
    """
    low, now, high = (
        1.0 / (1.0 + math.exp(-STEEPNESS * (at - 0.5))) for at in (0.0, min(x, 1.0), 1.0)
    )
    return (now - low) / (high - low)
