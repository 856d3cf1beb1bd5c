"""Optimizer state of weights that come and go.

A slot (momentum, second moment, step size, ...) that lies entry by entry beside a weight is put
back to what the optimizer itself would start it at; for most that is 0, for Rprop's step sizes and
Adagrad's sums it is not, so the value is read off a fresh optimizer of the same kind.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.optim import Optimizer

from .errors import StateError
from .kernels.masking import zero_


def reset_state(optimizer: Optimizer, weight: Tensor, where: Tensor) -> None:
    """Put every slot of `weight` back to its starting value at the places `where` is True."""
    state = optimizer.state.get(weight)
    if not state:
        return
    slots = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
    if not slots:
        return
    fresh = _starting_values(optimizer, weight)
    for name, slot in slots.items():
        value = fresh.get(name, 0.0)
        zero_(slot, where) if value == 0 else slot.masked_fill_(where, value)


def check_state(optimizer: Optimizer, weight: Tensor) -> None:
    """StateError for state of a packed weight that lies neither entry by entry nor as one number
    (LBFGS's history): it cannot follow weights that move."""
    state = optimizer.state.get(weight)
    if not state:
        return
    slots = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
    for name, slot in state.items():
        plain = slot is None or name in slots or isinstance(slot, int | float)
        if not plain and not (isinstance(slot, Tensor) and slot.numel() <= 1):
            raise StateError(
                f"{type(optimizer).__name__} keeps {name!r} for a packed weight of "
                f"{weight.numel()} values neither weight by weight nor as one number"
                + (f", but in shape {tuple(slot.shape)}" if isinstance(slot, Tensor) else "")
                + ". State of a masked run is of no use here; and what keeps such state by nature "
                "cannot follow weights that move: take another optimizer, masked storage, or a "
                "method that moves none (static)"
            )


def move_state(
    optimizer: Optimizer, weight: Tensor, shift: Callable[[Tensor, Tensor], Tensor]
) -> None:
    """Give the state of a packed weight the order that its values take next.

    shift: a slot, and one number for weights that come, the state of a first step -> the slot as
    it is next. Call it before the weight changes its size.
    """
    state = optimizer.state.get(weight, {})
    slots = {k: v for k, v in state.items() if isinstance(v, Tensor) and v.shape == weight.shape}
    fresh = _starting_values(optimizer, weight) if slots else {}
    for name, slot in slots.items():
        state[name] = shift(slot, slot.new_full((1,), fresh.get(name, 0.0)))


def _starting_values(optimizer: Optimizer, weight: Tensor) -> dict[str, float]:
    """Slot name -> its value after one step of a new optimizer on a zero gradient."""
    group = next(g for g in optimizer.param_groups if any(p is weight for p in g["params"]))
    probe = torch.nn.Parameter(torch.zeros(2, 2, dtype=weight.dtype, device=weight.device))
    probe.grad = torch.zeros_like(probe)
    options = {name: group.get(name, value) for name, value in optimizer.defaults.items()}
    try:
        twin = type(optimizer)([probe], **options)
        twin.step()
    except TypeError:  # a constructor or a step of another signature: nothing can be read off
        return {}
    return {
        name: float(slot.flatten()[0])
        for name, slot in twin.state[probe].items()
        if isinstance(slot, Tensor) and slot.shape == probe.shape
    }
