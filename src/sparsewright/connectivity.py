"""Whether signal can pass a sparse network: dead neurons and the percolation threshold.

In a layered random network with p*n present inputs per neuron, paths from input to output survive
only if p*n > 1 (Molloy & Reed 1995; Cohen et al. 2000, for random graphs of given degrees).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .core import Layer


def connections(layer: Layer) -> Tensor:
    """(out, in) bool: whether any weight joins the input to the output."""
    mask = layer.mask
    joined = mask.reshape(*mask.shape[:2], -1).any(dim=2)
    return joined.T if layer.is_lookup else joined


def dead_outputs(layer: Layer) -> int:
    """Output neurons or filters without a single present weight."""
    return int((~connections(layer).any(dim=1)).sum())


def problems(layers: Sequence[Layer]) -> list[str]:
    """One sentence per layer through which little or no signal can pass, in the given order.

    Layers are read as a chain, inputs first; where sizes do not chain (a residual join, a grouped
    convolution) all inputs count as alive.
    """
    found = []
    alive: Tensor | None = None
    for layer in layers:
        joined = connections(layer)
        alive = _step(joined, alive)
        outputs = joined.shape[0]
        fan_in = layer.present / max(1, outputs)
        if not alive.any():
            found.append(
                f"layer {layer.name!r}: no path leads from the input to any of its "
                f"{outputs} outputs"
            )
            alive = None
        elif fan_in <= 1.0:
            found.append(
                f"layer {layer.name!r} is below its percolation threshold: {fan_in:.2f} present "
                f"inputs per output, more than 1 is needed; {dead_outputs(layer)} of "
                f"{outputs} outputs are dead"
            )
    return found


def _step(joined: Tensor, alive: Tensor | None) -> Tensor:
    """Which outputs are reached from the inputs that are alive."""
    inputs = joined.shape[1]
    if alive is None or len(alive) == 0 or inputs % len(alive):
        reached = torch.ones(inputs, dtype=torch.bool, device=joined.device)
    else:  # a flattened image: each channel becomes several inputs
        reached = alive.repeat_interleave(inputs // len(alive)).to(joined.device)
    return (joined & reached).any(dim=1)
