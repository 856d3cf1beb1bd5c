"""Inputs as layers see them, for the tests of solvers."""

from __future__ import annotations

import torch
from torch import Tensor


def activations(inputs: int, columns: int, seed: int = 0) -> Tensor:
    """(inputs, columns) as layers see them: a few factors in common, and scales that differ."""
    generator = torch.Generator().manual_seed(seed)
    x, z = (torch.randn(n, columns, generator=generator).double() for n in (inputs, 4))
    x += 2 * torch.randn(inputs, 4, generator=generator).double() @ z
    return x * (torch.rand(inputs, 1, generator=generator).double() * 2 + 0.2)
