"""The two storages of a sparse weight: masked, a dense tensor with zeros; packed, its present
values alone. This file is the one place that knows the difference.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from .core import Exchange, Offers, Pattern, Shape, Storage, table_size, unit_size
from .errors import StateError
from .freed import give_back
from .gradients import mask_gradient, masked
from .kernels import moving
from .kernels.best import offers
from .kernels.masking import zero_
from .moving import move, weights_of
from .nn import PackedModule
from .optimizer_state import reset_state
from .patterns import places_of, row_step, units_are_places, units_of
from .replicas import Replicas
from .sampling import is_in, positions
from .weights import Weight

TILE = 2**16, 2**18
"""Fewest and most weights looked at together when the absent ones are scored: larger tiles are
looked at faster, and are to be small beside what is present."""
MANY = 2**16
"""Present weights from which on what was freed goes back to the system around a move."""


def storage_of(weight: Weight, pattern: Pattern) -> Storage:
    """The storage that a weight of a model has, with what is present in it now.

    Of a masked weight all is present: its zeros are not looked at.
    """
    if isinstance(weight.module, PackedModule):
        return PackedStorage(weight.module, pattern)
    return MaskedStorage(weight.parameter, pattern)


def misfit(weight: Weight, pattern: Pattern) -> str | None:
    """Why a weight cannot hold a pattern, for its shape or for what is present of it; or None."""
    reason = pattern.misfit(weight.shape)
    if reason is not None or not isinstance(weight.module, PackedModule):
        return reason
    if hasattr(pattern, "choose"):  # it has no units until it has chosen
        return None
    return PackedStorage(weight.module, pattern).misfit()


def tile_rows(pattern: Pattern, shape: Shape, present: int) -> int:
    """Rows of a weight to look at together: whole units of the pattern, about as many weights as
    an eighth of those present, within TILE."""
    step, (least, most) = row_step(pattern, shape), TILE
    tile = min(max(least, present // 8), most)
    return max(step, tile // max(1, math.prod(shape[1:])) // step * step)


class MaskedStorage:
    """A dense weight and a mask of its absent weights, which are put to 0 after every step."""

    holds_absent: ClassVar[bool] = True

    def __init__(self, weight: nn.Parameter, pattern: Pattern, table: Tensor | None = None):
        self.weight, self.pattern = weight, pattern
        if table is None:
            size = table_size(pattern, tuple(weight.shape))
            table = torch.ones(size, dtype=torch.bool, device=weight.device)
        self._table = table
        self._absent: Tensor | None = None

    @property
    def shape(self) -> Shape:
        return tuple(self.weight.shape)

    def units(self) -> Tensor:
        return self._table.reshape(-1).nonzero().squeeze(1).to(self.weight.device)

    def check(self, name: str) -> None:
        """Nobody else changes the table."""

    def count(self) -> int:
        return int(self._table.sum())

    def mask(self) -> Tensor:
        return ~self.absent

    @property
    def absent(self) -> Tensor:
        """Bool in the weight's shape, on its device (kept until the units change)."""
        if self._absent is None or self._absent.device != self.weight.device:
            mask = self.pattern.unfold(self._table.to(self.weight.device), self.shape)
            self._absent = ~mask
        return self._absent

    def find(self, units: Tensor) -> Tensor:
        return positions(self.units(), units)

    def offers(self, scores: Tensor, count: int, leaves: Tensor, last: bool) -> Offers:
        return offers(scores, count, None, leaves, last, self.units)

    def present(self) -> tuple[Tensor, Tensor | None]:
        gradient, mask = self._dense_gradient(), self.mask()
        return self.weight.detach()[mask], None if gradient is None else gradient[mask]

    def take(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        gradient = self._dense_gradient()
        values = self.weight.detach().reshape(-1)[places]
        return values, None if gradient is None else gradient.reshape(-1)[places]

    def gradient_at(self, places: Tensor) -> Tensor:
        gradient = self._dense_gradient()
        assert gradient is not None
        return gradient.reshape(-1)[places]

    def tiles(self, rows: int, gradients: bool) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        weight, mask = self.weight.detach(), self.mask()
        gradient = self._dense_gradient() if gradients else None
        for i in range(0, self.shape[0], rows):
            part = slice(i, i + rows)
            yield weight[part], None if gradient is None else gradient[part], mask[part]

    def rows(self) -> Tensor:
        return self.mask().flatten(1).nonzero()[:, 0]

    def input_counts(self) -> Tensor:
        return self.mask().transpose(0, 1).flatten(1).sum(dim=1)

    def reached(self, alive: Tensor | None, is_lookup: bool) -> Tensor:
        mask = self.mask()
        joined = mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask
        joined = joined.T if is_lookup else joined
        return (joined if alive is None else joined & alive).any(dim=1)

    def has_gradient(self) -> bool:
        return self.weight.grad is not None

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        self.weight.masked_scatter_(self.mask(), values.to(self.weight))

    @torch.no_grad()
    def place(self, units: Tensor, optimizer: Optimizer | None = None) -> None:
        self._set(units)
        zero_(self.weight, self.absent)

    def select(self, units: Tensor) -> None:
        self._set(units)

    def release(self) -> None:
        """There is nothing: the mask is a part of every step."""

    @torch.no_grad()
    def move(self, exchange: Exchange, optimizer: Optimizer) -> None:
        new = self.pattern.unfold(self._exchange(exchange), self.shape)  # or gone
        zero_(self.weight, new)
        mask_gradient(self.weight, new)
        if exchange.values is not None:
            places = places_of(self.pattern, exchange.comes, self.shape)
            self.weight[torch.unravel_index(places, self.shape)] = exchange.values.to(self.weight)
        reset_state(optimizer, self.weight, new)

    def watch(self, wanted: Callable[[], bool], replicas: Replicas) -> Any:
        """A hook that masks a gradient as it arrives, unless it is wanted dense."""
        if not self.weight.requires_grad:
            return RemovableHandle(OrderedDict())
        hooks = (self.weight._backward_hooks or {}).values()
        _refuse_second(any(getattr(hook, "of_sparsifier", False) for hook in hooks))

        def hook(gradient: Tensor) -> Tensor | None:
            return None if wanted() else masked(gradient, self.absent)

        hook.of_sparsifier = True  # type: ignore[attr-defined]
        return self.weight.register_hook(hook)

    def mask_gradient(self) -> None:
        mask_gradient(self.weight, self.absent)

    @torch.no_grad()
    def settle(self) -> None:
        zero_(self.weight, self.absent)

    @torch.no_grad()
    def follow(self, copy: Weight) -> None:
        copy.parameter.masked_fill_(self.absent.to(copy.parameter.device), 0.0)

    def _set(self, units: Tensor) -> None:
        table = torch.zeros(self._table.shape, dtype=torch.bool, device=self.weight.device)
        table.view(-1)[units.to(table.device)] = True  # the model may have moved since
        self._table, self._absent = table, None

    def _exchange(self, exchange: Exchange) -> Tensor:
        """Change the table; (groups, units) bool of all units that leave or come."""
        changed = torch.zeros(self._table.shape, dtype=torch.bool, device=self.weight.device)
        changed.view(-1)[self.units()[exchange.leaves]] = True
        self._table, self._absent = self._table.to(changed.device) & ~changed, None
        self._table.view(-1)[exchange.comes] = True
        changed.view(-1)[exchange.comes] = True
        return changed

    def _dense_gradient(self) -> Tensor | None:
        gradient = self.weight.grad
        return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient


class PackedStorage:
    """A packed module: its Parameter holds the present values in order of their places."""

    holds_absent: ClassVar[bool] = False

    def __init__(self, module: PackedModule, pattern: Pattern):
        self.module, self.pattern = module, pattern
        self._replicas: Replicas | None = None
        self._known = module.topology

    def check(self, name: str) -> None:
        """StateError if the places changed since, to others of which there are more or fewer."""
        if self.module.topology is self._known:
            return
        reason = self.misfit()
        if reason is None and self.module.nnz != self._known.nnz:
            reason = f"has {self.module.nnz} present weights; {self._known.nnz} were attached"
        if reason is not None:
            raise StateError(
                f"layer {name!r}: other places were loaded, and do not go with this Sparsifier: "
                f"pattern {self.pattern} {reason}. Load its state_dict too, or attach anew"
            )
        self._known = self.module.topology

    @property
    def weight(self) -> nn.Parameter:
        return self.module.weight

    @property
    def shape(self) -> Shape:
        return self.module.shape

    def misfit(self) -> str | None:
        """Why the present weights are not the pattern's: whole units, as many in every group that
        is not empty."""
        units, (groups, each) = self.units(), table_size(self.pattern, self.shape)
        inside = self.module.nnz
        if hasattr(self.pattern, "chosen"):  # there may be places outside of units
            of_all = units_of(self.pattern, self.module.topology.places(), self.shape)
            inside = int((of_all >= 0).sum())
        if len(units) * unit_size(self.pattern, self.shape) != inside:
            return f"needs whole units; the {self.module.nnz} packed weights are not"
        counts = torch.bincount(units // max(1, each), minlength=groups)
        counts = counts[counts > 0]
        if len(counts) and int(counts.min()) != int(counts.max()):
            return (
                f"needs as many units in every group; the packed weights have from "
                f"{int(counts.min())} to {int(counts.max())} (sw.pack takes masks, where present "
                "weights are 0)"
            )
        return None

    def units(self) -> Tensor:
        places = self.module.topology.places()
        units = units_of(self.pattern, places, self.shape)
        if units is places:
            return units
        units = units.unique()
        return units[1:] if len(units) and int(units[0]) < 0 else units  # places outside of units

    def count(self) -> int:
        if hasattr(self.pattern, "chosen"):
            return len(self.units())
        return self.module.topology.nnz // max(1, unit_size(self.pattern, self.shape))

    def mask(self) -> Tensor:
        flat = torch.zeros(math.prod(self.shape), dtype=torch.bool, device=self.weight.device)
        flat[self.module.topology.places()] = True
        return flat.view(self.shape)

    def find(self, units: Tensor) -> Tensor:
        if units_are_places(self.pattern, self.shape):
            return moving.find(self.module.topology, units)
        return positions(self.units(), units)

    def offers(self, scores: Tensor, count: int, leaves: Tensor, last: bool) -> Offers:
        plain = not units_are_places(self.pattern, self.shape)
        own = None if plain else self.module.topology
        return offers(scores, count, own, leaves, last, self.units)

    def present(self) -> tuple[Tensor, Tensor | None]:
        return self.weight.detach(), self.weight.grad

    def take(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        values, gradient = self.weight.detach(), self.weight.grad
        at = moving.find(self.module.topology, places.reshape(-1)).view(places.shape)
        return values[at], None if gradient is None else gradient[at]

    def gradient_at(self, places: Tensor) -> Tensor:
        return self._averaged(self.module.gradient_at(places))

    def tiles(self, rows: int, gradients: bool) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        for i in range(0, self.shape[0], rows):
            yield self._tile(i, min(self.shape[0], i + rows), gradients)

    def _tile(self, begin: int, end: int, gradients: bool) -> tuple[Tensor, Tensor | None, Tensor]:
        shape = (end - begin, *self.shape[1:])
        gradient = self._dense_gradient(begin, end).view(shape) if gradients else None
        weight, mask = moving.shown(self.module.topology, self.weight.detach(), begin, end)
        return weight.view(shape), gradient, mask.view(shape)

    def _dense_gradient(self, begin: int, end: int) -> Tensor:
        """Rows [begin, end) of the gradient of all weights, absent ones too."""
        if self.module.topology.nnz == math.prod(self.shape):
            assert self.weight.grad is not None
            width = math.prod(self.shape[1:])
            return self.weight.grad[begin * width : end * width]
        return self._averaged(self.module.dense_gradient(begin, end))

    def _averaged(self, gradient: Tensor) -> Tensor:
        return gradient if self._replicas is None else self._replicas.average(gradient)

    def rows(self) -> Tensor:
        return self.module.topology.rows()

    def input_counts(self) -> Tensor:
        each = max(1, math.prod(self.shape[2:]))
        inputs = self.module.topology.columns.long() // each
        return torch.bincount(inputs, minlength=self.shape[1])

    def reached(self, alive: Tensor | None, is_lookup: bool) -> Tensor:
        each = max(1, math.prod(self.shape[2:]))
        out = self.module.topology.rows()
        inputs = self.module.topology.columns.long() // each
        size = self.shape[0]
        if is_lookup:
            out, inputs, size = inputs, out, self.shape[1]
        reached = torch.zeros(size, dtype=torch.bool, device=out.device)
        reached[out if alive is None else out[alive[inputs]]] = True
        return reached

    def has_gradient(self) -> bool:
        full = self.module.topology.nnz == math.prod(self.shape)
        return self.weight.grad is not None if full else bool(self.module.watch.seen)

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        self.weight.copy_(values)

    @torch.no_grad()
    def place(self, units: Tensor, optimizer: Optimizer | None = None) -> None:
        before, places = self.module.topology.places(), self._places(units)
        self._known = self.module.topology
        if torch.equal(before, places):
            return
        gone, born = ~is_in(before, places), places[~is_in(places, before)]
        self._check_size(len(places), training=False)
        move(self.module, gone, born, None, optimizer)
        self.weight.grad, self._known = None, self.module.topology

    def release(self) -> None:
        self.module.topology.release()
        if self.module.nnz >= MANY and self.weight.device.type == "cpu":
            give_back()

    def select(self, units: Tensor) -> None:
        raise StateError("packed weights that are absent have no values that could stay")

    @torch.no_grad()
    def move(self, exchange: Exchange, optimizer: Optimizer) -> None:
        plain = units_are_places(self.pattern, self.shape)
        units = exchange.comes[:0] if plain else self.units()[exchange.leaves]
        gone, born, values = weights_of(self.module, self.pattern, units, exchange)
        after = self.module.nnz - int(gone.count_nonzero()) + len(born)
        self._check_size(after, training=True)
        move(self.module, gone, born, values, optimizer)
        self._known = self.module.topology

    def watch(self, wanted: Callable[[], bool], replicas: Replicas) -> Any:
        _refuse_second(self.module.watch.wanted is not None)
        self._replicas = replicas
        return self.module.watch.begin(wanted)

    def mask_gradient(self) -> None:
        """There are none."""

    def settle(self) -> None:
        """Nothing absent has a value. What was kept of this step's backward is over."""
        self.module.watch.seen.clear()

    @torch.no_grad()
    def follow(self, copy: Weight) -> None:
        if not isinstance(copy.module, PackedModule):
            raise StateError(f"weight {copy.name!r} of the copy is not packed; this one is")
        before, places = copy.module.topology.places(), self.module.topology.places()
        if torch.equal(before.to(places.device), places):
            return
        before = before.to(places.device)
        stays = is_in(places, before)
        values = self.weight.detach().clone()
        values[stays] = copy.parameter.detach().to(values)[is_in(before, places)]
        copy.module.move(places, values)

    def _check_size(self, after: int, *, training: bool) -> None:
        if self._replicas is not None:
            self._replicas.check_size(self.module.nnz, after, training=training)

    def _places(self, units: Tensor) -> Tensor:
        places = places_of(self.pattern, units.to(self.weight.device), self.shape).reshape(-1)
        ascend = bool((places[1:] > places[:-1]).all())
        return places if ascend else places.sort().values


def _refuse_second(held: bool) -> None:
    """StateError if another Sparsifier holds the weight: the two would undo each other's masks."""
    if held:
        raise StateError("attached already: call detach() on the Sparsifier that holds it first")
