"""Which norm follows a layer: its scale belongs to the layer's filters."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase as Norm  # every BatchNorm and InstanceNorm

from ..calibration import Calibration, run

BETWEEN = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.Identity)
"""Modules that leave a layer's filters apart, and their scale alone."""


def norms_after(calibration: Calibration) -> dict[str, nn.Module]:
    """Layer name -> the norm whose input is the layer's output; no entry where there is none.

    With data it is seen in a run of the first batch. Without, it is the next module in the same
    parent, which is the order of a Sequential and of most blocks.
    """
    modules = calibration.modules()
    if calibration.batches is None:
        return by_order(calibration.model, modules)
    return by_run(calibration.model, modules, calibration.first_batch())


def by_order(model: nn.Module, layers: dict[str, nn.Module]) -> dict[str, nn.Module]:
    """Of each layer the norm that is the next module in the same parent."""
    names = {module: name for name, module in layers.items()}
    found: dict[str, nn.Module] = {}
    for parent in model.modules():
        children = [c for c in parent.children() if not isinstance(c, BETWEEN)]
        for module, following in itertools.pairwise(children):
            if module in names and isinstance(following, Norm):
                found[names[module]] = following
    return found


def by_run(model: nn.Module, layers: dict[str, nn.Module], batch: Any) -> dict[str, nn.Module]:
    """Of each layer the norm that was given the very tensor that the layer made."""
    names = {module: name for name, module in layers.items()}
    made: dict[int, tuple[str, object]] = {}  # the output is held: its id stays its own
    found: dict[str, nn.Module] = {}

    def after(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if module in names:
            made[id(output)] = names[module], output
        elif inputs and id(inputs[0]) in made:  # what is passed on by a module in between
            name = made[id(inputs[0])][0]
            if isinstance(module, Norm):
                found[name] = module
            elif isinstance(module, BETWEEN):
                made[id(output)] = name, output

    watched = [m for m in model.modules() if m in names or isinstance(m, (Norm, *BETWEEN))]
    hooks = [module.register_forward_hook(after) for module in watched]
    try:
        with torch.no_grad():
            run(model, batch)
    finally:
        for hook in hooks:
            hook.remove()
    return found
