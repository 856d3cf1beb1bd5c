"""Gradients of a loss by the weights to be pruned, batch by batch, and products with its Hessian.

A Hessian-vector product is the gradient of (gradient * vector) (Pearlmutter 1994).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..calibration import Calibration, check_loss
from ._measured import check_reached, dense

Gradients = list[Tensor]
"""One for each of the calibration's layers, in the dense weights' shapes."""


def gradients(
    calibration: Calibration, losses: Iterable[Tensor], score: object
) -> Iterator[Gradients]:
    """The gradient of each loss, float32 or wider; StateError if none depends on some layer."""
    layers = calibration.layers
    weights = [layer.weight for layer in layers]
    reached = {layer.name: False for layer in layers}
    for loss in losses:
        found = torch.autograd.grad(check_loss(loss), weights, allow_unused=True)
        for layer, one in zip(layers, found, strict=True):
            reached[layer.name] |= one is not None or layer.numel == 0
        yield [
            dense(layer, torch.zeros_like(layer.weight) if one is None else one)
            for layer, one in zip(layers, found, strict=True)
        ]
    check_reached(reached, score)


def mean_gradients(calibration: Calibration, losses: Iterable[Tensor], score: object) -> Gradients:
    """The mean over all losses of their gradients."""
    return mean(gradients(calibration, losses, score))


def mean(each: Iterable[Gradients]) -> Gradients:
    """The mean of several lists of tensors, entry by entry; there must be one list at least."""
    total: Gradients = []
    count = 0
    for one in each:
        total = [a + b for a, b in zip(total, one, strict=True)] if total else list(one)
        count += 1
    return [tensor / count for tensor in total]


def hessian_products(
    weights: Sequence[nn.Parameter], losses: Iterable[Tensor], vectors: Sequence[Tensor]
) -> Gradients:
    """The mean over all losses of (Hessian * vectors), each in its weight's shape.

    `losses` must be made while this runs: attention is then computed in the one way that torch can
    differentiate twice.
    """

    def each() -> Iterator[Gradients]:
        for loss in losses:
            first = torch.autograd.grad(
                check_loss(loss), weights, create_graph=True, allow_unused=True
            )
            pairs = zip(first, vectors, strict=True)
            inner = [(g * v).sum() for g, v in pairs if g is not None and g.requires_grad]
            zeros = [torch.zeros_like(weight) for weight in weights]
            if not inner:  # the loss is linear in the weights
                yield zeros
                continue
            second = torch.autograd.grad(torch.stack(inner).sum(), weights, allow_unused=True)
            yield [z if h is None else h.detach() for h, z in zip(second, zeros, strict=True)]

    with sdpa_kernel(SDPBackend.MATH):
        return mean(each())
