"""Packed storage: a module's Parameter holds the present values alone, in order of their places."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .core import Exchange, Pattern, Shape, table_of, table_size, unit_size
from .errors import StateError
from .freed import give_back
from .kept import Offers, refuse_second
from .kernels import moving
from .kernels.best import offers
from .moving import move, weights_of
from .nn import PackedModule
from .patterns import places_of, units_are_places, units_of
from .replicas import Replicas
from .sampling import is_in, positions
from .weights import Weight

MANY = 2**16
"""Present weights from which on what was freed goes back to the system around a move."""


class PackedStorage:
    """A packed module: its Parameter holds the present values in order of their places."""

    holds_absent: ClassVar[bool] = False

    def __init__(self, module: PackedModule, pattern: Pattern, name: str = ""):
        self.module, self.pattern, self.name = module, pattern, name
        self._replicas: Replicas | None = None
        self._known = module.topology
        if name:
            module.named(name)

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

    def table(self) -> Tensor:
        return table_of(self.units(), *table_size(self.pattern, self.shape))

    @property
    def absent(self) -> Tensor:
        return ~self.mask()

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

    def is_held(self) -> bool:
        return self.module.watch.wanted is not None

    def watch(self, wanted: Callable[[], bool], replicas: Replicas) -> Any:
        refuse_second(self.is_held())
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
            self._replicas.check_size(self.name, self.module.nnz, after, training=training)

    def _places(self, units: Tensor) -> Tensor:
        places = places_of(self.pattern, units.to(self.weight.device), self.shape).reshape(-1)
        ascend = bool((places[1:] > places[:-1]).all())
        return places if ascend else places.sort().values
