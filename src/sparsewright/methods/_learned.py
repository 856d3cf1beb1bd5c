"""What a method learns besides weights: tensors in a layer's memory, stepped by the method itself.

So they are part of every checkpoint, and whichever optimizer steps the weights may be any.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from ..core import Layer
from ..errors import ConfigError
from ._drop_grow import check_option

By = Literal["sgd", "adam"]
BY: tuple[str, ...] = get_args(By)
BETAS = 0.9, 0.999
EPSILON = 1e-8
"""Adam's defaults (Kingma and Ba 2015)."""


def check_learning(method: str, rate: float, by: str = "sgd", momentum: float = 0.0) -> None:
    """Raise ConfigError unless a rate is 0 or more and a momentum in [0, 1)."""
    check_option(method, "by", by, BY)
    if not rate >= 0:
        raise ConfigError(f"method {method}: rate must be 0 or more; got {rate}")
    if not 0 <= momentum < 1:
        raise ConfigError(f"method {method}: momentum must be in [0, 1); got {momentum}")


def learn(layer: Layer, name: str, start: Tensor, by: By = "sgd") -> None:
    """Begin to remember a tensor that is learned, and what its steps need; call it in `begin`."""
    slots = ("mean", "square") if by == "adam" else ("momentum",)
    layer.memory[name] = start
    for slot in slots:
        layer.memory[f"{name}.{slot}"] = torch.zeros_like(start)
    if by == "adam":
        layer.memory[f"{name}.steps"] = torch.zeros((), device=start.device)


def recall(layer: Layer, name: str) -> Tensor:
    """What is remembered under a name, on the weight's device (the model may have moved)."""
    kept = layer.memory[name]
    if kept.device != layer.weight.device:
        kept = layer.memory[name] = kept.to(layer.weight.device)
    return kept


def descend(layer: Layer, name: str, gradient: Tensor, rate: float, momentum: float = 0.0) -> None:
    """One step down the gradient, in place: Adam's if `learn` was told so, else SGD's.

    momentum: of SGD, as torch.optim.SGD has it (without dampening).
    """
    learned = recall(layer, name)
    gradient = gradient.to(learned.dtype)
    if f"{name}.steps" not in layer.memory:
        velocity = recall(layer, f"{name}.momentum")
        learned.sub_(velocity.mul_(momentum).add_(gradient), alpha=rate)
        return
    mean, square, steps = (recall(layer, f"{name}.{slot}") for slot in ("mean", "square", "steps"))
    first, second = BETAS
    steps.add_(1)
    mean.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    size = (square / (1 - second**steps)).sqrt_().add_(EPSILON)
    learned.sub_((mean / (1 - first**steps)).div_(size), alpha=rate)
