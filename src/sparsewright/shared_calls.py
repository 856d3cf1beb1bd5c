"""Bound calls of a graph's products, shared by all programs that run it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
from torch import Tensor, fx

from .kernels.bound import Bound, Call, bind, bind_beside, chain

_CALLS: weakref.WeakKeyDictionary[fx.GraphModule, weakref.WeakValueDictionary[Any, Call]] = (
    weakref.WeakKeyDictionary()
)


class SharedCalls:
    """What binds products for a module's programs: one with the same arguments is bound once, for
    its weights may take long to become code, and much memory. A call lives as long as a program
    has it."""

    def __init__(self, module: fx.GraphModule):
        self._calls = _CALLS.setdefault(module, weakref.WeakValueDictionary())

    def bind(self, op: Callable[..., Any], rest: Sequence[Any]) -> Call:
        return self._once(op, rest, lambda: bind(op, rest))

    def bind_beside(self, rest: Sequence[Any]) -> Bound:
        return cast(Bound, self._once(bind_beside, rest, lambda: bind_beside(rest)))

    def chain(self, calls: Sequence[Call]) -> Call:
        """`kernels.bound.chain` of several, which keeps them for others."""
        call: Any = chain(calls)
        call.calls = calls
        return cast(Call, call)

    def _once(self, kind: object, rest: Sequence[Any], make: Callable[[], Call]) -> Call:
        """Some are bound for as many threads as there are."""
        numbers = (id(v) if isinstance(v, Tensor) else (type(v), v) for v in rest)
        key = (kind, torch.get_num_threads(), *numbers)
        call: Any = self._calls.get(key)
        if call is None:
            call = make()
            call.rest = rest  # so that the tensors' ids stay theirs
            self._calls[key] = call
        return cast(Call, call)
