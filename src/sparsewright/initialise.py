"""Initial values that keep the signal alive in a sparse network.

A ReLU network keeps its signal's size when Var(w) = 2 / fan_in (He et al. 2015). In a sparse layer
fan_in is each neuron's number of *present* inputs (Evci et al., AAAI 2022); with the dense fan_in
the signal of a depth-L network shrinks like density^L.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


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
    fan_in = mask.reshape(mask.shape[0], -1).sum(dim=1).clamp(min=1)
    deviation = gain / fan_in.sqrt()
    noise = torch.randn(mask.shape, generator=generator).to(mask.device)
    values = noise * deviation.reshape(-1, *[1] * (mask.dim() - 1))
    return values.masked_fill(~mask, 0.0)
