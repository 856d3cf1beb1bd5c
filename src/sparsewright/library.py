"""The compiled library: where it is, which ops and instruction sets it has, and why not.

Ops are defined where their layout is (`_ops.define`): one that the library lacks, there alone. All
end in two numbers. activation: of the output, a place in reference.ACTIVATIONS (0 none, 1 relu,
2 gelu, 3 silu, 4 relu6, 5 hardswish). isa: 0 the best that this CPU has, 1 portable, 2 avx2, 3
avx512; 4 and 5 are as 0 but, where csb_linear is bound, with its weight made code for 16 or 8 rows
of a batch side by side. They check types and sizes; indices were checked by layouts.validate. They
compute forwards only; packed layers refuse an input that wants a gradient. Environment:
SPARSEWRIGHT_NO_NATIVE=1 hides the library, SPARSEWRIGHT_LIBRARY names another one (for tests),
SPARSEWRIGHT_ISA caps `best`, SPARSEWRIGHT_CODE=1 or 0 says whether weights may be made code
(`why_no_code`).
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from .errors import KernelError, SparsityWarning

NAME = "sparsewright_kernels.so"
ISAS = {"portable": 1, "avx2": 2, "avx512": 3}
NEEDS = {"portable": "nothing", "avx2": "AVX2 and FMA", "avx512": "AVX-512 (F, BW, VL, DQ)"}
BEST = 0
CODE = {16: 4, 8: 5}


@dataclass(frozen=True)
class Library:
    """The compiled library, or why there is none."""

    path: str | None
    why_not: str | None
    compiler: str


def _find() -> Library:
    folders = [Path(p) for p in sys.modules[__package__].__path__]
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


LIBRARY = _find()
MISSING: set[str] = set()
"""Ops that were defined in Python, because the compiled library has none of that name."""


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


def why_no_code() -> str | None:
    """Why batches, and images side by side, may not run weights as instructions of their own
    (csrc/csb_code.h), or None; KernelError if SPARSEWRIGHT_CODE is neither 0 nor 1.

    >>> isinstance(why_no_code(), str | None)
    True
    """
    reason = why_not_compiled("why_no_code")
    if reason is not None:
        return reason
    try:
        number = torch.ops.sparsewright.why_no_code()
    except RuntimeError as error:
        raise KernelError(str(error).splitlines()[0]) from None
    return (
        None,
        "SPARSEWRIGHT_CODE=0 rules it out",
        why_no_isa("avx512"),
        "this build or its operating system runs no code that a program writes",
        "not asked for, by SPARSEWRIGHT_CODE=1: it was measured on AMD processors alone",
    )[number]


def why_not_compiled(op: str) -> str | None:
    """Why the compiled library does not serve an op, or None.

    >>> why_not_compiled("csr_linear") in (None, f"no compiled kernels: {LIBRARY.why_not}")
    True
    """
    if LIBRARY.path is None:
        return f"no compiled kernels: {LIBRARY.why_not}"
    if op in MISSING or not hasattr(torch.ops.sparsewright, op):
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
