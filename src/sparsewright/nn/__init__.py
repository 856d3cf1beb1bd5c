"""Modules over packed weights."""

from __future__ import annotations

from .build import build_linear
from .packed_linear import PackedLinear
from .prepacked_linear import PrepackedLinear

__all__ = ["PackedLinear", "PrepackedLinear", "build_linear"]
