"""torch's own csr tensors: int32 places, `addmv` and `addmm`, which call MKL where torch has it."""

from __future__ import annotations

import functools
import warnings

import torch
from torch import Tensor

from ..timing import Call
from . import PEERS, SAME_MEMORY, Case, Peer, Ready
from ._csr import Csr, run_chain


def _product(weight: Csr, x: Tensor, y: Tensor) -> Call:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta"
        w = torch.sparse_csr_tensor(
            weight.rows, weight.columns, weight.values, size=weight.shape, check_invariants=False
        )
    if x.shape[1] == 1:
        x, y = x[:, 0], y[:, 0]
        return functools.partial(torch.addmv, y, w, x, beta=0, out=y)
    return functools.partial(torch.addmm, y, w, x, beta=0, out=y)


def _build(case: Case) -> Ready | str:
    return run_chain(case, _product, SAME_MEMORY)


PEERS.register("torch CSR")(Peer("torch CSR", "addmv, addmm on a csr tensor", True, _build))
