"""Which norm scales the outputs of a layer: the next module with parameters, if it is one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence

from torch import nn
from torch.nn.modules.batchnorm import _NormBase

from ..core import Layer
from ..errors import ConfigError, UnknownNameError

NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm)


def scales_of(
    model: nn.Module, layers: Sequence[Layer], named: Mapping[str, str]
) -> dict[str, nn.Parameter]:
    """Layer name -> the scale of the norm that follows it, one number for each of its rows.

    named: layer name -> name of its norm, where the order in which the model registers its modules
    does not tell. A layer that no norm follows has no entry. UnknownNameError or ConfigError for a
    name in `named` that fits nothing.
    """
    modules = dict(model.named_modules())
    leaves = [name for name, module in modules.items() if list(module.parameters(recurse=False))]
    after = dict(itertools.pairwise(leaves))
    for name in named:
        if name not in {layer.name for layer in layers}:
            raise UnknownNameError("sparse layer", name, [layer.name for layer in layers])
    found: dict[str, nn.Parameter] = {}
    for layer in layers:
        norm = named.get(layer.name, after.get(layer.name))
        scale = None if norm is None or layer.is_lookup else _scale(modules.get(norm), layer)
        if scale is not None:
            found[layer.name] = scale
        elif layer.name in named:
            raise ConfigError(
                f"layer {layer.name!r}: its norm {norm!r} must be a BatchNorm, LayerNorm, "
                f"GroupNorm or InstanceNorm of the model with a scale for each of its "
                f"{layer.shape[0]} outputs"
            )
    return found


def _scale(norm: nn.Module | None, layer: Layer) -> nn.Parameter | None:
    scale = norm.weight if isinstance(norm, NORMS) else None
    fits = isinstance(scale, nn.Parameter) and scale.shape == layer.shape[:1]
    return scale if fits else None
