"""Bound calls of a graph's products, shared by all programs that run it."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Sequence
from typing import Any, cast

from torch import Tensor, fx

from .kernels.bound import Bound, Call, bind, bind_beside

_CALLS: weakref.WeakKeyDictionary[fx.GraphModule, dict[Any, tuple[Call, Any]]] = (
    weakref.WeakKeyDictionary()
)


class SharedCalls:
    """What binds products for a module's programs: one with the same arguments is bound once, for
    its weights may take long to become code, and much memory. A call lives as long as the
    module."""

    def __init__(self, module: fx.GraphModule):
        self._calls = _CALLS.setdefault(module, {})

    def bind(self, op: Callable[..., Any], rest: Sequence[Any]) -> Call:
        return self._once(op, rest, lambda: bind(op, rest))

    def bind_beside(self, rest: Sequence[Any]) -> Bound:
        return cast(Bound, self._once(bind_beside, rest, lambda: bind_beside(rest)))

    def _once(self, kind: object, rest: Sequence[Any], make: Callable[[], Call]) -> Call:
        key = (kind, *(id(v) if isinstance(v, Tensor) else (type(v), v) for v in rest))
        if key not in self._calls:
            self._calls[key] = make(), rest  # which holds the tensors, so their ids stay theirs
        return self._calls[key][0]
