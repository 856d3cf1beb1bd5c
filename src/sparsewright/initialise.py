"""Initial values that keep the signal alive in a sparse network.

A ReLU network keeps its signal's size when Var(w) = 2 / fan_in (He et al. 2015). In a sparse layer
fan_in is each neuron's number of *present* inputs (Evci et al., AAAI 2022); with the dense fan_in
the signal of a depth-L network shrinks like density^L.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from .arguments import told
from .core import Layer
from .errors import ConfigError

Init = Literal["fan_in"] | Callable[[Layer], Tensor] | None
""""fan_in" for `fan_in_values`, a function layer -> values, or None: values stay as they are."""


def fan_in_values(
    mask: Tensor, generator: torch.Generator | None = None, gain: float = math.sqrt(2.0)
) -> Tensor:
    """Draw N(0, gain^2 / fan_in) for every present weight, 0 for absent ones.

    mask: bool (out, in, *kernel). fan_in: present weights of the row or filter. gain: sqrt(2) for
    ReLU, 1 for tanh. Returns float32 on the mask's device; the draw itself is made on the CPU.

    >>> values = fan_in_values(torch.tensor([[True, False], [True, True]]))
    >>> values.shape, values[0, 1].item()
    (torch.Size([2, 2]), 0.0)
    """
    places = mask.reshape(-1).nonzero().squeeze(1)
    rows = places // max(1, mask[0].numel()) if len(mask) else places
    drawn = _draw(rows, len(mask), generator, gain)
    values = torch.zeros(mask.numel(), device=mask.device)
    values[places] = drawn
    return values.view(mask.shape)


def _draw(rows: Tensor, outputs: int, generator: torch.Generator | None, gain: float) -> Tensor:
    """A value for every present weight, whose output neuron is its entry of `rows`."""
    fan_in = torch.bincount(rows, minlength=outputs).clamp(min=1)
    deviation = gain / fan_in.sqrt()
    return torch.randn(len(rows), generator=generator).to(rows.device) * deviation[rows]


def check_init(init: Any) -> None:
    """ConfigError unless it is one."""
    named = isinstance(init, str) and init == "fan_in"
    if init is not None and not named and (isinstance(init, type) or not callable(init)):
        raise ConfigError(f"init must be None, 'fan_in' or a function of a layer; got {told(init)}")


def initialise(layers: Sequence[Layer], init: Init) -> None:
    """Write the first values of every layer's present weights; ConfigError if `init` is none."""
    check_init(init)
    if init is None:
        return
    for layer in layers:
        if callable(init):
            values = init(layer)
            if not isinstance(values, Tensor) or values.numel() not in (layer.numel, layer.present):
                found = tuple(values.shape) if isinstance(values, Tensor) else told(values)
                raise ConfigError(
                    f"layer {layer.name!r}: init must return a tensor of its shape "
                    f"{tuple(layer.shape)}, or of its {layer.present} present weights; got {found}"
                )
            if values.shape == layer.shape and layer.shape != (layer.present,):
                values = values[layer.mask.to(values.device)]
            layer.storage.write(values)
        elif not layer.is_lookup:  # whose rows are looked up, not summed over
            rows = layer.storage.rows()
            values = _draw(rows, layer.shape[0], layer.generator, math.sqrt(2.0))
            layer.storage.write(values)
