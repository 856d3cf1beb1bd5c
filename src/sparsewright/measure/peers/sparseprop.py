"""SparseProp (Nikdan et al., "SparseProp", 2023): csr loops vectorised over the batch.

It compiles for the machine it is installed on and has no wheels, so it is in no extra of this
project; where it is installed it is found by its name.
"""

from __future__ import annotations

import ctypes
import importlib

from torch import Tensor

from ..timing import Call
from . import PEERS, SAME_MEMORY, Case, Peer, Ready
from ._csr import Csr, run_chain


def _build(case: Case) -> Ready | str:
    try:
        backend = importlib.import_module("sparseprop").backend
    except ImportError:
        return (
            "sparseprop is not installed (pip install pybind11, then pip install "
            "--no-build-isolation --no-deps sparseprop)"
        )
    # It has no switch for its threads: they are those of the OpenMP that it is linked with.
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(case.threads)

    def product(weight: Csr, x: Tensor, y: Tensor) -> Call:
        parts = (weight.rows, weight.columns, weight.values)

        def run() -> None:
            y.zero_()  # it adds to what is there
            backend.sparse_linear_vectorized_forward(x, *parts, y)

        return run

    return run_chain(case, product, SAME_MEMORY)


PEERS.register("SparseProp")(Peer("SparseProp", "csr loops over the batch", True, _build))
