"""The CPU kernels of convolutions with a weight in layout csr: one op, several instruction sets."""

from __future__ import annotations

import functools

from torch import Tensor

from ..core import Packed
from . import library, reference
from .cpu import NO_ACTIVATION, RESERVE
from .operation import Conv2d
from .table import KERNELS, Kernel, Prepared, as_packed, never

OP = "csr_conv2d"
NO_RESIDUAL = None


def _prepare(isa: str, weight: Packed | Tensor, shape: tuple[int, ...], conv: Conv2d) -> Prepared:
    tensors = as_packed(weight).tensors
    names = ("rows", "columns", "values")
    numbers = (NO_RESIDUAL, *conv.numbers, NO_ACTIVATION, library.isa_number(isa))
    return Prepared({name: tensors[name] for name in names}, numbers)


def _why_not(isa: str, weight: Tensor | None = None) -> str | None:
    return library.why_no_isa(isa, OP)


def _reference(x: Tensor, *arguments: object) -> Tensor:
    return reference.csr_conv2d(x, *arguments[:-1])  # type: ignore[arg-type]


def _register() -> None:
    for isa in library.ISAS:
        name = f"csr.conv2d.{isa}"
        refuses, ready = functools.partial(_why_not, isa), functools.partial(_prepare, isa)
        kernel = Kernel(
            name, "csr", "cpu", refuses, ready, library.csr_conv2d, operation=Conv2d.name
        )
        KERNELS.register(name)(kernel)
    # Where the op is not compiled it is the reference, and as an op it can be exported.
    compiled = library.why_not_compiled(OP) is None
    spec, reserve = (_reference, RESERVE) if compiled else (library.csr_conv2d, None)
    name, ready = "csr.conv2d.reference", functools.partial(_prepare, "portable")
    kernel = Kernel(name, "csr", "cpu", never, ready, spec, reserve, operation=Conv2d.name)
    KERNELS.register(name)(kernel)


_register()
