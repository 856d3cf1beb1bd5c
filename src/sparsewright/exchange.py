"""What a method wishes of a layer, as an exchange: which present units leave, and which come.

All wishes are checked here, whoever they are of, before any weight changes.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .core import Exchange, Layer, Update, Wish, as_units
from .sampling import is_in, merged


def exchange_of(layer: Layer, wish: Wish) -> tuple[Exchange, int, int]:
    """The exchange, and how many units the layer loses and gains by it; ValueError.

    What leaves and comes at once (it starts anew) is neither lost nor gained.
    """
    if not isinstance(wish, Exchange):
        wish = _by_units(layer, wish if isinstance(wish, Update) else Update(wish))
    leaves, comes = wish.leaves, as_units(layer, wish.comes)
    count = layer.storage.count()
    if leaves.dtype != torch.bool or leaves.shape != (count,):
        raise ValueError(
            f"layer {layer.name!r}: what leaves must be bool of shape {(count,)}, an entry for "
            f"every present unit; got {leaves.dtype} of shape {tuple(leaves.shape)}"
        )
    leaves = leaves.to(comes.device)
    at = layer.storage.find(comes)
    again = at[at >= 0]
    if not bool(leaves[again].all()):
        raise ValueError(
            f"layer {layer.name!r}: what comes must be absent or leave; "
            f"{int((~leaves[again]).sum())} units stay that are to come"
        )
    lost, gained = int(leaves.count_nonzero()) - len(again), len(comes) - len(again)
    return Exchange(leaves, comes, wish.values), lost, gained


def units_after(layer: Layer, exchange: Exchange) -> Tensor:
    """The flat units, ascending, that are present once an exchange is done."""
    return merged(layer.present_units[~exchange.leaves], exchange.comes)


def moved_between(old: Tensor, new: Tensor) -> tuple[int, int]:
    """How many units are lost and gained between two bool tables of one size.

    >>> moved_between(torch.tensor([[True, True, False]]), torch.tensor([[False, False, True]]))
    (2, 1)
    """
    changed = old ^ new
    count = int(changed.count_nonzero())
    gained = int((changed & new).count_nonzero()) if count else 0
    return count - gained, gained


def _by_units(layer: Layer, update: Update) -> Exchange:
    units, present = as_units(layer, update.units), layer.present_units
    leaves, comes = ~is_in(present, units), ~is_in(units, present)
    if update.fresh is not None:
        fresh = as_units(layer, update.fresh)
        leaves |= is_in(present, fresh)
        comes |= is_in(units, fresh)
    return Exchange(leaves, units[comes], update.values)
