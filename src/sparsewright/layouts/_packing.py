"""The compiled library's packing, where it is there: what comes out is the layouts' own to say."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from ..core import Packed
from ..library import why_not_compiled

MOST = 2**30
"""Places of a weight from which on 32 bits might not hold its steps: there the plain way asks."""


def holds(op: str, packed: Packed, tensors: Iterable[str], *rest: int) -> bool:
    """Whether an op of the library finds all rules kept by tensors whose dtypes and sizes were
    checked. Where it does not, or there is none, the plain way says which rule is broken."""
    if why_not_compiled(op) is not None:
        return False
    given = [packed.tensors[name].detach() for name in tensors]
    out, width = packed.shape
    plain = all(t.device.type == "cpu" and not t.is_neg() for t in given)
    return plain and bool(getattr(torch.ops.sparsewright, op)(*given, width, out, *rest))


def compiled(op: str, weight: Tensor) -> Callable[..., Any] | None:
    """An op of the library that looks through a (out, in) weight, bound to it; None: it cannot."""
    if weight.numel() >= MOST or why_not_compiled(op) is not None:
        return None
    plain = weight.detach().cpu().resolve_neg().contiguous()
    found = getattr(torch.ops.sparsewright, op)
    return lambda *rest: found(plain, *rest)
