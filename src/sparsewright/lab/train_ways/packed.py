"""Sparsewright's packed storage: present weights alone, with places that stay or that move.

RigL and SET move places once in EVERY steps. Timed are a step that moves none and a step that
does, with all that it costs later (places are laid anew for the kernels at the next products); the
row is the mean over EVERY steps of which one moves. A step that moves takes the optimizer's step
too, which RigL by default leaves out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from torch import nn

from ...attach import attach
from ...core import Method
from ...errors import StateError
from ...methods.rigl import RigL
from ...methods.set import SET
from ...pack import pack
from ..bench_cell import OURS
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, trainer

EVERY = 100
FRACTION = 0.3
"""Of the present weights, moved at an update: the default of both methods."""
NEVER = 2**40


def packed(task: Task) -> nn.Module | str:
    """A packed copy of the model; why some layer of the task cannot be packed."""
    try:
        return pack(task.copy(), masks=task.masks)
    except StateError as error:
        return str(error)


def _under(task: Task, method: str | Method) -> Trainer | str:
    model = packed(task)
    if isinstance(model, str):
        return model
    optimizer = adamw(model)
    sparse = attach(model, optimizer, method=method)
    return trainer(task, model, optimizer, held=sparse)


def _moving(make: Callable[[int, int], Method]) -> Callable[[Task], Trainer | str]:
    def build(task: Task) -> Trainer | str:
        still, moving = (_under(task, make(*timing)) for timing in ((NEVER, NEVER), (1, 0)))
        if isinstance(still, str) or isinstance(moving, str):
            return still if isinstance(still, str) else str(moving)
        return replace(still, update=moving, every=EVERY)

    return build


def _rigl(every: int, start: int) -> Method:
    options = {"end": 2 * NEVER, "fraction": lambda step: FRACTION, "step_on_update": True}
    return RigL(every=every, start=start, **options)  # type: ignore[arg-type]


def _set(every: int, start: int) -> Method:
    return SET(every=every, start=start, fraction=FRACTION)


for name, about, build in (
    ("static", "places that stay", lambda task: _under(task, "static")),
    ("RigL", f"RigL, an update every {EVERY} steps", _moving(_rigl)),
    ("SET", f"SET, an update every {EVERY} steps", _moving(_set)),
):
    way = Way(f"present weights only (sw.pack), {about}", OURS, build)
    TRAIN_WAYS.register(f"sparsewright packed {name}")(way)
