"""Dense ways of measure/dense.py as peers, under the same names."""

from __future__ import annotations

import functools

from ..dense import SLOW_TO_BUILD, WAYS
from . import PEERS, Case, Peer, Ready

ABOUT = {
    "eager": "torch, as the model stands",
    "onednn prepacked": "torch, the weights of Linear layers reordered once",
    "torch.compile": "torch's compiler",
    "OpenBLAS (numpy)": "numpy's matrix product",
}


def _build(name: str, case: Case) -> Ready | str:
    if name in SLOW_TO_BUILD and not case.compiled:
        return "not asked for (--compile builds it)"
    run = WAYS[name](case.model, case.example)
    return run if isinstance(run, str) else Ready(run)


for _name, _about in ABOUT.items():
    PEERS.register(_name)(Peer(_name, _about, False, functools.partial(_build, _name)))
