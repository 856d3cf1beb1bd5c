"""MKL's inspector-executor csr product, through ctypes: the library is told of the many calls to
come (hints), looks at the matrix once, and multiplies.
"""

from __future__ import annotations

import ctypes
import functools
import weakref
from importlib import metadata
from typing import Any

from torch import Tensor

from ...errors import KernelError
from ..timing import Call
from . import PEERS, SAME_MEMORY, Case, Peer, Ready
from ._csr import Csr, run_chain

PACKAGE = "mkl"
AS_IT_IS, ROW_MAJOR, GENERAL = 10, 101, 20  # MKL's numbers
CALLS = 100_000  # that it is told to expect
# Its idle threads spin for 200 ms by default, longer than the pause between two samples.
SPIN_MS = 25


class _Kind(ctypes.Structure):
    _fields_ = (("type", ctypes.c_int), ("mode", ctypes.c_int), ("diag", ctypes.c_int))


@functools.cache
def _library() -> Any:
    """MKL's runtime from the package mkl, or why there is none."""
    try:
        files = metadata.files(PACKAGE) or []
    except metadata.PackageNotFoundError:
        return "mkl is not installed (pip install mkl; it takes 0.7 GB)"
    found = [file.locate() for file in files if file.name.startswith("libmkl_rt.so")]
    if not found:
        return "the package mkl holds no libmkl_rt.so"
    try:
        library = ctypes.CDLL(str(found[0]))
    except OSError as error:
        return f"libmkl_rt could not be loaded: {error}"
    library.MKL_Set_Num_Threads(1)  # loads the threading layer, and with it Intel's OpenMP
    _calm()
    return library


def _calm() -> None:
    openmp = [f.locate() for f in metadata.files("intel-openmp") or [] if f.name == "libiomp5.so"]
    for file in openmp:
        ctypes.CDLL(str(file)).kmp_set_blocktime(SPIN_MS)


def _ok(status: int, what: str) -> None:
    if status:
        raise KernelError(f"MKL's {what} must return 0; got {status}")


def _product(library: Any, weight: Csr, x: Tensor, y: Tensor) -> Call:
    out, width = weight.shape
    batch = x.shape[1]
    rows, columns, values = (
        ctypes.c_void_p(t.data_ptr()) for t in (weight.rows, weight.columns, weight.values)
    )
    ends = ctypes.c_void_p(weight.rows.data_ptr() + 4)
    handle, kind = ctypes.c_void_p(), _Kind(GENERAL, 0, 0)
    made = library.mkl_sparse_s_create_csr(
        ctypes.byref(handle), 0, out, width, rows, ends, columns, values
    )
    _ok(made, "create_csr")
    one, none = ctypes.c_float(1), ctypes.c_float(0)
    given, written = ctypes.c_void_p(x.data_ptr()), ctypes.c_void_p(y.data_ptr())
    call: tuple[Any, ...]
    if batch == 1:
        _ok(library.mkl_sparse_set_mv_hint(handle, AS_IT_IS, kind, CALLS), "set_mv_hint")
        call = (AS_IT_IS, one, handle, kind, given, none, written)
        run = functools.partial(library.mkl_sparse_s_mv, *call)
    else:
        hint = (handle, AS_IT_IS, kind, ROW_MAJOR, batch, CALLS)
        _ok(library.mkl_sparse_set_mm_hint(*hint), "set_mm_hint")
        call = (AS_IT_IS, one, handle, kind, ROW_MAJOR, given, batch, batch, none, written, batch)
        run = functools.partial(library.mkl_sparse_s_mm, *call)
    _ok(library.mkl_sparse_optimize(handle), "optimize")
    _ok(run(), "product")
    held = _Held(run.func, *run.args)
    held.memory = (weight, x, y)
    weakref.finalize(held, library.mkl_sparse_destroy, handle)  # MKL's own copy of the matrix
    return held


class _Held(functools.partial[int]):
    """A call that keeps alive the memory which it reads and writes, and costs no more than it."""

    memory: tuple[Any, ...]


def _build(case: Case) -> Ready | str:
    library = _library()
    if isinstance(library, str):
        return library
    library.MKL_Set_Num_Threads(case.threads)
    return run_chain(case, functools.partial(_product, library), SAME_MEMORY)


PEERS.register("MKL CSR")(Peer("MKL CSR", "MKL's inspector-executor product", True, _build))
