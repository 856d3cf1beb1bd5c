"""One run of a comparison: a recipe in a trial, tested at its end, and the line about it."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import nn

from ...errors import SparsityWarning, StateError
from ...measure.environment import environment
from ...measure.flops import forward_flops
from ...weights import find_weights
from ..run_folder import now
from .recipes import recipe_of
from .runs import Job, settings_of
from .suites import SUITES, Problem
from .trial import Trial

NOTED = ("cpu", "cores", "isa", "threads", "torch", "sparsewright", "commit")


def run(job: Job, alive: Callable[[], None] = lambda: None) -> dict[str, Any]:
    """Train and test; the line of the run. What goes wrong is raised."""
    suite, problem = SUITES[job.suite], problem_of(job.suite)
    kind, recipe = recipe_of(job.recipe)
    trial = Trial(
        suite, problem, sparsity=job.sparsity, seed=job.seed, epochs=job.epochs, alive=alive
    )
    begun = now()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", SparsityWarning)
        model = recipe.run(trial)
    loss, measure = problem.evaluate(model)  # with its hooks: as a method shows it in evaluation
    if not math.isfinite(loss):
        raise StateError(f"the loss on what is tested with is {loss}")
    present = present_weights(model, trial)
    trial.let_go()
    cost = forward_flops(model, problem.example)
    absent = sum(cost.sizes[name] - count for name, count in present.items())
    return {
        **header(job, kind),
        "options": trial.options,
        "measure": measure,
        "loss": loss,
        "weights": sum(cost.sizes.values()),
        "absent": absent,
        "parameters": sum(p.numel() for p in model.parameters()) - absent,
        "layers": {name: [present.get(name, size), size] for name, size in cost.sizes.items()},
        "inference_flops": cost.sparse(present),
        "training_flops": trial.total_flops,
        "epochs_trained": trial.epochs_trained,
        "seconds": trial.seconds,
        "cpu_seconds": trial.cpu_seconds,
        "warnings": sorted({str(one.message) for one in caught}),
        "started": begun,
        "machine": machine(),
    }


def failed(job: Job, error: str) -> dict[str, Any]:
    """The line of a run that ended in an error."""
    kind, _ = recipe_of(job.recipe)
    return {**header(job, kind), "error": error, "machine": machine()}


def header(job: Job, kind: str) -> dict[str, Any]:
    """What every line begins with."""
    own = {name: getattr(job, name) for name in Job.__dataclass_fields__}
    return {**own, "kind": kind, "settings": settings_of(SUITES[job.suite])}


def present_weights(model: nn.Module, trial: Trial) -> dict[str, int]:
    """Of every weight that was made sparse, how many are present; StateError if an absent one is
    not 0."""
    if trial.sparse is None:
        return {}
    values = {weight.name: weight.parameter for weight in find_weights(model)}
    for layer in trial.sparse.layers:
        wrong = int((values[layer.name].detach()[layer.absent] != 0).sum())
        if wrong:
            raise StateError(f"layer {layer.name!r}: {wrong} absent weights are not 0")
    return {layer.name: layer.present for layer in trial.sparse.layers}


@cache
def problem_of(suite: str) -> Problem:
    """A suite's data, read once in a process."""
    found = SUITES[suite]
    return found.problem(found)


@cache
def _environment() -> dict[str, Any]:
    return environment()


def machine() -> dict[str, Any]:
    about = {**_environment(), "threads": torch.get_num_threads()}
    return {name: about[name] for name in NOTED}
