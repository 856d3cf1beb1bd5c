"""Trained sparse: every training method through `attach`, with its own defaults.

A method whose own `every` would leave fewer than 25 updates in a run takes a 25th of the run; what
it took is written down with the run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn

from ....core import Method
from ....methods import METHODS
from ....steering import keeps_absent
from ...recipe import make_method
from ...tables import describe
from ..trial import Trial
from . import KINDS, Recipe

UPDATES = 25
"""Fewest updates that a run should have."""
PLAIN = str | int | float | bool | None
VARIANTS = (
    ("static", "uniform", "uniform_all", "unstructured"),
    ("set", "uniform", "uniform_all", "unstructured"),
    ("rigl", "uniform", "uniform_all", "unstructured"),
    ("rigl", "fan_in", "erk", "fan_in"),
    ("srigl", "fan_in", "erk", "fan_in"),
)
"""(method, suffix, allocation, pattern): also run so, where they exist."""


@KINDS.register("trained")
def trained() -> Iterable[Recipe]:
    for name, kind in METHODS.items():
        run = partial(attached, name=name)
        yield Recipe(name, describe(kind), run, part=(METHODS.kind, name))
    for name, suffix, allocate, pattern in VARIANTS:
        if name in METHODS:
            about = f"{name} with allocation {allocate} and pattern {pattern}."
            run = partial(attached, name=name, allocate=allocate, pattern=pattern)
            yield Recipe(f"{name}-{suffix}", about, run, part=(METHODS.kind, name))


def attached(
    trial: Trial, name: str, allocate: str = "erk", pattern: str = "unstructured"
) -> nn.Module:
    """Train by a method from the first step on."""
    options = scaled_options(name, trial.steps)
    method = make_method(name, options)
    # Absent weights that live on keep the values of a dense network; else present inputs count.
    init = None if keeps_absent(method) else "fan_in"
    trial.options |= {"allocate": allocate, "pattern": pattern}
    model = trial.model()
    optimizer = trial.optimizer(model)
    sparse = trial.attach(
        model, optimizer, method=method, allocate=allocate, pattern=pattern, init=init
    )
    trial.options |= plain_options(sparse.method)
    trial.fit(model, optimizer, sparse)
    return model


def plain_options(method: Method) -> dict[str, Any]:
    """What a method's options are in the run, those that depend on its length filled in."""
    if not dataclasses.is_dataclass(method):
        return {}
    values = {f.name: getattr(method, f.name) for f in dataclasses.fields(method) if f.init}
    return {k: v if isinstance(v, PLAIN) else str(v) for k, v in values.items()}


def scaled_options(name: str, steps: int) -> dict[str, Any]:
    """A method's steps between updates, if it has them: its own, or a 25th of a short run.

    >>> scaled_options("rigl", 10_000), scaled_options("rigl", 250), scaled_options("static", 250)
    ({'every': 100}, {'every': 10}, {})
    """
    own: Method = make_method(name, {})
    has = dataclasses.is_dataclass(own) and any(f.name == "every" for f in dataclasses.fields(own))
    every = getattr(own, "every", None) if has else None
    if not isinstance(every, int):
        return {}
    return {"every": every if every * UPDATES <= steps else max(1, steps // UPDATES)}
