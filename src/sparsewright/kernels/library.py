"""The torch ops exist always: from the compiled library, or defined here over the reference.

    sparsewright::csr_linear(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias,
        int activation, int isa) -> Tensor
    sparsewright::nm_linear(Tensor x, Tensor values, Tensor columns, Tensor? bias,
        int out_features, int chunk, int activation, int isa) -> Tensor
    sparsewright::csr_conv2d(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias,
        Tensor? residual, int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h,
        int padding_w, int dilation_h, int dilation_w, int groups, int activation, int isa)
        -> Tensor

An op that the compiled library lacks is defined here alone. csr_conv2d: x (N, C, H, W) of any
strides, residual of the output's shape, added before the activation; the output is contiguous.
activation: of the output, a place in reference.ACTIVATIONS (0 none, 1 relu, 2 gelu, 3 silu).
isa: 0 the best that this CPU has, 1 portable, 2 avx2, 3 avx512. The ops check types and sizes;
indices were checked by layouts.validate. nm_linear cannot tell widths of x apart within the last
chunk: PackedLinear does. The ops compute forwards only; PackedLinear refuses an input that wants
a gradient. Environment: SPARSEWRIGHT_NO_NATIVE=1 hides
the library, SPARSEWRIGHT_LIBRARY names another one (for tests), SPARSEWRIGHT_ISA caps `best`.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import KernelError, SparsityWarning
from . import reference

NAME = "sparsewright_kernels.so"
ISAS = {"portable": 1, "avx2": 2, "avx512": 3}
NEEDS = {"portable": "nothing", "avx2": "AVX2 and FMA", "avx512": "AVX-512 (F, BW, VL, DQ)"}
BEST = 0


@dataclass(frozen=True)
class Library:
    """The compiled library, or why there is none."""

    path: str | None
    why_not: str | None
    compiler: str


def _find() -> Library:
    folders = [Path(p) for p in sys.modules[__package__.rpartition(".")[0]].__path__]
    notes = [f / "native.json" for f in folders if (f / "native.json").is_file()]
    note = json.loads(notes[0].read_text(encoding="utf-8")) if notes else {}
    compiler = str(note.get("compiler", ""))
    if os.environ.get("SPARSEWRIGHT_NO_NATIVE", "0") not in ("", "0"):
        return Library(None, "SPARSEWRIGHT_NO_NATIVE is set", compiler)
    named = os.environ.get("SPARSEWRIGHT_LIBRARY")
    found = [Path(named)] if named else [f / NAME for f in folders if (f / NAME).is_file()]
    if not found:
        why = note.get("why_not") or "the package was installed without building it"
        return Library(None, str(why), compiler)
    try:
        torch.ops.load_library(str(found[0]))
    except OSError as error:  # the linker's word: a torch that is too old, another platform
        return Library(None, f"{found[0].name} could not be loaded: {error}", compiler)
    return Library(str(found[0]), None, compiler)


def refuse_gradient(x: Tensor) -> None:
    """KernelError if autograd would want to pass through: packed weights have no backward yet."""
    if x.requires_grad and torch.is_grad_enabled():
        raise KernelError(
            "packed weights compute forwards only, and x requires a gradient: call them under "
            "torch.no_grad(), or detach x"
        )


def _csr_linear(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: int,
    isa: int,
) -> Tensor:
    refuse_gradient(x)
    return reference.csr_linear(x, rows, columns, values, bias, activation)


def _nm_linear(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    activation: int,
    isa: int,
) -> Tensor:
    refuse_gradient(x)
    return reference.nm_linear(x, values, columns, bias, out_features, chunk, activation)


def _csr_conv2d(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *numbers: int,
) -> Tensor:
    refuse_gradient(x)
    return reference.csr_conv2d(x, rows, columns, values, bias, residual, *numbers[:-1])


SCHEMAS: dict[str, tuple[str, Callable[..., Tensor]]] = {
    "csr_linear": (
        "(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias, int activation, "
        "int isa) -> Tensor",
        _csr_linear,
    ),
    "nm_linear": (
        "(Tensor x, Tensor values, Tensor columns, Tensor? bias, int out_features, int chunk, "
        "int activation, int isa) -> Tensor",
        _nm_linear,
    ),
    "csr_conv2d": (
        "(Tensor x, Tensor rows, Tensor columns, Tensor values, Tensor? bias, Tensor? residual, "
        "int kernel_h, int kernel_w, int stride_h, int stride_w, int padding_h, int padding_w, "
        "int dilation_h, int dilation_w, int groups, int activation, int isa) -> Tensor",
        _csr_conv2d,
    ),
}
"""Op -> its arguments and results, and what computes it where it is not compiled."""


def _missing() -> frozenset[str]:
    """The ops that the compiled library does not have."""
    if LIBRARY.path is None:
        return frozenset(SCHEMAS)
    return frozenset(op for op in SCHEMAS if not hasattr(torch.ops.sparsewright, op))


def _define(ops: frozenset[str]) -> torch.library.Library:
    library = torch.library.Library("sparsewright", "FRAGMENT")
    for op in sorted(ops):
        schema, plain = SCHEMAS[op]
        library.define(f"{op}{schema}")
        library.impl(op, plain, "CPU")
    return library


LIBRARY = _find()
MISSING = _missing()
_defined = _define(MISSING)  # ops live as long as their Library object


@torch.library.register_fake("sparsewright::csr_linear")
def _csr_fake(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    activation: int,
    isa: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], rows.shape[0] - 1))


@torch.library.register_fake("sparsewright::nm_linear")
def _nm_fake(
    x: Tensor,
    values: Tensor,
    columns: Tensor,
    bias: Tensor | None,
    out_features: int,
    chunk: int,
    activation: int,
    isa: int,
) -> Tensor:
    return x.new_empty((*x.shape[:-1], out_features))


@torch.library.register_fake("sparsewright::csr_conv2d")
def _conv_fake(
    x: Tensor,
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    bias: Tensor | None,
    residual: Tensor | None,
    *numbers: int,
) -> Tensor:
    shape = (x.shape[0], rows.shape[0] - 1, *reference.conv_size(x, *numbers[:8]))
    if residual is not None and tuple(residual.shape) != shape:
        raise RuntimeError(f"residual must have shape {shape}; got {tuple(residual.shape)}")
    return x.new_empty(shape)


csr_linear = torch.ops.sparsewright.csr_linear.default
nm_linear = torch.ops.sparsewright.nm_linear.default
csr_conv2d = torch.ops.sparsewright.csr_conv2d.default


def best_isa() -> str:
    """The instruction set that isa 0 means; KernelError if SPARSEWRIGHT_ISA asks for another.

    >>> best_isa() in ("portable", "avx2", "avx512")
    True
    """
    if LIBRARY.path is None:
        return "portable"
    try:
        number = torch.ops.sparsewright.best_isa()
    except RuntimeError as error:
        raise KernelError(str(error).splitlines()[0]) from None
    return next(name for name, i in ISAS.items() if i == number)


def why_not_compiled(op: str) -> str | None:
    """Why the compiled library does not serve an op, or None.

    >>> why_not_compiled("csr_linear") in (None, f"no compiled kernels: {LIBRARY.why_not}")
    True
    """
    if LIBRARY.path is None:
        return f"no compiled kernels: {LIBRARY.why_not}"
    if op in MISSING:
        return f"the compiled library has no {op}: it is older than this package; build it anew"
    return None


def why_no_isa(isa: str, op: str = "csr_linear") -> str | None:
    """Why the compiled kernels of an instruction set cannot serve an op here, or None.

    >>> why_no_isa("portable") in (None, f"no compiled kernels: {LIBRARY.why_not}")
    True
    """
    reason = why_not_compiled(op)
    if reason is not None:
        return reason
    if torch.ops.sparsewright.isa_missing(ISAS[isa]):
        return f"this CPU or its operating system has no {NEEDS[isa]}"
    if ISAS[isa] > ISAS[best_isa()]:
        return f"SPARSEWRIGHT_ISA={os.environ.get('SPARSEWRIGHT_ISA')} rules it out"
    return None


_warned = False


def warn_if_missing() -> None:
    """Say once, when a kernel is first wanted, that the compiled ones are not there."""
    global _warned
    if LIBRARY.path is not None or _warned:
        return
    _warned = True
    warnings.warn(
        f"sparsewright runs without its compiled kernels, on the slow reference: {LIBRARY.why_not}",
        SparsityWarning,
        stacklevel=3,
    )
