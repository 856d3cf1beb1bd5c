"""The squared norms of what enters a layer: for each weight, of all inputs that it is multiplied
with. That is the gradient which the layer's weight would have if its inputs were squared and all
its outputs summed."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from ..calibration import Calibration
from ..core import Layer
from ..errors import ConfigError


def input_squares(calibration: Calibration) -> dict[str, Tensor]:
    """Layer name -> sums over the data of squared inputs, float32, to multiply with the weight.

    ConfigError for a layer that is not called on an input, as those inside MultiheadAttention, and
    for embeddings, whose inputs are numbers of rows.
    """
    modules = calibration.modules()
    totals: dict[str, Tensor] = {}

    def watch(layer: Layer) -> Any:
        def hook(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
            found = _squares(layer, module, inputs[0].detach().float().square())
            totals[layer.name] = found + totals.get(layer.name, 0.0)

        return modules[layer.name].register_forward_hook(hook)

    seen = [y for y in calibration.layers if _is_seen(y, modules[y.name])]
    hooks = [watch(layer) for layer in seen]
    try:
        with torch.no_grad():
            for _ in calibration.outputs():
                pass
    finally:
        for hook in hooks:
            hook.remove()
    for layer in calibration.layers:
        if layer.name not in totals:
            raise ConfigError(
                f"layer {layer.name!r}: the norms of its inputs are asked for, and "
                f"{type(modules[layer.name]).__name__} gives none on this data (Linear and "
                f"convolutions do, when they are called); leave it out (skip=[{layer.name!r}])"
            )
    return totals


def _is_seen(layer: Layer, module: nn.Module) -> bool:
    if layer.is_lookup or isinstance(module, nn.MultiheadAttention):
        return False
    return len(layer.shape) == 2 or isinstance(module, _ConvNd)


def _squares(layer: Layer, module: nn.Module, squared: Tensor) -> Tensor:
    if not isinstance(module, _ConvNd):
        return squared.reshape(-1, layer.shape[1]).sum(dim=0)
    filters = torch.zeros(module.groups, *layer.shape[1:], device=squared.device)
    with torch.enable_grad():
        summed = _convolved(module, squared, filters.requires_grad_(True)).sum()
    (found,) = torch.autograd.grad(summed, filters)
    return found.repeat_interleave(layer.shape[0] // math.gcd(module.groups, layer.shape[0]), dim=0)


def _convolved(module: Any, x: Tensor, filters: Tensor) -> Tensor:
    return module._conv_forward(x, filters, None)
