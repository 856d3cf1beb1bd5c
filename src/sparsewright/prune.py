"""One-shot pruning: score every weight once, keep the best (Han et al. 2015 with magnitude)."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from .core import Allocate, Pattern, Score
from .errors import ConfigError
from .ranking import first_units
from .scores import as_score
from .selection import Overrides, Skip, select_layers
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
    seed: int = 0,
) -> Summary:
    """Put the weights of least score to zero, in place, and return what was done.

    sparsity: over the layers made sparse, in [0, 1), met exactly; None takes the pattern's own.
    score: "magnitude", "random", or one that needs gradients ("gradient", "weight_gradient"):
    then call backward first, or give loss, a function model -> scalar. allocate: "uniform" leaves
    the first layer dense. Other arguments as for `attach`. To train on under the masks, go on with
    `attach(..., method=sw.Static(initial="magnitude"))`.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4))
    >>> prune(model, 0.5, "2:4").present
    80
    """
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
