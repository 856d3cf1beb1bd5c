"""Masked storage, a dense tensor with zeros, and which of the two storages a weight has: masked, or
packed (packed_storage.py). No other file need know the difference.
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

from .core import Exchange, Pattern, Shape, table_of, table_size
from .gradients import mask_gradient, masked
from .kept import Offers, Storage, refuse_second
from .kernels.best import offers
from .kernels.masking import zero_
from .nn import PackedModule
from .optimizer_state import reset_state
from .packed_storage import PackedStorage
from .patterns import places_of, row_step, units_are_places
from .replicas import Replicas
from .sampling import positions
from .weights import Weight

TILE = 2**16, 2**18
"""Fewest and most weights looked at together when the absent ones are scored: larger tiles are
looked at faster, and are to be small beside what is present."""


def storage_of(weight: Weight, pattern: Pattern) -> Storage:
    """The storage that a weight of a model has, with what is present in it now.

    Of a masked weight all is present: its zeros are not looked at.
    """
    if isinstance(weight.module, PackedModule):
        return PackedStorage(weight.module, pattern, weight.name)
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
        self._units: Tensor | None = None
        self._count: int | None = None

    @property
    def shape(self) -> Shape:
        return tuple(self.weight.shape)

    def units(self) -> Tensor:
        if self._units is None or self._units.device != self.weight.device:
            self._units = self._table.reshape(-1).nonzero().squeeze(1).to(self.weight.device)
        return self._units

    def check(self, name: str) -> None:
        """Nobody else changes the table."""

    def count(self) -> int:
        if self._count is None:
            self._count = int(self._table.count_nonzero())
        return self._count

    def table(self) -> Tensor:
        return self._table.to(self.weight.device, copy=True)

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
        if units_are_places(self.pattern, self.shape):
            return self.take(self.units())
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
        if self.weight.is_contiguous() and units_are_places(self.pattern, self.shape):
            self.weight.view(-1).index_copy_(0, self.units(), values.to(self.weight))
        else:
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

    def is_held(self) -> bool:
        hooks = (self.weight._backward_hooks or {}).values()
        return any(getattr(hook, "of_sparsifier", False) for hook in hooks)

    def watch(self, wanted: Callable[[], bool], replicas: Replicas) -> Any:
        """A hook that masks a gradient as it arrives, unless it is wanted dense."""
        if not self.weight.requires_grad:
            return RemovableHandle(OrderedDict())
        refuse_second(self.is_held())

        def hook(gradient: Tensor) -> Tensor | None:
            return None if wanted() else masked(gradient, self.absent)

        hook.of_sparsifier = True  # type: ignore[attr-defined]
        return self.weight.register_hook(hook)

    def mask_gradient(self) -> None:
        mask_gradient(self.weight, self.absent)

    @torch.no_grad()
    def settle(self) -> None:
        self._units = None  # 8 bytes for each: kept within a step alone
        zero_(self.weight, self.absent)

    @torch.no_grad()
    def follow(self, copy: Weight) -> None:
        copy.parameter.masked_fill_(self.absent.to(copy.parameter.device), 0.0)

    def _set(self, units: Tensor) -> None:
        units = units.to(self.weight.device)  # the model may have moved since
        is_table = units.dtype == torch.bool
        self._table = units.clone() if is_table else table_of(units, *self._table.shape)
        self._forget()

    def _forget(self) -> None:
        """What follows from the table: made when it is first asked for."""
        self._absent = self._units = self._count = None

    def _exchange(self, exchange: Exchange) -> Tensor:
        """Change the table; (groups, units) bool of all units that leave or come."""
        changed = torch.zeros(self._table.shape, dtype=torch.bool, device=self.weight.device)
        changed.view(-1)[self.units()[exchange.leaves]] = True
        self._table = self._table.to(changed.device) & ~changed
        self._table.view(-1)[exchange.comes] = True
        self._forget()
        changed.view(-1)[exchange.comes] = True
        return changed

    def _dense_gradient(self) -> Tensor | None:
        gradient = self.weight.grad
        return gradient.to_dense() if gradient is not None and gradient.is_sparse else gradient
