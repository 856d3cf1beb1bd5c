"""scipy's csr matrices: one thread, whatever torch has."""

from __future__ import annotations

from torch import Tensor

from ..timing import Call
from . import PEERS, Case, Peer, Ready
from ._csr import Csr, run_chain


def _build(case: Case) -> Ready | str:
    try:
        from scipy import sparse
    except ImportError:
        return "scipy is not installed (the extra 'bench' has it)"

    def product(weight: Csr, x: Tensor, y: Tensor) -> Call:
        parts = (weight.values.numpy(), weight.columns.numpy(), weight.rows.numpy())
        w = sparse.csr_matrix(parts, shape=weight.shape)
        given, made = x.numpy(), y.numpy()
        if x.shape[1] == 1:
            given, made = given[:, 0], made[:, 0]

        def run() -> None:
            made[...] = w @ given

        return run

    return run_chain(case, product, "one thread")


PEERS.register("scipy CSR")(Peer("scipy CSR", "scipy.sparse.csr_matrix", True, _build))
