"""Sparsewright's masked storage: dense weights, gradients and products, zeros kept by a mask."""

from __future__ import annotations

from typing import Any

import torch

from ...attach import attach
from ...errors import StateError
from ...methods.static import Static
from ..bench_cell import OURS
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, trainer


def keep(task: Task, model: Any, optimizer: Any) -> Any:
    """A Sparsifier that holds the task's masks as they are, in either storage; StateError if it
    found others."""
    sparse = attach(
        model,
        optimizer,
        method=Static(initial="magnitude"),
        sparsity=task.sparsity,
        allocate="uniform_all",
    )
    for layer in sparse.layers:
        if not torch.equal(layer.mask, task.masks[layer.name]):
            raise StateError(f"layer {layer.name!r}: the mask found is not that of the task")
    return sparse


def _build(task: Task) -> Trainer:
    model = task.copy()
    optimizer = adamw(model)
    return trainer(task, model, optimizer, held=keep(task, model, optimizer))


about = "dense weights whose zeros a mask keeps (sw.attach)"
TRAIN_WAYS.register("sparsewright masked")(Way(about, OURS, _build))
