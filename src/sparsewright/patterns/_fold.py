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


def needs_matrix(shape: tuple[int, ...]) -> str | None:
    """Why a shape has no inputs dimension, or None."""
    return None if len(shape) >= 2 else f"needs a weight of 2 dimensions or more; got {len(shape)}"


def to_parts(places: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices of weights (out, in, *kernel) -> their output, place and input."""
    each = max(1, math.prod(shape[2:]))
    pair = places // each
    return pair // shape[1], places % each, pair % shape[1]


def from_parts(out: Tensor, place: Tensor, column: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of to_parts; the three may be broadcast against each other."""
    return (out * shape[1] + column) * math.prod(shape[2:]) + place


def parts_of_units(units: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices of an (out, places, in) matrix -> output, place and input."""
    pair = units // max(1, shape[1])
    each = max(1, math.prod(shape[2:]))
    return pair // each, pair % each, units % max(1, shape[1])
