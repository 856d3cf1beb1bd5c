"""GraSP: keep the weights whose absence would weaken the flow of gradients most (Wang, Zhang,
Grosse 2020)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn

from ..calibration import Calibration
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._gradients import hessian_products, mean_gradients
from ._measured import Found, ToMeasure, dense, refuse_packed


@dataclass(frozen=True)
class GraSP(ToMeasure):
    """w * (H g): the negative of the paper's S, of which the highest go. Signed, so not for LAMP.

    g is the mean gradient of all batches and H the mean Hessian, so cutting a batch in two halves
    saves memory and changes nothing. temperature: what the model's output is divided by (the public
    code: 200); 1 takes the loss as it is. As published: allocate="global", before training; the
    public code takes 25 examples of every class.

    >>> GraSP(temperature=0)
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: score GraSP: temperature must be above 0; got 0
    """

    temperature: float = 1.0
    facts: ClassVar[Facts] = Facts(
        source="Wang, Zhang, Grosse: Picking Winning Tickets Before Training by Preserving "
        "Gradient Flow. ICLR 2020.",
        when="To choose a sparse network before it is trained, at high sparsity; it was made for "
        "initial values, and is no guide for a network that is trained already.",
        memory="Three dense tensors of every layer's size, and a graph of the backward pass.",
        flops="Two passes over the batches: a forward and backward (3 f_D), then those again with "
        "a backward of the backward (about 9 f_D in all); training and inference then cost as "
        "static sparse ones (3 f_S, f_S).",
        published="none verified",
        departs="Fully connected layers keep their values, while the public code draws them anew "
        "before scoring (Xavier); `temperature` is 1 unless asked, 200 there; scores are not "
        "divided by their sum, which changes no rank; the count kept is exact.",
    )

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ConfigError(f"score GraSP: temperature must be above 0; got {self.temperature}")

    def measured(self, calibration: Calibration) -> Found:
        """ConfigError without a loss; data that can be gone through twice."""
        refuse_packed(calibration, self)
        model = calibration.model
        seen = model if self.temperature == 1 else Cooled(model, self.temperature)
        weights = [layer.weight for layer in calibration.layers]
        first = mean_gradients(calibration, calibration.losses(seen), self)
        vectors = [g.to(w.dtype) for g, w in zip(first, weights, strict=True)]
        second = hessian_products(weights, calibration.losses(seen), vectors)
        return Found(
            {
                layer.name: dense(layer, layer.weight) * dense(layer, product)
                for layer, product in zip(calibration.layers, second, strict=True)
            }
        )


class Cooled(nn.Module):
    """A model whose output, a tensor, is divided by a temperature."""

    def __init__(self, model: nn.Module, temperature: float):
        super().__init__()
        self.model, self.temperature = model, temperature

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output = self.model(*args, **kwargs)
        if not isinstance(output, Tensor):
            raise ConfigError(
                "score GraSP: a temperature divides the model's output, which must be a tensor; "
                f"got {type(output).__name__}. Leave temperature at 1, or divide in your own loss"
            )
        return output / self.temperature


SCORES.register("grasp")(GraSP())
