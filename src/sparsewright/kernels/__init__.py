"""Kernels: implementations of one operation on one layout, their table, and the choice among them.

`choose` times every candidate on this machine; `explain` says why it was taken; `kernel_info` says
which kernels this machine has.
"""

from __future__ import annotations

from .choose import Choice, Timing, choose, explain
from .info import KernelInfo, kernel_info
from .table import KERNELS, Kernel, Prepared

__all__ = [
    "KERNELS",
    "Choice",
    "Kernel",
    "KernelInfo",
    "Prepared",
    "Timing",
    "choose",
    "explain",
    "kernel_info",
]
