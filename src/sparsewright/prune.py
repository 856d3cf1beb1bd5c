"""One-shot pruning: score every weight once, keep the best (Han et al. 2015 with magnitude)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from .core import Allocate, Pattern, Score
from .errors import ConfigError
from .ranking import first_units
from .scores import as_score
from .selection import Overrides, Skip, select_layers
from .solvers import Solver
from .solving import solve
from .summary import Summary, summarise


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    score: str | Score = "magnitude",
    allocate: str | Allocate = "uniform",
    *,
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    loss: Callable[[nn.Module], Tensor] | None = None,
    solver: str | Solver | None = None,
    data: Iterable[Any] | None = None,
    seed: int = 0,
) -> Summary:
    """Put the weights of least score to zero, in place, and return what was done.

    sparsity: over the layers made sparse, in [0, 1), met exactly; None takes the pattern's own.
    score: "magnitude", "random", or one that needs gradients ("gradient", "weight_gradient"):
    then call backward first, or give loss, a function model -> scalar. allocate: "uniform" leaves
    the first layer dense. Other arguments as for `attach`. To train on under the masks, go on with
    `attach(..., method=sw.Static(initial="magnitude"))`.

    solver: "sparsegpt", "obc", "obs", "wanda" or an object, in a score's place: layer by layer it
    chooses what goes, and most change what stays, so that the outputs on data change least. It
    takes data, batches of inputs (see `solving.solve`, which has more to choose).

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4))
    >>> prune(model, 0.5, "2:4").present
    80
    """
    if solver is not None:
        if loss is not None or as_score(score) != as_score("magnitude"):
            raise ConfigError(
                f"solver {solver!r} chooses by the outputs on data; leave score and loss out"
            )
        return solve(
            model,
            sparsity,
            pattern,
            solver,
            data=data,
            allocate=allocate,
            skip=skip,
            overrides=overrides,
            on_misfit=on_misfit,
            seed=seed,
        )
    if data is not None:
        raise ConfigError(f"score {score!r} takes no data; name a solver, or leave data out")
    chosen = as_score(score)
    if loss is not None and not chosen.needs_gradient:
        raise ConfigError(f"score {score!r} needs no gradient; leave loss out")
    with _gradients_of(model, loss):
        layers, left_dense = select_layers(
            model,
            sparsity=sparsity,
            pattern=pattern,
            allocate=allocate,
            score=chosen,
            generator=torch.Generator().manual_seed(seed),
            skip=skip,
            overrides=overrides,
            on_misfit=on_misfit,
        )
        # All units before any weight changes: a layer that fails leaves the model as it was.
        chosen_units = [first_units(layer, chosen) for layer in layers]
    for layer, units in zip(layers, chosen_units, strict=True):
        layer.set_table(units)
    return summarise(layers, left_dense, sparsity)


@contextmanager
def _gradients_of(model: nn.Module, loss: Callable[[nn.Module], Tensor] | None) -> Iterator[None]:
    """The loss's gradients in place of the model's own, which come back whatever happens."""
    if loss is None:
        yield
        return
    before = [(parameter, parameter.grad) for parameter in model.parameters()]
    try:
        for parameter, _ in before:
            parameter.grad = None
        with torch.enable_grad():
            loss(model).backward()
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient
