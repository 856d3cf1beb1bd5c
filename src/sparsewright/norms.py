"""Norms: which one follows a layer, so that its scale belongs to the layer's outputs."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.modules import activation, pooling
from torch.nn.modules.batchnorm import _NormBase

from .calibration import run
from .core import Layer
from .weights import find_weights

BY_CHANNEL = (_NormBase,)
"""Norms that see each output of a layer by itself: every BatchNorm and InstanceNorm."""
ALL = (*BY_CHANNEL, nn.LayerNorm, nn.GroupNorm)
KEPT_APART = (
    *(nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d),
    *(activation.ReLU, activation.ReLU6, activation.LeakyReLU, activation.PReLU, activation.ELU),
    *(activation.GELU, activation.SiLU, activation.Mish, activation.Hardswish),
    *(activation.Sigmoid, activation.Hardsigmoid, activation.Tanh, activation.Hardtanh),
    *(activation.Softplus, activation.SELU, activation.CELU),
    *(pooling._MaxPoolNd, pooling._AvgPoolNd),
    *(pooling._AdaptiveMaxPoolNd, pooling._AdaptiveAvgPoolNd),
)
"""Modules between a layer and its norm that keep the layer's outputs apart, and in their order."""


def norms_after(
    model: nn.Module,
    layers: Iterable[Layer],
    kinds: tuple[type[nn.Module], ...] = BY_CHANNEL,
    batch: Any = None,
) -> dict[str, nn.Module]:
    """Layer name -> the norm of one of `kinds` that follows it, with one number for each output.

    With a batch it is the norm that is given the layer's output when the model is run on it.
    Without, it is the next module in the same parent, as in a Sequential and in most blocks; a
    Sequential within another counts as its modules. Modules that are KEPT_APART may lie between. A
    layer that no such norm follows has no entry.

    >>> from sparsewright.selection import candidates
    >>> model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 4))
    >>> found = candidates(model, pattern="channel", generator=torch.Generator()).layers
    >>> {name: type(norm).__name__ for name, norm in norms_after(model, found).items()}
    {'0': 'BatchNorm1d'}
    """
    rows = {layer.name: layer.shape[0] for layer in layers if not layer.is_lookup}
    names = {
        weight.module: weight.name
        for weight in find_weights(model)
        if weight.name in rows and weight.module._parameters.get("weight") is weight.parameter
    }
    pairs = _by_order(model) if batch is None else _by_run(model, set(names), kinds, batch)
    found: dict[str, nn.Module] = {}
    for module, norm in pairs:
        if module in names and isinstance(norm, kinds) and _outputs(norm) == rows[names[module]]:
            found[names[module]] = norm
    return found


def scale_of(norm: nn.Module | None, layer: Layer) -> nn.Parameter | None:
    """The scale of a norm, if it has one for each row of a layer's weight."""
    scale = norm.weight if isinstance(norm, ALL) else None
    fits = isinstance(scale, nn.Parameter) and scale.shape == layer.shape[:1]
    return scale if fits else None


def _outputs(norm: nn.Module) -> int | None:
    """How many outputs a norm tells apart; None if these have several dimensions."""
    if isinstance(norm, nn.LayerNorm):
        return norm.normalized_shape[0] if len(norm.normalized_shape) == 1 else None
    count = norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features
    return int(count)  # type: ignore[arg-type]


def _by_order(model: nn.Module) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Every module with the one that follows it in the same parent."""
    for parent in model.modules():
        yield from itertools.pairwise(m for m in _within(parent) if not isinstance(m, KEPT_APART))


def _within(parent: nn.Module) -> Iterator[nn.Module]:
    """Its children; those of a Sequential in another in its place: one's output is its last's."""
    for child in parent.children():
        both = isinstance(parent, nn.Sequential) and isinstance(child, nn.Sequential)
        yield from _within(child) if both else (child,)


def _by_run(
    model: nn.Module, wanted: set[nn.Module], kinds: tuple[type[nn.Module], ...], batch: Any
) -> list[tuple[nn.Module, nn.Module]]:
    """Modules that are wanted, each with a norm that was given the very tensor that it made."""
    made: dict[int, tuple[nn.Module, object]] = {}  # the output is held: its id stays its own
    pairs: list[tuple[nn.Module, nn.Module]] = []

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module in wanted:
            made[id(output)] = module, output
        elif inputs and id(inputs[0]) in made:
            maker = made[id(inputs[0])][0]
            if isinstance(module, kinds):
                pairs.append((maker, module))
            else:
                made[id(output)] = maker, output

    watched = (*kinds, *KEPT_APART)
    seen = [m for m in model.modules() if m in wanted or isinstance(m, watched)]
    hooks = [module.register_forward_hook(after) for module in seen]
    try:
        with torch.no_grad():
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return pairs
