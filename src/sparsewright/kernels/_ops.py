"""One op over a packed weight, compiled or not: its schema, its fake, and its kernels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..core import Packed
from . import library
from .table import KERNELS, Kernel, Prepared, as_packed, never

NO_ACTIVATION = 0
RESERVE = "it is the specification: timed only where the compiled kernels are missing, or if named"
_kept: list[torch.library.Library] = []  # ops live as long as their Library object


def define(schema: str, plain: Callable[..., Tensor], out_features: Callable[..., int]) -> Any:
    """The op of a schema "name(Tensor x, ..., int isa) -> Tensor" of x (..., in) -> (..., out).

    plain: the reference, which takes all arguments but isa; the op itself where the compiled
    library has none. out_features: the op's arguments -> its output's last size.
    """
    name = schema.partition("(")[0]

    def op(x: Tensor, *rest: Any) -> Tensor:
        library.refuse_gradient(x)
        return plain(x, *rest[:-1])

    def fake(x: Tensor, *rest: Any) -> Tensor:
        return x.new_empty((*x.shape[:-1], out_features(x, *rest)))

    if not hasattr(torch.ops.sparsewright, name):
        made = torch.library.Library("sparsewright", "FRAGMENT")
        made.define(schema)
        made.impl(name, op, "CPU")
        _kept.append(made)
    torch.library.register_fake(f"sparsewright::{name}")(fake)
    return getattr(torch.ops.sparsewright, name).default


def isa_number(isa: str) -> int:
    """0, whatever CPU comes, for the best one: an exported graph runs on other CPUs too."""
    return library.BEST if isa == library.best_isa() else library.ISAS[isa]


def register(
    layout: str,
    op: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    tensors: Sequence[str],
    numbers: Callable[[Packed], tuple[int, ...]],
) -> None:
    """A kernel per instruction set, and the reference, of an op that takes a layout's `tensors`,
    the bias, its `numbers`, the activation and the instruction set."""

    def prepare(isa: str, weight: Packed | Tensor, rows: int) -> Prepared:
        packed = as_packed(weight)
        held = {name: packed.tensors[name] for name in tensors}
        return Prepared(held, (*numbers(packed), NO_ACTIVATION, isa_number(isa)))

    for isa in library.ISAS:
        KERNELS.register(f"{layout}.{isa}")(
            Kernel(f"{layout}.{isa}", layout, "cpu", _refuses(isa), _ready(prepare, isa), op)
        )
    # Without the library the op is the reference, and as an op it can be exported.
    compiled = library.LIBRARY.path is not None
    spec = (lambda *args: plain(*args[:-1])) if compiled else op
    name, reserve = f"{layout}.reference", RESERVE if compiled else None
    ready = _ready(prepare, "portable")
    KERNELS.register(name)(Kernel(name, layout, "cpu", never, ready, spec, reserve))


def _refuses(isa: str) -> Callable[..., str | None]:
    def refuses(weight: Tensor | None = None) -> str | None:
        return library.why_no_isa(isa)

    return refuses


def _ready(
    prepare: Callable[[str, Packed | Tensor, int], Prepared], isa: str
) -> Callable[[Packed | Tensor, int], Prepared]:
    def ready(weight: Packed | Tensor, rows: int) -> Prepared:
        return prepare(isa, weight, rows)

    return ready
