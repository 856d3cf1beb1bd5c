"""One op over a packed weight, compiled or not: its schema, its fake, and its kernels."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import library
from ..core import Packed, Shape
from ..layouts import VALUES
from .operation import Conv2d, Linear
from .table import KERNELS, Kernel, Prepared, as_packed, never

NO_ACTIVATION = 0
NO_RESIDUAL = None
RESERVE = "it is the specification: timed only where the compiled kernels are missing, or if named"
_kept: list[torch.library.Library] = []  # ops live as long as their Library object


def define(schema: str, plain: Callable[..., Tensor], shape: Callable[..., Sequence[int]]) -> Any:
    """The op of a schema "name(Tensor x, ..., int isa) -> Tensor".

    plain: the reference, which takes all arguments but isa; the op itself where the compiled
    library has none. shape: the op's arguments -> its output's shape.
    """
    name = schema.partition("(")[0]

    def op(x: Tensor, *rest: Any) -> Tensor:
        library.refuse_gradient(x)
        return plain(x, *rest[:-1])

    def fake(x: Tensor, *rest: Any) -> Tensor:
        return x.new_empty(shape(x, *rest))

    if not hasattr(torch.ops.sparsewright, name):
        made = torch.library.Library("sparsewright", "FRAGMENT")
        made.define(schema)
        made.impl(name, op, "CPU")
        _kept.append(made)
        library.MISSING.add(name)
    torch.library.register_fake(f"sparsewright::{name}")(fake)
    return getattr(torch.ops.sparsewright, name).default


def isa_number(isa: str) -> int:
    """0, whatever CPU comes, for the best one: an exported graph runs on other CPUs too."""
    return library.BEST if isa == library.best_isa() else library.ISAS[isa]


def held(packed: Packed, tensors: Sequence[str]) -> dict[str, Tensor | None]:
    """What an op takes of a packed weight: the layout's tensors, then the scales, which only int8
    values have."""
    return {name: packed.tensors.get(name) for name in (*tensors, "scales")}


def register(
    layout: str,
    op: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    tensors: Sequence[str],
    numbers: Callable[[Packed], tuple[int, ...]],
    chains_exactly: bool = True,
) -> None:
    """A kernel per instruction set, and the reference, of a Linear's op: it takes a layout's
    `tensors`, the scales, the bias, its `numbers`, the activation and the instruction set."""

    def prepare(isa: str, weight: Packed | Tensor, rows: int) -> Prepared:
        packed = as_packed(weight)
        return Prepared(held(packed, tensors), (*numbers(packed), NO_ACTIVATION, isa_number(isa)))

    whole = Kernel(
        layout,
        layout,
        "cpu",
        never,
        prepare,
        op,
        operation=Linear.name,
        chains_exactly=chains_exactly,
    )
    _register(whole, plain)


def register_conv(
    layout: str,
    op: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    tensors: Sequence[str],
    numbers: Callable[[Packed], tuple[int, ...]],
) -> None:
    """The same for a convolution's op: after the bias it takes a residual, the layout's `numbers`,
    those of the convolution, the activation and the instruction set."""

    def prepare(isa: str, weight: Packed | Tensor, shape: Shape, conv: Conv2d) -> Prepared:
        packed = as_packed(weight)
        own = (*numbers(packed), *conv.numbers)
        return Prepared(held(packed, tensors), (NO_RESIDUAL, *own, NO_ACTIVATION, isa_number(isa)))

    name = f"{layout}.{Conv2d.name}"
    whole = Kernel(name, layout, "cpu", never, prepare, op, operation=Conv2d.name)
    _register(whole, plain)


def _register(kernel: Kernel, plain: Callable[..., Tensor]) -> None:
    """`kernel` for every instruction set, which its `prepare` takes first; and the reference."""
    op = kernel.op.__name__.partition(".")[0]
    kernel = replace(kernel, values=tuple(VALUES))
    for isa in library.ISAS:
        name = f"{kernel.name}.{isa}"
        ready = functools.partial(kernel.prepare, isa)
        refuses = functools.partial(_why_not, op, isa)
        KERNELS.register(name)(replace(kernel, name=name, refuses=refuses, prepare=ready))
    # Where the op is not compiled it is the reference, and as an op it can be exported.
    name, ready = f"{kernel.name}.reference", functools.partial(kernel.prepare, "portable")
    spec = replace(kernel, name=name, prepare=ready)
    if library.why_not_compiled(op) is None:
        spec = replace(spec, op=functools.partial(_without_isa, plain), reserve=RESERVE)
    KERNELS.register(name)(spec)


def _without_isa(plain: Callable[..., Tensor], *arguments: Any) -> Tensor:
    return plain(*arguments[:-1])


def _why_not(op: str, isa: str, weight: Tensor | None = None) -> str | None:
    return library.why_no_isa(isa, op)
