"""Ways of training the same sparse model, which `bench train` times beside each other.

A way is added by adding a file to this folder.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from ...registry import Table

RATE = 1e-3


@dataclass(frozen=True)
class Task:
    """What is trained. model: dense, in training mode, 0 where a mask says absent, rescaled so that
    signals pass. masks: name of a layer -> bool in its weight's shape. sparsity: of every layer.
    x: a batch of inputs, the same at every step. y: (batch) int64, their classes.
    """

    model: nn.Module
    masks: Mapping[str, Tensor]
    sparsity: float
    x: Tensor
    y: Tensor

    def copy(self) -> nn.Module:
        """The dense model again, to be changed."""
        return copy.deepcopy(self.model)


@dataclass(frozen=True)
class Trainer:
    """One way, ready to train.

    weights: name of a layer -> its Parameter, in the mask's shape or, row by row, its present
    values alone. call: what runs the model. held: objects that must live on. note: for the row.
    update: the same with places that move at every step, of which one in `every` is such a step.
    """

    model: nn.Module
    weights: Mapping[str, nn.Parameter]
    optimizer: Optimizer
    x: Tensor
    y: Tensor
    call: Callable[[Tensor], Tensor]
    held: Any = None
    note: str = ""
    update: Trainer | None = None
    every: int = 1

    def backward(self) -> Tensor:
        """A whole step but the optimizer's: the loss, whose gradients are then there."""
        self.optimizer.zero_grad()
        loss = F.cross_entropy(self.call(self.x), self.y)
        loss.backward()
        return loss

    def step(self) -> None:
        """zero_grad, forward, cross-entropy, backward, optimizer."""
        self.backward()
        self.optimizer.step()


@dataclass(frozen=True)
class Way:
    """side: "dense", "peer" or "ours", as in every bench. build: a Trainer, or why there is none;
    it may change nothing of the task."""

    about: str
    side: str
    build: Callable[[Task], Trainer | str]


TRAIN_WAYS: Table[Way] = Table("way of training", __name__)


def adamw(model: nn.Module) -> Optimizer:
    """The optimizer that all ways share: of torch's implementations the fastest on a CPU."""
    return AdamW(model.parameters(), RATE, fused=True)


def trainer(task: Task, model: nn.Module, optimizer: Optimizer, **more: Any) -> Trainer:
    """A Trainer of a model whose layers have the names that they have in the task."""
    weights: dict[str, Any] = {name: model.get_submodule(name).weight for name in task.masks}
    more = {"call": model, **more}
    return Trainer(model, weights, optimizer, task.x, task.y, **more)


def replace_linears(task: Task, make: Callable[[nn.Linear, Tensor], nn.Module]) -> nn.Module | str:
    """A copy of the model with every Linear replaced by make(linear, mask); or why not."""
    model = task.copy()
    others = [n for n in task.masks if type(model.get_submodule(n)) is not nn.Linear]
    if others:
        kind = type(model.get_submodule(others[0])).__name__
        return f"only for models whose sparse layers are Linear: {others[0]!r} is a {kind}"
    for name, mask in task.masks.items():
        linear = model.get_submodule(name)
        assert isinstance(linear, nn.Linear)
        with torch.no_grad():
            model.set_submodule(name, make(linear, mask))
    return model
