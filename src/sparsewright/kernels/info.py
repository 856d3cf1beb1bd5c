"""What kernels this machine has, and why others are missing: for `sparsewright doctor`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .. import library
from .table import KERNELS


@dataclass(frozen=True)
class KernelInfo:
    """native: whether the compiled library is loaded. why_no_code: why no weights are made code, or
    None. isas, kernels: name -> None, or why not."""

    native: bool
    why_not: str | None
    compiler: str
    library: str | None
    isa: str
    why_no_code: str | None
    isas: Mapping[str, str | None]
    kernels: Mapping[str, str | None]


def kernel_info() -> KernelInfo:
    """Which kernels serve here. KernelError if SPARSEWRIGHT_ISA names no instruction set of this
    CPU, or SPARSEWRIGHT_CODE is neither 0 nor 1.

    >>> kernel_info().kernels["dense.eager"] is None
    True
    """
    found = library.LIBRARY
    return KernelInfo(
        native=found.path is not None,
        why_not=found.why_not,
        compiler=found.compiler,
        library=found.path,
        isa=library.best_isa(),
        why_no_code=library.why_no_code(),
        isas={isa: library.why_no_isa(isa) for isa in library.ISAS},
        kernels={name: kernel.refuses() for name, kernel in KERNELS.items()},
    )
