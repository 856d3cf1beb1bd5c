"""What a checkpoint holds of sparse layers: one bit per unit, or where few are present their
numbers; what the method remembers; and enough to know whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .arguments import told
from .core import Layer, Pattern, as_units
from .errors import StateError

STATE_VERSION = 1
NUMBER_BITS = 64
"""Bits of a unit's number: units are saved as numbers where a table of bits would be longer."""
KEYS = frozenset({"method", "steps", "generator", "layers"})


def check_version(state: Mapping[str, Any]) -> None:
    """Raise StateError unless a state is of this version and complete."""
    if not isinstance(state, Mapping):
        raise StateError(f"a sparse state must be what state_dict() gave; got {told(state)}")
    version = state.get("version")
    if version != STATE_VERSION:
        raise StateError(f"a sparse state must be of version {STATE_VERSION}; got {version!r}")
    if lacks := sorted(KEYS - set(state)):
        raise StateError(f"a sparse state must hold {sorted(KEYS)}; it lacks {lacks}")


def saved_layers(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """Layer name -> its pattern, budget, present units and memory: plain values and tensors."""
    return {
        layer.name: _about(layer) | _units(layer) | _memory(layer) | _chosen(layer)
        for layer in layers
    }


Saved = tuple[int, Tensor, dict[str, Tensor], Pattern]
"""A layer's units to keep, its flat present units, its memory, and its pattern, whose outer levels
may have chosen other places."""


def read_layers(
    layers: Sequence[Layer], saved: Mapping[str, Any], may_move: bool
) -> dict[str, Saved]:
    """Layer name -> what was saved of it; StateError if that is of other layers.

    may_move: budgets may differ from those of now, as long as they come to as much in all.
    """
    mine, theirs = {layer.name for layer in layers}, set(saved)
    if mine != theirs:
        raise StateError(
            "the sparse state is of another model: it lacks "
            f"{sorted(mine - theirs) or 'nothing'} and has besides "
            f"{sorted(theirs - mine) or 'nothing'}"
        )
    found = {layer.name: _read(layer, saved[layer.name], may_move) for layer in layers}
    now = sum(layer.keep * layer.groups * layer.unit_size for layer in layers)
    then = sum(found[layer.name][0] * layer.groups * layer.unit_size for layer in layers)
    if now != then:
        raise StateError(
            f"the sparse state keeps {then} weights in all; this attachment keeps {now}"
        )
    return found


def _about(layer: Layer) -> dict[str, Any]:
    return {
        "pattern": str(layer.pattern),
        "keep": layer.keep,
        "shape": [layer.groups, layer.units],
    }


def _units(layer: Layer) -> dict[str, Tensor]:
    units = layer.present_units
    if len(units) * NUMBER_BITS < layer.groups * layer.units:
        return {"units": units.cpu()}
    return {"table": torch.from_numpy(np.packbits(layer.table.cpu().numpy().reshape(-1)))}


def _memory(layer: Layer) -> dict[str, Any]:
    return {"memory": {name: kept.cpu() for name, kept in layer.memory.items()}}


def _chosen(layer: Layer) -> dict[str, Tensor]:
    """The places that the outer levels of a pattern chose, if it has such."""
    chosen = getattr(layer.pattern, "chosen", None)
    return {} if chosen is None else {"chosen": chosen.cpu()}


def _read(layer: Layer, saved: Mapping[str, Any], may_move: bool) -> Saved:
    for key, value in _about(layer).items():
        if saved.get(key) != value and not (key == "keep" and may_move and not layer.is_own):
            raise StateError(
                f"layer {layer.name!r}: the sparse state has {key} {saved.get(key)}; this "
                f"attachment has {value}"
            )
    device, memory = layer.weight.device, saved.get("memory", {})
    if set(memory) != set(layer.memory):
        raise StateError(
            f"layer {layer.name!r}: the sparse state remembers {sorted(memory) or 'nothing'}; "
            f"this attachment {sorted(layer.memory) or 'nothing'}"
        )
    try:
        wish = saved["units"] if "units" in saved else _from_bits(saved["table"], layer)
        kept = {name: tensor.to(device) for name, tensor in memory.items()}
        pattern = layer.pattern
        if hasattr(pattern, "choosing"):
            pattern = pattern.choosing(saved["chosen"])
        return saved["keep"], as_units(layer, wish), kept, pattern
    except ValueError as error:
        raise StateError(f"a damaged sparse state: {error}") from None


def _from_bits(bits: Tensor, layer: Layer) -> Tensor:
    count = layer.groups * layer.units
    size = (count + 7) // 8
    if bits.dtype != torch.uint8 or bits.numel() != size:
        raise StateError(f"a table of {count} units takes {size} bytes; got {bits.numel()}")
    flat = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(layer.groups, layer.units)
