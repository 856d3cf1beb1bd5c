"""Switches of the whole process that are off while anybody needs them to be, then as they were."""

from __future__ import annotations

import contextlib
import gc
import threading
from collections.abc import Callable, Iterator

import torch


class Switch:
    """One such switch: off until the last of several threads has left `off`.

    >>> with COLLECTOR.off(), COLLECTOR.off():
    ...     gc.isenabled()
    False
    """

    def __init__(self, is_on: Callable[[], bool], turn: Callable[[bool], object]):
        self.is_on, self.turn = is_on, turn
        self.lock = threading.Lock()
        self.users = 0
        self.was_on = True

    @contextlib.contextmanager
    def off(self) -> Iterator[None]:
        """The block runs with it off."""
        with self.lock:
            if self.users == 0:
                self.was_on = self.is_on()
                self.turn(False)
            self.users += 1
        try:
            yield
        finally:
            with self.lock:
                self.users -= 1
                if self.users == 0:
                    self.turn(self.was_on)


FUSED_ENCODER = Switch(
    torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled
)
"""torch's fused transformer encoder: it reads the weights of its layers itself."""
COLLECTOR = Switch(gc.isenabled, lambda on: gc.enable() if on else gc.disable())
"""Python's search for unreachable cycles: over and over it walks all that a long trace allocates,
next to all that torch is, and finds nothing."""
