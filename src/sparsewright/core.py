"""The one idea: a pattern folds a weight into a (groups, units) table, and a mask keeps the best
k units of every group.

Unstructured is one group of single weights; N:M is many groups of M; constant fan-in is one
group per output neuron; blocks and channels are groups whose units are tiles or rows. Scores say
which units are best, schedules say how many, methods say when; none of them knows another's name.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from .kept import Storage

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
class View:
    """Some weights of a layer, as scores see them: `weight` with its gradient in `.grad`.

    weight: absent weights are 0. mask: bool in the weight's shape, True = present. The shape is
    that of the layer's weight, or for a score that sees single weights any other. keep: weights
    that the whole layer is to keep; None where that is not settled yet.
    """

    name: str
    weight: Tensor
    mask: Tensor
    generator: torch.Generator
    keep: int | None = None

    @property
    def shape(self) -> Shape:
        return tuple(self.weight.shape)


@dataclass(eq=False)
class Layer:
    """One sparse weight of a model: where it is stored, its pattern, its budget, what is present.

    name: dotted name of the module, or of the parameter where it is not called `weight`.
    keep: units present in every group once the method has done its work.
    generator: the CPU random source that all random choices of a run draw from.
    is_lookup: the weight's rows are inputs (an embedding), not output neurons.
    is_own: its sparsity was asked of it alone (overrides, masks), so no budget moves to or from it.
    memory: what the method keeps of this layer between steps, by name, made in `begin`; it is part
    of a checkpoint. rate: the learning rate of the optimizer's coming step for this weight.
    """

    name: str
    storage: Storage
    pattern: Pattern
    keep: int
    generator: torch.Generator
    aliases: tuple[str, ...] = ()
    is_lookup: bool = False
    is_own: bool = False
    memory: dict[str, Tensor] = field(default_factory=dict)
    rate: float = 0.0

    @property
    def weight(self) -> nn.Parameter:
        """The parameter: the dense weight with zeros where absent, or the present values alone."""
        return self.storage.weight

    @property
    def shape(self) -> Shape:
        """Of the dense weight."""
        return self.storage.shape

    @property
    def numel(self) -> int:
        """Weights, present or absent."""
        return math.prod(self.shape)

    @cached_property
    def _size(self) -> tuple[int, int]:
        return table_size(self.pattern, self.shape)

    @property
    def groups(self) -> int:
        return self._size[0]

    @property
    def units(self) -> int:
        """Units in each group."""
        return self._size[1]

    @cached_property
    def unit_size(self) -> int:
        """Weights in one unit."""
        return unit_size(self.pattern, self.shape)

    @property
    def present_units(self) -> Tensor:
        """Flat present units (group * units + unit), int64, ascending."""
        return self.storage.units()

    @property
    def present(self) -> int:
        """Number of weights present now, exact."""
        return self.storage.count() * self.unit_size

    @property
    def is_full(self) -> bool:
        """Whether all units are present: no weight is absent that may be present."""
        return self.storage.count() == self.groups * self.units

    @property
    def sparsity(self) -> float:
        """Fraction of weights absent now."""
        return 1.0 - self.present / max(1, self.numel)

    @property
    def may_share(self) -> bool:
        """Whether budget may move between this layer and others."""
        return not self.is_own and self.numel > 0 and len(self.pattern.allowed(self.units)) > 1

    @property
    def mask(self) -> Tensor:
        """Bool in the dense weight's shape, True = present."""
        return self.storage.mask()

    @property
    def absent(self) -> Tensor:
        """Bool in the dense weight's shape, True = absent; to be read only: it may be kept."""
        return self.storage.absent

    @property
    def table(self) -> Tensor:
        """(groups, units) bool, True = present; as large as the dense weight's units."""
        return self.storage.table()

    def set_table(self, table: Tensor) -> None:
        """Other present units: bool (groups, units), or flat units as `present_units` has them.

        A weight that stays keeps its value.
        """
        self.storage.place(as_units(self, table))


def as_units(layer: Layer, wish: Tensor) -> Tensor:
    """Flat units, ascending, of a (groups, units) bool table or of flat units; ValueError."""
    if wish.dtype == torch.bool and wish.shape == (layer.groups, layer.units):
        return wish.detach().reshape(-1).nonzero().squeeze(1).to(layer.weight.device)
    good = wish.dtype == torch.int64 and wish.dim() == 1
    if not good or (len(wish) and bool((wish[1:] <= wish[:-1]).any())):
        raise ValueError(
            f"layer {layer.name!r}: a table must be bool of shape "
            f"{(layer.groups, layer.units)}, or ascending flat units, int64; got {wish.dtype} of "
            f"shape {tuple(wish.shape)}"
        )
    if len(wish) and not (int(wish[0]) >= 0 and int(wish[-1]) < layer.groups * layer.units):
        raise ValueError(
            f"layer {layer.name!r}: units must lie in [0, {layer.groups * layer.units}); got "
            f"{int(wish[0])} to {int(wish[-1])}"
        )
    return wish.detach().to(layer.weight.device)


def as_table(layer: Layer, wish: Tensor) -> Tensor:
    """(groups, units) bool table of the same; ValueError."""
    if wish.dtype == torch.bool and wish.shape == (layer.groups, layer.units):
        return wish.detach().to(layer.weight.device)
    return table_of(as_units(layer, wish), layer.groups, layer.units)


def table_of(units: Tensor, groups: int, each: int) -> Tensor:
    """(groups, each) bool, True at flat units.

    >>> table_of(torch.tensor([1, 2]), 2, 2)
    tensor([[False,  True],
            [ True, False]])
    """
    flat = torch.zeros(groups * each, dtype=torch.bool, device=units.device)
    flat[units] = True
    return flat.view(groups, each)


def table_size(pattern: Pattern, shape: Shape) -> tuple[int, int]:
    """(groups, units) of the pattern's table for a weight of this shape."""
    groups, units = pattern.fold(torch.empty(shape, device="meta")).shape
    return groups, units


def unit_size(pattern: Pattern, shape: Shape) -> int:
    """Weights in one unit; all weights are in one, unless the pattern says `unit_size` itself."""
    own = getattr(pattern, "unit_size", None)
    if own is not None:
        return int(own)
    groups, units = table_size(pattern, shape)
    return math.prod(shape) // max(1, groups * units)


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

    Higher is better. The pattern sums the scores inside a unit. An attribute `sees` may say what
    it must be shown: "all" (if it says nothing), the whole weight in its shape; "single", any
    weights in any shape, since it compares none or only present ones; "nothing", as all weights
    are worth the same and chance decides. An attribute `of_rows`, True, says that it judges whole
    output neurons or filters alone; `needs_keep`, True, that it must know how many weights a layer
    keeps, so that no allocation can rank by it.
    """

    @property
    def needs_gradient(self) -> bool:
        """Whether it reads `layer.weight.grad`."""

    def __call__(self, layer: View) -> Tensor: ...


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
    """What a method wants of a layer: its next units, and which of them start anew.

    units: flat present units, ascending, or a (groups, units) bool table. fresh: units, in the
    same form, that start anew although they were present before; units that were absent always
    do. values: (units that start anew, unit_size), in order of the units; None means 0.
    """

    units: Tensor
    fresh: Tensor | None = None
    values: Tensor | None = None


@dataclass(frozen=True)
class Exchange:
    """The same said by what changes, which takes less memory where little does.

    leaves: (present units) bool, in order of `layer.present_units`. comes: flat units, ascending,
    that were absent or leave; they start anew. values: (comes, unit_size); None means 0.
    """

    leaves: Tensor
    comes: Tensor
    values: Tensor | None = None


Wish = Exchange | Update | Tensor
"""What a method may answer: a change, or the next units themselves."""


class Method(Protocol):
    """When a mask changes and to what. step counts optimizer steps from 0.

    needs_gradient: `update` reads the gradients of absent weights. skips_step: at the steps of an
    update the optimizer takes none (RigL's "either, or"). What else a method may do is in
    abilities.py.
    """

    @property
    def needs_gradient(self) -> bool: ...
    @property
    def skips_step(self) -> bool: ...
    def bind(self, steps: int | None) -> Method:
        """The same method with what depends on the length of the run filled in."""

    def begin(self, layer: Layer) -> Tensor:
        """The first present units: flat and ascending, or a (groups, units) bool table."""

    def due(self, step: int) -> bool:
        """Whether `update` is called before this optimizer step."""

    def update(self, layer: Layer, step: int) -> Wish | None:
        """The next units or what changes of them, or None to leave them."""
