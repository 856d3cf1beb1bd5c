"""Floors: the dense network, and a small dense one of as many parameters as the sparse one."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from ....scores import as_score
from ....selection import select_layers
from ..trial import Trial
from . import KINDS, Recipe


@KINDS.register("floor")
def floors() -> Iterable[Recipe]:
    yield Recipe("dense", "The same network with all of its weights.", dense, sparse=False)
    about = "A dense network of narrower layers, with no more parameters than the sparse one."
    yield Recipe("small-dense", about, small_dense)


def dense(trial: Trial, scale: float = 1.0) -> nn.Module:
    model = trial.model(scale)
    trial.fit(model, trial.optimizer(model))
    return model


def small_dense(trial: Trial) -> nn.Module:
    """Of all scales of the hidden widths the largest whose parameters are no more."""
    scale = smaller_scale(trial)
    trial.options |= {"widths": trial.suite.scaled(scale)}
    return dense(trial, scale)


def smaller_scale(trial: Trial) -> float:
    """By halving an interval: parameters grow with the scale."""
    budget = sparse_parameters(trial)
    low, high = 0.0, 1.0
    for _ in range(20):
        middle = (low + high) / 2
        if parameters(trial.problem.model(middle)) <= budget:
            low = middle
        else:
            high = middle
    return low


def sparse_parameters(trial: Trial) -> int:
    """Parameters of the sparse network: present weights, biases and norms."""
    model = trial.problem.model()
    layers, _ = select_layers(
        model,
        sparsity=trial.sparsity,
        pattern="unstructured",
        allocate="erk",
        score=as_score("magnitude"),
        generator=torch.Generator(),
        skip=trial.config.skip,
    )
    absent = sum((layer.units - layer.keep) * layer.groups for layer in layers)
    return parameters(model) - absent


def parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
