"""Gradients between backward and the optimizer's step: masked, or withheld and given back."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .kernels.masking import zero_, zeroed

Withheld = list[tuple[nn.Parameter, Tensor]]


def masked(gradient: Tensor, absent: Tensor) -> Tensor:
    """The gradient with zeros where weights are absent; sparse gradients (Embedding) too.

    >>> masked(torch.ones(3), torch.tensor([True, False, False]))
    tensor([0., 1., 1.])
    """
    if not gradient.is_sparse:
        return zeroed(gradient, absent)
    gradient = gradient.coalesce()
    rows = gradient.indices()[0]
    values = gradient.values().masked_fill(absent[rows], 0.0)
    return torch.sparse_coo_tensor(
        gradient.indices(), values, gradient.shape, is_coalesced=True, check_invariants=False
    )


def mask_gradient(weight: nn.Parameter, absent: Tensor) -> None:
    """Put the gradient that a weight holds, if any, to zero where the weight is absent."""
    gradient = weight.grad
    if gradient is not None and gradient.is_sparse:
        weight.grad = masked(gradient, absent)
    elif gradient is not None:  # in place: the gradient may be a view of a bucket
        zero_(gradient, absent)


def withhold(optimizer: Optimizer) -> Withheld:
    """Hide all gradients from the optimizer, so that its step changes nothing; what was hidden."""
    held: Withheld = []
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                held.append((parameter, parameter.grad))
                parameter.grad = None
    return held


def give_back(held: Withheld) -> None:
    """Undo `withhold`."""
    for parameter, gradient in held:
        parameter.grad = gradient
