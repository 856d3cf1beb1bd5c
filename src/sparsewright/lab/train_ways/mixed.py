"""Packed where that is faster, masked elsewhere: chosen by timing each kind of layer both ways.

A layer's kind is its class and sizes and those of its input. Each is timed alone, dense and packed,
for a whole step: forward, backward and optimizer.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ...errors import StateError
from ...measure.timing import interleave
from ...pack import pack
from ..bench_cell import OURS
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, trainer
from .masked import keep

ROUNDS = 3


def _build(task: Task) -> Trainer | str:
    dense = slower_packed(task)
    masks = {name: mask for name, mask in task.masks.items() if name not in dense}
    if not masks:
        return f"no layer is faster packed: {_words(task, dense)}"
    model = pack(task.copy(), skip=list(dense), masks=masks)
    optimizer = adamw(model)
    held = keep(task, model, optimizer)
    note = f"packed {len(masks)} of {len(task.masks)} layers"
    note += f"; dense: {_words(task, dense)}" if dense else ""
    return trainer(task, model, optimizer, held=held, note=note)


def slower_packed(task: Task) -> dict[str, str]:
    """The layers that are to stay dense -> why."""
    seen = _inputs(task)
    found: dict[str, str] = {}
    of_kind: dict[str, str | None] = {}
    for name, x in seen.items():
        layer = task.model.get_submodule(name)
        kind = f"{layer} on {tuple(x.shape)}"
        if kind not in of_kind:
            of_kind[kind] = _why_dense(layer, task.masks[name], x)
        if (reason := of_kind[kind]) is not None:
            found[name] = reason
    return found


def _inputs(task: Task) -> dict[str, Tensor]:
    """Layer -> what reaches it; it requires a gradient where the layer must compute one."""
    model, seen = task.copy(), {}

    def record(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: Any) -> None:
            seen[name] = inputs[0].detach().requires_grad_(inputs[0].requires_grad)

        return hook

    for name in task.masks:
        model.get_submodule(name).register_forward_pre_hook(record(name))
    model(task.x)
    return seen


def _why_dense(layer: nn.Module, mask: Tensor, x: Tensor) -> str | None:
    try:
        twin = pack(nn.Sequential(copy.deepcopy(layer)), masks={"0": mask})
    except StateError as error:
        return str(error).split(": ", 2)[-1]
    steps = {"dense": _step(copy.deepcopy(layer), x), "packed": _step(twin, x)}
    times = interleave(steps, seconds=0, min_rounds=ROUNDS)
    ratio = times["packed"].median / times["dense"].median
    return None if ratio < 1 else f"packed takes {ratio:.1f}x the time of dense"


def _step(layer: nn.Module, x: Tensor) -> Callable[[], None]:
    optimizer = adamw(layer)
    with torch.no_grad():
        dy = torch.ones_like(layer(x))

    def step() -> None:
        optimizer.zero_grad()
        x.grad = None
        layer(x).backward(dy)
        optimizer.step()

    return step


def _words(task: Task, dense: dict[str, str]) -> str:
    """The layers by their reasons."""
    names: dict[str, list[str]] = {}
    for name, reason in dense.items():
        names.setdefault(reason, []).append(name)
    return "; ".join(f"{_few(some)} ({reason})" for reason, some in names.items())


def _few(names: list[str]) -> str:
    """
    >>> _few(["a", "b", "c", "d"])
    'a, b and 2 more'
    """
    return (
        ", ".join(names) if len(names) < 4 else f"{names[0]}, {names[1]} and {len(names) - 2} more"
    )


about = "packed where a layer alone is faster so, dense under its mask elsewhere"
TRAIN_WAYS.register("sparsewright mixed")(Way(about, OURS, _build))
