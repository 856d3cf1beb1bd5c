"""What a checkpoint holds of masks: one bit per unit, or where few are present their numbers; and
enough to know whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import Layer, as_units
from .errors import StateError

STATE_VERSION = 1
NUMBER_BITS = 64
"""Bits of a unit's number: units are saved as numbers where a table of bits would be longer."""
KEYS = frozenset({"method", "steps", "generator", "layers"})


def check_version(state: Mapping[str, Any]) -> None:
    """Raise StateError unless a state is of this version and complete."""
    version = state.get("version")
    if version != STATE_VERSION:
        raise StateError(f"a sparse state must be of version {STATE_VERSION}; got {version!r}")
    if lacks := sorted(KEYS - set(state)):
        raise StateError(f"a sparse state must hold {sorted(KEYS)}; it lacks {lacks}")


def saved_units(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """Layer name -> its pattern, budget and present units, as plain values and a tensor."""
    return {layer.name: _about(layer) | _units(layer) for layer in layers}


def read_units(layers: Sequence[Layer], saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Layer name -> flat present units; StateError if they are of other layers."""
    mine, theirs = {layer.name for layer in layers}, set(saved)
    if mine != theirs:
        raise StateError(
            "the sparse state is of another model: it lacks "
            f"{sorted(mine - theirs) or 'nothing'} and has besides "
            f"{sorted(theirs - mine) or 'nothing'}"
        )
    return {layer.name: _read(layer, saved[layer.name]) for layer in layers}


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


def _read(layer: Layer, saved: Mapping[str, Any]) -> Tensor:
    for key, value in _about(layer).items():
        if saved.get(key) != value:
            raise StateError(
                f"layer {layer.name!r}: the sparse state has {key} {saved.get(key)}; this "
                f"attachment has {value}"
            )
    try:
        if "units" in saved:
            return as_units(layer, saved["units"])
        return as_units(layer, _from_bits(saved["table"], layer.groups, layer.units))
    except ValueError as error:
        raise StateError(f"a damaged sparse state: {error}") from None


def _from_bits(bits: Tensor, groups: int, units: int) -> Tensor:
    count = groups * units
    size = (count + 7) // 8
    if bits.dtype != torch.uint8 or bits.numel() != size:
        raise StateError(f"a table of {count} units takes {size} bytes; got {bits.numel()}")
    flat = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(groups, units)
