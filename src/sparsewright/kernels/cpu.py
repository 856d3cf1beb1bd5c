"""The CPU kernels of layouts csr and nm: one op each, served by the instruction set it is told."""

from __future__ import annotations

import functools
from collections.abc import Callable

from torch import Tensor

from ..core import Packed
from . import library, reference
from ._ops import NO_ACTIVATION, RESERVE, isa_number
from .table import KERNELS, Kernel, Prepared, as_packed, never


def _why_not(isa: str, weight: Tensor | None = None) -> str | None:
    return library.why_no_isa(isa)


def _csr(isa: str, weight: Packed | Tensor, rows: int) -> Prepared:
    tensors = as_packed(weight).tensors
    names = ("rows", "columns", "values")
    return Prepared({name: tensors[name] for name in names}, (NO_ACTIVATION, isa_number(isa)))


def _nm(isa: str, weight: Packed | Tensor, rows: int) -> Prepared:
    packed = as_packed(weight)
    numbers = (packed.shape[0], packed.meta["chunk"], NO_ACTIVATION, isa_number(isa))
    return Prepared({name: packed.tensors[name] for name in ("values", "columns")}, numbers)


def _csr_reference(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: int,
    isa: int,
) -> Tensor:
    return reference.csr_linear(x, rows, columns, values, bias, activation)


def _nm_reference(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    activation: int,
    isa: int,
) -> Tensor:
    return reference.nm_linear(x, values, columns, bias, out_features, chunk, activation)


def _register(
    layout: str,
    prepare: Callable[[str, Packed | Tensor, int], Prepared],
    op: Callable[..., Tensor],
    plain: Callable[..., Tensor],
) -> None:
    for isa in library.ISAS:
        refuses = functools.partial(_why_not, isa)
        ready = functools.partial(prepare, isa)
        name = f"{layout}.{isa}"
        KERNELS.register(name)(Kernel(name, layout, "cpu", refuses, ready, op))
    # Without the library the op is the reference, and as an op it can be exported.
    spec, reserve = (plain, RESERVE) if library.LIBRARY.path else (op, None)
    name, ready = f"{layout}.reference", functools.partial(prepare, "portable")
    KERNELS.register(name)(Kernel(name, layout, "cpu", never, ready, spec, reserve))


_register("csr", _csr, library.csr_linear, _csr_reference)
_register("nm", _nm, library.nm_linear, _nm_reference)
