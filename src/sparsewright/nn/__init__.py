"""Modules over packed weights: those that train, and those over a layout, for inference."""

from __future__ import annotations

from .build import KINDS, Task, build_conv, build_linear, task_of
from .layout import LayoutLayer
from .layout_conv import LayoutConv1d, LayoutConv2d
from .layout_linear import LayoutLinear
from .packed import PackedModule
from .packed_conv import PackedConv1d, PackedConv2d
from .packed_embedding import PackedEmbedding
from .packed_linear import PackedLinear
from .prepacked import Prepacked
from .prepacked_conv import PrepackedConv1d, PrepackedConv2d
from .prepacked_linear import PrepackedLinear
from .same_places import check_replicas

__all__ = [
    "KINDS",
    "LayoutConv1d",
    "LayoutConv2d",
    "LayoutLayer",
    "LayoutLinear",
    "PackedConv1d",
    "PackedConv2d",
    "PackedEmbedding",
    "PackedLinear",
    "PackedModule",
    "Prepacked",
    "PrepackedConv1d",
    "PrepackedConv2d",
    "PrepackedLinear",
    "Task",
    "build_conv",
    "build_linear",
    "check_replicas",
    "task_of",
]
