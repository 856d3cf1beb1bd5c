"""What starts by a network's shape share: a weight as links between outputs and inputs, scored so
that those of the network come before all others.

A convolution's inputs are its channels at every place of the kernel. Where a pattern cannot hold
the network (units of several weights, groups of another size) the units with most links of it win.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..core import View
from ..errors import ConfigError

CHOSEN = 2.0
"""Score of a link of the network, to which less than 1 is added; the others score less than 1."""


def size_of(layer: View) -> tuple[int, int]:
    """(outputs, inputs) of the layer's network."""
    shape = tuple(layer.shape)
    return (shape[0], math.prod(shape[1:])) if len(shape) > 1 else (1, math.prod(shape))


def links_of(layer: View, start: str) -> int:
    """Links that the layer is to have; ConfigError if that is not settled."""
    if layer.keep is None:
        raise ConfigError(
            f"layer {layer.name!r}: start {start} must know how many weights a layer keeps, so no "
            "allocation can rank by it: take one that looks at shapes (erk, uniform) or at "
            "magnitudes"
        )
    return layer.keep


def evenly(total: int, parts: int) -> Tensor:
    """(parts) whole numbers, as equal as they can be, that sum to the total.

    >>> evenly(7, 3)
    tensor([2, 2, 3])
    """
    ends = torch.arange(1, parts + 1) * total // max(1, parts)
    return ends.diff(prepend=ends.new_zeros(1))


def best_of_rows(keys: Tensor, counts: Tensor) -> Tensor:
    """(rows, columns) bool: the counts[row] largest keys of every row; the first of equals."""
    rank = torch.empty(keys.shape, dtype=torch.int64)
    order = keys.argsort(dim=1, descending=True, stable=True)
    rank.scatter_(1, order, torch.arange(keys.shape[1]).expand_as(order))
    return rank < counts[:, None]


def scored(layer: View, chosen: Tensor, others: Tensor) -> Tensor:
    """In the weight's shape, at least float32: the chosen links first, and by `others`, in [0, 1),
    among them and among the rest."""
    score = (chosen * CHOSEN + others).reshape(layer.shape).to(layer.weight.device)
    return score.to(torch.promote_types(layer.weight.dtype, torch.float32))


def uniform(layer: View, *size: int) -> Tensor:
    """Draws from [0, 1), float64, of the layer's CPU generator."""
    return torch.rand(*size, generator=layer.generator, dtype=torch.float64)


def gumbel(layer: View, *size: int) -> Tensor:
    """Standard Gumbel draws: log p plus these, ranked, is a draw in proportion to p."""
    return -(-uniform(layer, *size).clamp_(min=1e-300).log()).log()


def in_unit(keys: Tensor) -> Tensor:
    """Keys as their ranks over all, scaled to [0, 1): the largest is nearest to 1."""
    flat = keys.reshape(-1)
    rank = torch.empty(len(flat), dtype=torch.float64)
    rank[flat.argsort(stable=True)] = torch.arange(len(flat), dtype=torch.float64)
    return (rank / max(1, len(flat))).view(keys.shape)
