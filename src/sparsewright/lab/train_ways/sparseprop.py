"""SparseProp's own modules (Nikdan et al., "SparseProp", 2023): csr loops over the batch, forward
and backward. It computes the gradient of the first layer's inputs too, which nobody asks for."""

from __future__ import annotations

import ctypes
import importlib

import torch
from torch import Tensor, nn

from ..bench_cell import PEER
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, replace_linears, trainer


def _build(task: Task) -> Trainer | str:
    try:
        kind = importlib.import_module("sparseprop.modules.linear").SparseLinear
    except ImportError as error:
        return (
            f"{error.name or 'sparseprop'} is not installed (pip install pybind11 scipy, then pip "
            "install --no-build-isolation --no-deps sparseprop)"
        )
    # It has no switch for its threads: they are those of the OpenMP that it is linked with.
    ctypes.CDLL("libgomp.so.1").omp_set_num_threads(torch.get_num_threads())

    def make(linear: nn.Linear, mask: Tensor) -> nn.Module:
        return kind.from_dense(linear)  # its places are those that are not zero

    model = replace_linears(task, make)
    return model if isinstance(model, str) else trainer(task, model, adamw(model))


TRAIN_WAYS.register("SparseProp")(Way("its SparseLinear modules", PEER, _build))
