"""Modules over packed weights."""

from __future__ import annotations

from .build import KINDS, Task, build_conv, build_linear, task_of
from .packed import PackedLayer
from .packed_conv import PackedConv1d, PackedConv2d
from .packed_linear import PackedLinear
from .prepacked import Prepacked
from .prepacked_conv import PrepackedConv1d, PrepackedConv2d
from .prepacked_linear import PrepackedLinear

__all__ = [
    "KINDS",
    "PackedConv1d",
    "PackedConv2d",
    "PackedLayer",
    "PackedLinear",
    "Prepacked",
    "PrepackedConv1d",
    "PrepackedConv2d",
    "PrepackedLinear",
    "Task",
    "build_conv",
    "build_linear",
    "task_of",
]
