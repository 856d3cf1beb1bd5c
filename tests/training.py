"""A small model and one step of training, for the tests of methods and of the Sparsifier."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import sparsewright as sw


def small_model(seed: int = 0, bias: bool = True) -> nn.Sequential:
    """32-64-32, which every pattern's example divides."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(32, 64, bias=bias), nn.ReLU(), nn.Linear(64, 32, bias=bias))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1000 + step)
    x = torch.randn(16, 32, generator=generator)
    return x, torch.randn(16, 32, generator=generator)


def loss_of(model: nn.Module, step: int) -> Tensor:
    x, y = batch(step)
    return ((model(x) - y) ** 2).mean()


def train_step(model: nn.Module, optimizers: Sequence[Optimizer], step: int) -> None:
    """One ordinary step; with a closure, as LBFGS demands it, for one optimizer."""

    def closure() -> Tensor:
        for optimizer in optimizers:
            optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    if isinstance(optimizers[0], torch.optim.LBFGS):
        optimizers[0].step(closure)
        return
    closure()
    for optimizer in optimizers:
        optimizer.step()


def muon_and_sgd(model: nn.Module) -> list[Optimizer]:
    """Muon takes matrices only: biases go to SGD."""
    matrices = [p for p in model.parameters() if p.dim() == 2]
    others = [p for p in model.parameters() if p.dim() != 2]
    return [torch.optim.Muon(matrices, lr=0.02), torch.optim.SGD(others, lr=0.02)]


OPTIMIZERS: dict[str, Callable[[nn.Module], list[Optimizer]]] = {
    "SGD": lambda m: [torch.optim.SGD(m.parameters(), 0.05, weight_decay=1e-2)],
    "SGD-momentum": lambda m: [
        torch.optim.SGD(m.parameters(), 0.05, momentum=0.9, weight_decay=1e-2, nesterov=True)
    ],
    "Adam-fused": lambda m: [torch.optim.Adam(m.parameters(), 1e-2, fused=True)],
    "Adam-amsgrad": lambda m: [torch.optim.Adam(m.parameters(), 1e-2, amsgrad=True)],
    "Muon": muon_and_sgd,
    "LBFGS": lambda m: [
        # three of its iterations a step: 20 without a line search diverge on changing batches
        torch.optim.LBFGS(m.parameters(), lr=1e-2, max_iter=3)
    ],
} | {
    name: (lambda m, name=name: [getattr(torch.optim, name)(m.parameters(), lr=1e-2)])
    for name in (
        "ASGD",
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
    )
}
"""Every optimizer of torch.optim; SparseAdam takes sparse gradients only (see test_sparsifier)."""


def assert_masked(sparse: sw.Sparsifier) -> None:
    """Absent weights are exactly zero, and presence counts are those of the tables."""
    for layer in sparse.layers:
        assert torch.isfinite(layer.weight).all(), layer.name
        assert not layer.weight[layer.absent].any(), layer.name
        assert int(layer.mask.sum()) == layer.present, layer.name


def through_a_file(state: Any) -> Any:
    """A state as it comes back from a checkpoint file, nothing unpickled."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def close(a: Tensor, b: Tensor, summands: int) -> bool:
    """As near as float32 sums of so many terms in another order are."""
    if a.shape != b.shape or not b.numel():
        return a.shape == b.shape
    scale = max(1.0, float(b.abs().max()))
    return float((a - b).abs().max()) <= 2**-23 * summands * scale
