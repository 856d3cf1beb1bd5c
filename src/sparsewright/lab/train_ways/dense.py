"""Dense training by torch: eagerly, and compiled. It multiplies the zeros too, and fills them."""

from __future__ import annotations

import torch

from ...measure.dense import quiet
from ..bench_cell import DENSE
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, trainer


def _eager(task: Task) -> Trainer:
    model = task.copy()
    return trainer(task, model, adamw(model))


def _compiled(task: Task) -> Trainer | str:
    model = task.copy()
    torch.compiler.reset()  # what earlier cells compiled would count against a limit
    made = trainer(task, model, adamw(model), call=torch.compile(model))
    try:
        with quiet():
            made.backward()
    except torch._inductor.exc.InductorError as error:  # no C++ compiler, mostly
        return f"torch.compile could not build it: {(str(error).splitlines() or [''])[0]}"
    return made


TRAIN_WAYS.register("dense eager")(Way("dense weights, torch's own layers", DENSE, _eager))
TRAIN_WAYS.register("dense torch.compile")(Way("the same, compiled", DENSE, _compiled))
