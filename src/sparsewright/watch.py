"""Watch: what the gradient of absent weights is made of, kept for the steps that ask for it.

RigL (Evci et al. 2020) grows weights where the dense gradient is largest. It is never made while
training: only the inputs and the gradients of the outputs are kept, and it is computed from them
for as many rows, or at as many places, as are wanted at once.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

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
        self._passing: list[tuple[Tensor, Tensor]] = []  # of the backward that runs now
        self._backward = -1  # its number
        self._grad: tuple[int, int] | None = None  # what the gradient was when last accumulated
        self._hook: Any = None

    def begin(self, wanted: Callable[[], bool]) -> Watch:
        """Ask `wanted` from now on, until `remove` is called."""
        self.remove()
        self.wanted = wanted
        return self

    def remove(self) -> None:
        """Want nothing any more."""
        self.wanted = None
        self.seen.clear()
        self._passing.clear()
        if self._hook is not None:
            self._hook.remove()
            self._hook = None

    def see(self, x: Tensor, dy: Tensor) -> None:
        """Keep copies if they are wanted: compiled code may use the memory of both again.

        They count once the weight's gradient has taken the backward in: a gradient that somebody
        asks of the inputs alone leaves nothing.
        """
        if self.wanted is None or not self.wanted():
            return
        weight = self._weight()
        if self._hook is None and weight is not None:  # it wants a gradient, or none were passing
            self._hook = weight.register_post_accumulate_grad_hook(self._accumulated)
        backward = torch._C._current_graph_task_id()
        if backward != self._backward:
            self._passing.clear()
            if self.seen and not self._accumulates():  # of a step that was thrown away
                self.seen.clear()
        self._backward = backward
        self._passing.append((x.detach().clone(), dy.detach().clone()))

    def _accumulated(self, weight: Tensor) -> None:
        self.seen += self._passing
        self._passing = []
        self._grad = _state(weight.grad)

    def _weight(self) -> nn.Parameter | None:
        module = self._module()
        return None if module is None else module._parameters.get("weight")

    def _accumulates(self) -> bool:
        """Whether what was accumulated before is still there: a gradient that is None or was put
        to zeros says that the next backward begins anew."""
        weight = self._weight()
        gradient = None if weight is None else weight.grad
        if gradient is None:
            return False
        return _state(gradient) == self._grad or bool(gradient.any())


def _state(gradient: Tensor | None) -> tuple[int, int] | None:
    """What tells a gradient that was written since from one that was not."""
    return None if gradient is None else (gradient.data_ptr(), gradient._version)
