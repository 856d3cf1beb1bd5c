"""Watch: what the gradient of absent weights is made of, kept for the steps that ask for it.

RigL (Evci et al. 2020) grows weights where the dense gradient is largest. It is never made while
training: only the inputs and the gradients of the outputs are kept, and it is computed from them
for as many rows, or at as many places, as are wanted at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable

import torch
from torch import Tensor, nn


class Watch:
    """Inputs and output gradients of one packed module's coming optimizer step.

    wanted: asked at every backward; None wants nothing. seen: (x, dy) of every backward through
    the module since the last step, copies of what passed. Whoever reads `seen` clears it.
    """

    def __init__(self, module: nn.Module):
        self.wanted: Callable[[], bool] | None = None
        self.seen: list[tuple[Tensor, Tensor]] = []
        self._module = weakref.ref(module)
        self._backward = -1  # the number of the last one that was seen

    def begin(self, wanted: Callable[[], bool]) -> Watch:
        """Ask `wanted` from now on, until `remove` is called."""
        self.wanted = wanted
        self.seen.clear()
        return self

    def remove(self) -> None:
        """Want nothing any more."""
        self.wanted = None
        self.seen.clear()

    def see(self, x: Tensor, dy: Tensor) -> None:
        """Keep copies if they are wanted: compiled code may use the memory of both again.

        What a thrown-away step has left is dropped: a gradient that is None or all zeros when a
        backward begins says that nothing has been accumulated.
        """
        if self.wanted is None or not self.wanted():
            return
        backward = torch._C._current_graph_task_id()
        if self.seen and backward != self._backward and not self._accumulates():
            self.seen.clear()
        self._backward = backward
        self.seen.append((x.detach().clone(), dy.detach().clone()))

    def _accumulates(self) -> bool:
        module = self._module()
        weight = None if module is None else module._parameters.get("weight")
        return weight is not None and weight.grad is not None and bool(weight.grad.any())
