"""A small model under a method with latent weights, and the same in plain autograd beside it."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from training import OPTIMIZERS, batch, small_model

import sparsewright as sw

STEPS = 6


def attached(method, sparsity=0.5, optimizer="SGD-momentum", steps=STEPS, pattern="unstructured"):
    model = small_model()
    optimizers = OPTIMIZERS[optimizer](model)
    sparse = sw.attach(
        model,
        optimizers,
        method=method,
        sparsity=sparsity,
        allocate="uniform_all",
        steps=steps,
        pattern=pattern,
    )
    return model, optimizers, sparse


def one_layer(
    weight, method, sparsity=0.5, pattern="unstructured", lr=1.0, momentum=0.0, steps=100
):
    """A Linear of given weights under SGD, whose loss is the sum of weight * pull."""
    model = nn.Sequential(nn.Linear(len(weight), 1, bias=False))
    model[0].weight.data[:] = torch.tensor([weight])
    optimizer = torch.optim.SGD(model.parameters(), lr, momentum=momentum)
    settings = {"sparsity": sparsity, "pattern": pattern, "allocate": "uniform_all"}
    with warnings.catch_warnings():  # one present input is few, as it says
        warnings.simplefilter("ignore", sw.SparsityWarning)
        sparse = sw.attach(model, optimizer, method=method, steps=steps, **settings)

    def step(pull):
        optimizer.zero_grad()
        model(torch.tensor([pull])).sum().backward()
        optimizer.step()
        return model[0].weight.detach()[0].tolist()

    return step, sparse.layers[0]


def near(*values):
    return pytest.approx(list(values), abs=1e-6)


class Reference:
    """The same network in plain autograd: `form(weight, index)` gives what it computes with."""

    def __init__(self, form, learned=(), price=None, rate=0.1, momentum=0.0):
        self.model, self.form, self.price = small_model(), form, price
        (self.optimizer,) = OPTIMIZERS["SGD-momentum"](self.model)
        self.learned = [tensor.clone().requires_grad_() for tensor in learned]
        self.stepper = (
            torch.optim.SGD(self.learned, rate, momentum=momentum) if self.learned else None
        )

    def step(self, number):
        first, second = self.model[0], self.model[2]
        x, y = batch(number)
        hidden = F.linear(x, self.form(self, first.weight, 0), first.bias).relu()
        out = F.linear(hidden, self.form(self, second.weight, 1), second.bias)
        loss = ((out - y) ** 2).mean()
        if self.price is not None:
            loss = loss + self.price(self)
        for optimizer in (self.optimizer, self.stepper):
            if optimizer is not None:
                optimizer.zero_grad()
        loss.backward()
        for optimizer in (self.optimizer, self.stepper):
            if optimizer is not None:
                optimizer.step()

    def weights(self):
        return [self.model[0].weight, self.model[2].weight]


def agree(sparse, reference, name=None):
    """Latent weights, and what else is learned: float sums in another order differ in last bits."""
    for index, layer in enumerate(sparse.layers):
        expected = reference.weights()[index]
        torch.testing.assert_close(layer.memory["latent"], expected.detach(), rtol=1e-4, atol=1e-6)
        if name:
            learned = reference.learned[index].detach()
            torch.testing.assert_close(
                layer.memory[name], learned.view_as(layer.memory[name]), rtol=1e-4, atol=1e-6
            )


def best(scores, keep):
    """Bool, the `keep` largest."""
    mask = torch.zeros(scores.numel(), dtype=torch.bool)
    mask[scores.detach().reshape(-1).argsort(descending=True, stable=True)[:keep]] = True
    return mask.view_as(scores)
