"""torch's oneDNN tensors: BatchNorm folded, weights reordered once, activations in oneDNN's order
from layer to layer (torch.utils.mkldnn).
"""

from __future__ import annotations

import copy
import warnings

import torch
from torch import Tensor, nn

from . import PEERS, Case, Peer, Ready


def _build(case: Case) -> Ready | str:
    if not any(isinstance(m, nn.Conv2d) for m in case.model.modules()):
        return "only for models with convolutions: 'onednn prepacked' serves the others"
    if not torch.backends.mkldnn.is_available():
        return "this torch was built without oneDNN"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's words about its own internals
        from torch.fx.experimental.optimization import fuse
        from torch.utils.mkldnn import to_mkldnn

        model = to_mkldnn(fuse(nn.Sequential(copy.deepcopy(case.model))))
    x = case.example

    def run() -> Tensor:
        made = model(x.to_mkldnn())
        return made.to_dense() if made.is_mkldnn else made

    return Ready(run)


PEERS.register("oneDNN tensors")(Peer("oneDNN tensors", "torch.utils.mkldnn", False, _build))
