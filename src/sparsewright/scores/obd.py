"""Optimal Brain Damage: h_kk * w_k^2 / 2, the loss's second-order change if the weight went, with
the diagonal of the Hessian alone (LeCun, Denker, Solla 1989)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from ..calibration import Calibration, evaluating
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._gradients import Gradients, gradients, hessian_products, mean
from ._measured import Found, ToMeasure, dense, refuse_packed

HESSIANS = ("fisher", "hutchinson")


@dataclass(frozen=True)
class OBD(ToMeasure):
    """h * w^2 / 2 at a minimum of the loss, with h the diagonal of the Hessian.

    hessian: "fisher" takes the mean over single examples of their squared gradients (the empirical
    Fisher: at a minimum the gradient of a whole batch vanishes, and tells nothing), each run by
    itself in evaluation mode; "hutchinson" the mean over `samples` random vectors v of +-1 of
    v * (H v), which may be negative. Without data the fisher form squares the gradient of the one
    loss.

    >>> OBD("exact")
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: score OBD: hessian must be fisher or hutchinson; got 'exact'
    """

    hessian: str = "fisher"
    samples: int = 8
    facts: ClassVar[Facts] = Facts(
        source="LeCun, Denker, Solla: Optimal Brain Damage. NeurIPS 1989. The random vectors: "
        "Hutchinson 1990.",
        when="For a trained network, with training between prunings; the least that a second-order "
        "score can be. OBS and its like correct the weights that stay, too.",
        memory="Two dense tensors of every layer's size; hutchinson also a graph of the backward.",
        flops="fisher: a forward and backward of every example (3 f_D); hutchinson: about 6 f_D "
        "for every batch and sample.",
        published="LeNet-300-100 on MNIST: 2.0 % error with 8 % of the weights, LeNet-5 2.7 % (as "
        "tabulated in the repository of Dettmers, sparse_learning).",
        departs="The paper's own backward pass of second derivatives, which takes the Hessian of "
        "every layer's activations as diagonal, is replaced by the two estimates above; `hessian` "
        "and `samples` are our own.",
    )

    def __post_init__(self) -> None:
        if self.hessian not in HESSIANS:
            raise ConfigError(
                f"score OBD: hessian must be {' or '.join(HESSIANS)}; got {self.hessian!r}"
            )
        if self.samples < 1:
            raise ConfigError(f"score OBD: samples must be 1 or more; got {self.samples}")

    def measured(self, calibration: Calibration) -> Found:
        """ConfigError without a loss; StateError for a layer that the loss does not depend on."""
        made = self._fisher if self.hessian == "fisher" else self._hutchinson
        return Found(
            {
                layer.name: h * dense(layer, layer.weight).square() / 2
                for layer, h in zip(calibration.layers, made(calibration), strict=True)
            }
        )

    def _fisher(self, calibration: Calibration) -> Gradients:
        with evaluating(calibration.model):  # an example alone is no batch for a norm
            each = gradients(calibration, calibration.losses_of_examples(), self)
            return mean([one.square() for one in found] for found in each)

    def _hutchinson(self, calibration: Calibration) -> Gradients:
        refuse_packed(calibration, self)
        layers = calibration.layers
        weights = [layer.weight for layer in layers]

        def each() -> Iterator[Gradients]:
            for _ in range(self.samples):
                signs = [_signs(w, y.generator) for w, y in zip(weights, layers, strict=True)]
                products = hessian_products(weights, calibration.losses(), signs)
                pairs = zip(layers, products, signs, strict=True)
                yield [dense(layer, product * sign) for layer, product, sign in pairs]

        return mean(each())


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    """+-1 in the shape of a tensor, drawn on the CPU."""
    drawn = torch.randint(2, tuple(like.shape), generator=generator) * 2 - 1
    return drawn.to(like)


SCORES.register("obd")(OBD())
