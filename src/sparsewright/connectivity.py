"""Whether signal can pass a sparse network: dead neurons and the percolation threshold.

In a layered random network with p*n present inputs per neuron, paths from input to output survive
only if p*n > 1 (Molloy & Reed 1995; Cohen et al. 2000, for random graphs of given degrees).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from .core import Layer


def dead_outputs(layer: Layer) -> int:
    """Output neurons or filters without a single present weight."""
    return int((~layer.storage.reached(None, layer.is_lookup)).sum())


def problems(layers: Sequence[Layer]) -> list[str]:
    """One sentence per layer through which little or no signal can pass, in the given order.

    Layers are read as a chain, inputs first; where sizes do not chain (a residual join, a grouped
    convolution) all inputs count as alive.
    """
    found = []
    alive: Tensor | None = None
    for layer in layers:
        alive = layer.storage.reached(_inputs(layer, alive), layer.is_lookup)
        outputs = len(alive)
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


def _inputs(layer: Layer, alive: Tensor | None) -> Tensor | None:
    """Which of a layer's inputs are reached by what is alive before it; None for all."""
    inputs = layer.shape[0] if layer.is_lookup else layer.shape[1]
    if alive is None or len(alive) == 0 or inputs % len(alive):
        return None
    # a flattened image: each channel becomes several inputs
    return alive.repeat_interleave(inputs // len(alive)).to(layer.weight.device)
