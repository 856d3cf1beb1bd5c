"""What a config's words build: the storage of the weights, the optimizer, the sparse method, the
learning rate of a step."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import torch
from torch import nn

from ..attach import attach
from ..core import Method
from ..errors import ConfigError, UnknownNameError
from ..initialise import Init
from ..methods import METHODS
from ..pack import pack
from ..registry import Table
from ..scores import as_score
from ..selection import select_layers
from ..sparsifier import Sparsifier
from ..weights import find_weights
from .config import DENSE, TrainConfig

MakeOptimizer = Callable[[list[dict[str, Any]], TrainConfig], torch.optim.Optimizer]
OPTIMIZERS: Table[MakeOptimizer] = Table("optimizer of the lab")

INITS: Table[Init] = Table("initialisation")
INITS.register("fan_in")("fan_in")
INITS.register("model")(None)

Store = Callable[[nn.Module, TrainConfig], nn.Module]
STORAGES: Table[Store] = Table("storage")
"""What is done to a model before its optimizer is built."""


@STORAGES.register("masked")
def masked(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Dense weights, gradients and optimizer state, zeros where a weight is absent."""
    return model


@STORAGES.register("packed")
def packed(model: nn.Module, config: TrainConfig) -> nn.Module:
    """Present weights alone, with gradients and optimizer state as small.

    Layers that will have all of their weights stay dense: packed, they would store places for
    nothing. What cannot be packed stays masked.
    """
    generator = torch.Generator().manual_seed(config.seed)
    score = as_score("magnitude")
    layers, _ = select_layers(model, score=score, generator=generator, **_selection(config))
    sparse = {layer.name for layer in layers if layer.keep < layer.units}
    return pack(model, skip=[w.name for w in find_weights(model) if w.name not in sparse])


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weights decay, packed ones too; biases and the scales of norms do not."""
    weights = {id(weight.parameter) for weight in find_weights(model)}
    parameters = [(p, p.dim() > 1 or id(p) in weights) for p in model.parameters()]
    return [
        {"params": [p for p, decays in parameters if decays], "weight_decay": weight_decay},
        {"params": [p for p, decays in parameters if not decays], "weight_decay": 0.0},
    ]


@OPTIMIZERS.register("sgd")
def sgd(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Stochastic gradient descent with momentum."""
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum)


@OPTIMIZERS.register("adamw")
def adamw(groups: list[dict[str, Any]], config: TrainConfig) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov, Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=config.lr)


def make_sparse(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: TrainConfig, steps: int
) -> Sparsifier | None:
    """Attach the method that the config names; None for a dense run."""
    if config.method == DENSE:
        return None
    return attach(
        model,
        optimizer,
        method=make_method(config.method, config.options()),
        steps=steps,
        init=INITS[config.init],
        seed=config.seed,
        **_selection(config),
    )


def _selection(config: TrainConfig) -> dict[str, Any]:
    """Which weights become sparse, and how sparse."""
    names = ("sparsity", "pattern", "allocate", "skip", "overrides", "on_misfit")
    return {name: getattr(config, name) for name in names}


def make_method(name: str, options: dict[str, Any]) -> Method:
    """A method by name with options; ConfigError lists the options that it has.

    >>> make_method("set", {"every": 50}).every
    50
    """
    if name not in METHODS:
        raise UnknownNameError("method", name, [*METHODS, DENSE])
    kind = METHODS[name]
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    for option in options:
        if option not in known:
            raise ConfigError(
                f"method {name!r} has no option {option!r}; it has: {', '.join(known)}"
            )
    return kind(**options)


def learning_rate(config: TrainConfig, step: int, steps_per_epoch: int, steps: int) -> float:
    """A straight rise over the warm-up, then half a cosine down to 0 at the end of the run.

    >>> config = TrainConfig(lr=1.0, warmup=1)
    >>> [round(learning_rate(config, step, 2, 6), 3) for step in range(6)]
    [0.5, 1.0, 1.0, 0.854, 0.5, 0.146]
    """
    warm = min(config.warmup * steps_per_epoch, steps / 2)
    if step < warm:
        return config.lr * (step + 1) / math.ceil(warm)
    done = (step - warm) / (steps - warm)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * done))
