"""The one idea: a pattern folds a weight into a (groups, units) table, and a mask keeps the best
k units of every group.

Unstructured is one group of single weights; N:M is many groups of M; constant fan-in is one
group per output neuron; blocks and channels are groups whose units are tiles or rows. Scores say
which units are best, schedules say how many, methods say when; none of them knows another's name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .topology import Topology

Shape = tuple[int, ...]
Schedule = Callable[[float], float]
"""step -> number. Steps may be fractions of a run: a schedule does not know what it counts."""


@runtime_checkable
class Pattern(Protocol):
    """Which sets of zeros are allowed, as a way to fold a weight into a (groups, units) table."""

    @property
    def sparsity(self) -> float | None:
        """The one sparsity that the pattern fixes (N:M), or None if it holds many."""

    def misfit(self, shape: Shape) -> str | None:
        """Why a weight of this shape cannot hold the pattern ("needs ..., got ..."), or None."""

    def fold(self, weight: Tensor) -> Tensor:
        """(weight shape) -> (groups, units); the entries of one unit are summed."""

    def unfold(self, table: Tensor, shape: Shape) -> Tensor:
        """(groups, units) -> (weight shape); a unit's entry is repeated over its weights."""

    def allowed(self, units: int) -> range:
        """The numbers of units that every group of `units` may keep, ascending."""


@dataclass(eq=False)
class Layer:
    """One sparse weight of a model: the parameter, its pattern, its budget and its present table.

    name: dotted name of the module, or of the parameter where it is not called `weight`.
    keep: units present in every group once the method has done its work.
    table: (groups, units) bool, True = present. Change it by `set_table` only.
    generator: the CPU random source that all random choices of a run draw from.
    is_lookup: the weight's rows are inputs (an embedding), not output neurons.
    """

    name: str
    weight: nn.Parameter
    pattern: Pattern
    keep: int
    table: Tensor
    generator: torch.Generator
    aliases: tuple[str, ...] = ()
    is_lookup: bool = False
    _absent: Tensor | None = field(default=None, repr=False)

    @property
    def shape(self) -> Shape:
        return tuple(self.weight.shape)

    @property
    def groups(self) -> int:
        return self.table.shape[0]

    @property
    def units(self) -> int:
        """Units in each group."""
        return self.table.shape[1]

    @property
    def unit_size(self) -> int:
        """Weights in one unit."""
        return self.weight.numel() // max(1, self.table.numel())

    @property
    def present(self) -> int:
        """Number of weights present now, exact."""
        return int(self.table.sum()) * self.unit_size

    @property
    def sparsity(self) -> float:
        """Fraction of weights absent now."""
        return 1.0 - self.present / max(1, self.weight.numel())

    @property
    def absent(self) -> Tensor:
        """Bool in the weight's shape, True = absent, on the weight's device (cached)."""
        if self._absent is None or self._absent.device != self.weight.device:
            mask = self.pattern.unfold(self.table, self.shape)
            self._absent = ~mask.to(self.weight.device)
        return self._absent

    @property
    def mask(self) -> Tensor:
        """Bool in the weight's shape, True = present."""
        return ~self.absent

    def set_table(self, table: Tensor) -> None:
        """Replace the table; it must be bool and of the same shape as the present one."""
        if table.dtype != torch.bool or table.shape != self.table.shape:
            raise ValueError(
                f"layer {self.name!r}: a table must be bool of shape {tuple(self.table.shape)}; "
                f"got {table.dtype} of shape {tuple(table.shape)}"
            )
        self.table = table.detach().to(self.weight.device)
        self._absent = None


@dataclass(frozen=True)
class Packed:
    """A weight as only its present values and their places, in one layout.

    layout: name of the layout. shape: (out, in) of the dense weight. tensors: what is stored, by
    the layout's own names. meta: the layout's integers that no tensor's shape tells.
    """

    layout: str
    shape: Shape
    tensors: Mapping[str, Tensor]
    meta: Mapping[str, int] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all stored tensors."""
        return sum(t.numel() * t.element_size() for t in self.tensors.values())


class Score(Protocol):
    """How much every weight of a layer is worth keeping: layer -> tensor in the weight's shape.

    Higher is better. The pattern sums the scores inside a unit.
    """

    @property
    def needs_gradient(self) -> bool:
        """Whether it reads `layer.weight.grad`."""

    def __call__(self, layer: Layer) -> Tensor: ...


class Allocate(Protocol):
    """How a whole-model sparsity is shared out over layers.

    shapes: layer name -> weight shape, in the model's order. sparsity: over all of them, [0, 1).
    scores: layer name -> (groups, units) mean score per weight of each unit, given when
    `needs_scores`. Returns a sparsity for every name; `budget.solve_budget` rounds to what each
    pattern holds, and takes layers without a choice (N:M, overrides) out before it asks.
    """

    @property
    def needs_scores(self) -> bool:
        """Whether it ranks scores."""

    @property
    def dense_first(self) -> bool:
        """Whether the model's first layer stays dense and outside the budget."""

    def __call__(
        self, shapes: Mapping[str, Shape], sparsity: float, scores: Mapping[str, Tensor] | None
    ) -> dict[str, float]: ...


@dataclass(frozen=True)
class Update:
    """What a method wants of a layer: its next table, and which units start anew.

    fresh: (groups, units) bool, units that start anew although they were present before; units
    that were absent always do. values: starting values of fresh weights, in the weight's shape;
    None means 0.
    """

    table: Tensor
    fresh: Tensor | None = None
    values: Tensor | None = None


class Method(Protocol):
    """When a mask changes and to what. step counts optimizer steps from 0.

    needs_gradient: `update` reads the gradients of absent weights. skips_step: at the steps of an
    update the optimizer takes none (RigL's "either, or").
    """

    @property
    def needs_gradient(self) -> bool: ...
    @property
    def skips_step(self) -> bool: ...
    def bind(self, steps: int | None) -> Method:
        """The same method with what depends on the length of the run filled in."""

    def begin(self, layer: Layer) -> Tensor:
        """The first (groups, units) bool table."""

    def due(self, step: int) -> bool:
        """Whether `update` is called before this optimizer step."""

    def update(self, layer: Layer, step: int) -> Update | Tensor | None:
        """The next table, or None to leave it; gradients are in `layer.weight.grad`."""


def keep_best(scores: Tensor, keep: int) -> Tensor:
    """(groups, units) scores -> bool table with exactly `keep` units present in every group.

    The highest scores win; among equals the first wins. keep: in [0, units]. -inf is allowed,
    NaN raises ValueError.

    >>> keep_best(torch.tensor([[3., 1., 2., 2.]]), 2)
    tensor([[ True, False,  True, False]])
    """
    groups, units = scores.shape
    if not 0 <= keep <= units:
        raise ValueError(f"keep must be in [0, {units}] (the units of a group); got {keep}")
    if torch.isnan(scores).any():
        raise ValueError("scores hold NaN: no order among them is defined")
    if keep in (0, units) or groups == 0:
        return torch.full((groups, units), keep > 0, dtype=torch.bool, device=scores.device)
    # Linear time: everything above the keep-th largest, then the first of its equals.
    cut = torch.kthvalue(scores, units - keep + 1, dim=1, keepdim=True).values
    above, equal = scores > cut, scores == cut
    room = keep - above.sum(dim=1, keepdim=True)
    return above | (equal & (equal.cumsum(dim=1) <= room))


MATRIX_LIKE = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Embedding)
ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")


@dataclass(frozen=True)
class Weight:
    """A parameter that can be made sparse, and where it lives."""

    name: str
    parameter: nn.Parameter
    module: nn.Module
    aliases: tuple[str, ...] = ()


def is_packed(module: nn.Module) -> bool:
    """Whether the module's weight is a vector of present values, with its places in `topology`."""
    return isinstance(getattr(module, "topology", None), Topology)


def find_weights(model: nn.Module) -> list[Weight]:
    """All weights that can be made sparse, in the model's order; tied weights appear once.

    Those are the weights of Linear, Conv1d/2d/3d and Embedding, the projections inside
    MultiheadAttention, and the weights of packed modules. Biases and norm parameters never are.

    >>> [w.name for w in find_weights(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)))]
    ['0', '2']
    """
    found: dict[int, Weight] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        names: tuple[str, ...] = ()
        if isinstance(module, MATRIX_LIKE) or is_packed(module):
            names = ("weight",)
        elif isinstance(module, nn.MultiheadAttention):
            names = ATTENTION
        for name in names:
            parameter = module._parameters.get(name)
            if parameter is None:
                continue
            full = f"{path}.{name}" if path else name
            short = full.removesuffix(".weight")
            first = found.get(id(parameter))
            if first is None:
                found[id(parameter)] = Weight(short, parameter, module)
            elif short != first.name and short not in first.aliases:
                found[id(parameter)] = Weight(
                    first.name, parameter, first.module, (*first.aliases, short)
                )
    return list(found.values())
