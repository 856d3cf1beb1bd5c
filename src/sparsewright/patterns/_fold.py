"""The matrix view that patterns share: (out, places, in), inputs last.

Linear (out, in) has one place; a convolution (out, in, *kernel) has one per kernel position; an
embedding (rows, width) is read as a Linear.
"""

from __future__ import annotations

import math

from torch import Tensor


def to_matrix(weight: Tensor) -> Tensor:
    """(out, in, *kernel) -> (out, places, in)."""
    places = math.prod(weight.shape[2:])
    return weight.reshape(*weight.shape[:2], places).transpose(1, 2)


def from_matrix(matrix: Tensor, shape: tuple[int, ...]) -> Tensor:
    """(out, places, in) -> (out, in, *kernel); the inverse of to_matrix."""
    return matrix.transpose(1, 2).reshape(shape)


def flat_places(entries: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Flat numbers of entries in (out, places, in) -> those in (out, in, *kernel)."""
    places, inputs = math.prod(shape[2:]), shape[1]
    out = entries.div(places * inputs, rounding_mode="floor")
    place, column = entries.div(inputs, rounding_mode="floor") % places, entries % inputs
    return (out * inputs + column) * places + place


def needs_matrix(shape: tuple[int, ...]) -> str | None:
    """Why a shape has no inputs dimension, or None."""
    return None if len(shape) >= 2 else f"needs a weight of 2 dimensions or more; got {len(shape)}"
