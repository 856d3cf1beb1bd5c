"""Solving: layers pruned one after another so that their outputs on data change least, each with
inputs from the model as it is pruned so far (Frantar and Alistarh 2022, 2023)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import closing
from typing import Any

import torch
from torch import Tensor, nn

from .abilities import MeasuredAllocation
from .allocate import as_allocation
from .arguments import check_model, check_sparsity, seeded
from .calibration import Calibration, check_batches, left_as_it_was
from .capture import Together, check_layers, walk
from .core import Allocate, Layer, Pattern
from .errors import ConfigError, MisfitError, StateError
from .moments import Moments, sizes
from .naming import Overrides, Skip
from .scores import as_score
from .selection import candidates
from .solvers import Problem, Solution, Solver, as_solver
from .summary import Summary, summarise
from .weights import Weight, find_weights


def solve(
    model: nn.Module,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    solver: str | Solver = "sparsegpt",
    *,
    data: Iterable[Any] | None,
    allocate: str | Allocate = "uniform",
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    together: Together = "layer",
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
) -> Summary:
    """Prune a model in one shot by a solver, in place, and return what was done.

    solver: "sparsegpt", "obc", "obs", "wanda" or an object. data: batches as a training loop has
    them (inputs, pairs, or mappings of keyword arguments); read once and kept. together: "layer",
    or "block" for all layers of a block at once. dtype: of the sums and of the solution, float64
    or float32. Other arguments as for `prune`; allocations that rank scores rank magnitudes, and
    those that measure see the unpruned model on the same data.

    Only Linear and convolutions are solved: skip embeddings and weights that are tied. If anything
    fails the model is left as it was. Raises ConfigError, MisfitError, BudgetError, StateError or
    UnknownNameError.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    >>> data = [torch.randn(64, 8) for _ in range(4)]
    >>> solve(model, 0.5, data=data).present
    32
    """
    check_model(model)
    if sparsity is not None:
        check_sparsity(sparsity)
    if data is not None:
        check_batches(data)
    chosen = as_solver(solver)
    shared, score = as_allocation(allocate), as_score("magnitude")
    found = candidates(
        model,
        pattern=pattern,
        score=score,
        generator=seeded(seed),
        skip=skip,
        overrides=overrides,
        on_misfit=on_misfit,
    )
    refuse_held(found.layers)
    # Its buffers and torch's random state too: a forward, or a DataLoader, may change them.
    with left_as_it_was(model, found.layers, seed):
        if isinstance(shared, MeasuredAllocation):
            if data is not None:
                data = list(data)  # it is gone through twice
            shared = shared.measured(Calibration(model, found.layers, data), score)
        layers, left_dense = found.share_out(sparsity, shared, score)
        solve_layers(model, layers, chosen, data, together=together, dtype=dtype)
    return summarise(layers, left_dense, sparsity)


def refuse_held(layers: Sequence[Layer]) -> None:
    """StateError for weights of a Sparsifier, whose masks would not know what is gone."""
    for layer in layers:
        if layer.storage.is_held():
            raise StateError(
                f"layer {layer.name!r} is held by a Sparsifier, which would train what is pruned: "
                "call its detach() first"
            )


def solve_layers(
    model: nn.Module,
    layers: Sequence[Layer],
    solver: Solver,
    data: Iterable[Any] | None,
    *,
    together: Together = "layer",
    dtype: torch.dtype = torch.float64,
) -> None:
    """Bring layers, all present, to `layer.keep` units in every group, in the model's order.

    A copy of the weights that are changed is kept until the end, for if anything fails.
    """
    of = {weight.name: weight for weight in find_weights(model)}
    wanted = {layer.name: layer for layer in layers if layer.numel and layer.keep < layer.units}
    weights = [of[name] for name in wanted]
    check_layers(model, weights)
    for weight in weights:
        _check_pattern(solver, wanted[weight.name], weight)
    if data is None:
        raise ConfigError(f"{type(solver).__name__} measures activations: give data, batches")
    before: dict[str, Tensor] = {}
    try:
        if weights:
            groups = walk(model, weights, data, together=together, dtype=dtype)
            with closing(groups):  # type: ignore[type-var]
                for group in groups:
                    while group:  # what is solved is let go
                        name, moments = group.popitem()
                        before[name] = wanted[name].weight.detach().clone()
                        _solve(wanted[name], solver, moments)
                        del moments
    except BaseException:
        for name, values in before.items():
            _write(wanted[name], values)
        raise


def _check_pattern(solver: Solver, layer: Layer, weight: Weight) -> None:
    groups, _ = sizes(weight.module)
    reason = solver.refuses(layer.pattern, layer.shape, groups)
    if reason is not None:
        raise MisfitError(f"layer {layer.name!r}: {reason}")


@torch.no_grad()
def _solve(layer: Layer, solver: Solver, moments: Moments) -> None:
    second = moments.second
    assert second is not None
    groups, _, inputs = second.shape
    weight = layer.weight.detach().to(second).reshape(groups, -1, inputs)
    if not torch.isfinite(weight).all():
        raise StateError(f"layer {layer.name!r}: a weight is not finite")
    problem = Problem(
        layer.name, weight, second, moments.count, layer.pattern, layer.shape, layer.keep
    )
    found = solver.solve(problem)
    units = _units(layer, solver, found)
    _write(layer, found.weight.reshape(layer.shape))
    layer.set_table(units)


def _units(layer: Layer, solver: Solver, found: Solution) -> Tensor:
    """The present units, as a table; StateError if the solver broke the layer's budget."""
    counts = layer.pattern.fold(found.mask.reshape(layer.shape).to(torch.int64))
    table = counts == layer.unit_size
    whole = bool(((counts == 0) | table).all())
    if not whole or bool((table.sum(dim=1) != layer.keep).any()):
        raise StateError(
            f"layer {layer.name!r}: {type(solver).__name__} must keep {layer.keep} whole units of "
            "every group, and kept others"
        )
    if not torch.isfinite(found.weight).all():
        raise StateError(
            f"layer {layer.name!r}: {type(solver).__name__} found weights that are not finite; "
            "give more data, or more damping"
        )
    return table


@torch.no_grad()
def _write(layer: Layer, values: Tensor) -> None:
    layer.weight.copy_(values)
