"""Memory that was freed, and that the C library keeps for later."""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from typing import Any


def give_back() -> None:
    """Let the C library return what was freed to the system, where it knows how (glibc).

    It takes tens of microseconds, and milliseconds where much lies free between what is used.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@functools.cache
def _trim() -> Callable[[int], Any] | None:
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
