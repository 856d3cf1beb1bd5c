"""Kernels: implementations of one operation on one layout, their table, and the choice among them.

`choose` times every candidate on this machine; `explain` says why it was taken; `kernel_info` says
which kernels this machine has.
"""

from __future__ import annotations

from .choose import Choice, Timing, choose, explain, recall
from .info import KernelInfo, kernel_info
from .operation import Conv2d, Linear, Operation
from .table import KERNELS, Kernel, Prepared

__all__ = [
    "KERNELS",
    "Choice",
    "Conv2d",
    "Kernel",
    "KernelInfo",
    "Linear",
    "Operation",
    "Prepared",
    "Timing",
    "choose",
    "explain",
    "kernel_info",
    "recall",
]

KERNELS.load()  # at once: the ops of an exported graph, and their fakes, are there after the import
