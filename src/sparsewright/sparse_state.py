"""What a checkpoint holds of masks: one bit per unit, and enough to know whose they are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .core import Layer
from .errors import StateError

STATE_VERSION = 1
KEYS = frozenset({"method", "steps", "generator", "layers"})


def check_version(state: Mapping[str, Any]) -> None:
    """Raise StateError unless a state is of this version and complete."""
    version = state.get("version")
    if version != STATE_VERSION:
        raise StateError(f"a sparse state must be of version {STATE_VERSION}; got {version!r}")
    if lacks := sorted(KEYS - set(state)):
        raise StateError(f"a sparse state must hold {sorted(KEYS)}; it lacks {lacks}")


def saved_tables(layers: Sequence[Layer]) -> dict[str, dict[str, Any]]:
    """Layer name -> its pattern, budget and table, as plain values and a tensor of bits."""
    return {layer.name: _about(layer) | {"table": _to_bits(layer.table)} for layer in layers}


def read_tables(layers: Sequence[Layer], saved: Mapping[str, Any]) -> dict[str, Tensor]:
    """Layer name -> (groups, units) bool table; StateError if they are of other layers."""
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
        "shape": list(layer.table.shape),
    }


def _read(layer: Layer, saved: Mapping[str, Any]) -> Tensor:
    for key, value in _about(layer).items():
        if saved.get(key) != value:
            raise StateError(
                f"layer {layer.name!r}: the sparse state has {key} {saved.get(key)}; this "
                f"attachment has {value}"
            )
    return _from_bits(saved["table"], layer.table.shape)


def _to_bits(table: Tensor) -> Tensor:
    return torch.from_numpy(np.packbits(table.cpu().numpy().reshape(-1)))


def _from_bits(bits: Tensor, shape: torch.Size) -> Tensor:
    count = shape.numel()
    size = (count + 7) // 8
    if bits.dtype != torch.uint8 or bits.numel() != size:
        raise StateError(f"a table of {count} units takes {size} bytes; got {bits.numel()}")
    flat = np.unpackbits(bits.cpu().numpy(), count=count).astype(bool)
    return torch.from_numpy(flat).reshape(shape)
