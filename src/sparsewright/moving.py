"""A packed weight moves: its values, its gradient and the optimizer's state follow its places.

All that can fail is asked before anything moves.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from .core import Exchange, Pattern
from .kernels import moving
from .nn import PackedModule
from .optimizer_state import check_state, move_state
from .patterns import places_of, units_are_places


def weights_of(
    module: PackedModule, pattern: Pattern, units: Tensor, exchange: Exchange
) -> tuple[Tensor, Tensor, Tensor | None]:
    """An exchange of units, told by their weights.

    units: the units that leave, flat. Returns which weights leave, (nnz) bool; the places of those
    that come, ascending; and their values in that order, None for 0.
    """
    values = None if exchange.values is None else exchange.values.to(module.weight)
    if units_are_places(pattern, module.shape):
        return exchange.leaves, exchange.comes, None if values is None else values.reshape(-1)
    topology = module.topology
    gone = torch.zeros(topology.nnz, dtype=torch.bool, device=topology.device)
    gone[moving.find(topology, places_of(pattern, units, module.shape).reshape(-1))] = True
    born = places_of(pattern, exchange.comes, module.shape).reshape(-1).sort()
    return gone, born.values, None if values is None else values.reshape(-1)[born.indices]


def move(
    module: PackedModule,
    gone: Tensor,
    born: Tensor,
    values: Tensor | None,
    optimizer: Optimizer | None,
) -> None:
    """Take weights that are gone out and put born ones in, as `weights_of` has them.

    Born weights have no gradient and the optimizer state of a first step. StateError for a weight,
    or state of it, that cannot move.
    """
    weight, gradient = module.weight, module.weight.grad
    module.check_movable()
    if optimizer is not None:
        check_state(optimizer, weight)
    topology, at = moving.exchange(module.topology, gone, born)

    def shift(entries: Tensor, fresh: Tensor) -> Tensor:
        return moving.shift(entries, gone, at, fresh)

    if optimizer is not None:
        move_state(optimizer, weight, shift)
    moved = None if gradient is None else shift(gradient, gradient.new_zeros(1))
    new = shift(weight.detach(), weight.new_zeros(1) if values is None else values)
    module.take_over(topology, new)
    weight.grad = moved
