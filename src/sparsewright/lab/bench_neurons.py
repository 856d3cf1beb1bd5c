"""A network of ten million neurons, trained from scratch with places that move.

Two wide hidden layers of some ten weights to a neuron, which no dense storage would hold: Curci,
Mocanu and Pechenizkiy ("Truly sparse neural networks at scale", 2021) trained networks of this size
by SET without ever making a dense table, and so does this.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW

from ..attach import attach
from ..errors import ConfigError
from ..freed import give_back
from ..measure.timing import summarise
from ..methods.set import SET
from ..nn import PackedLinear
from .memory_child import mlp, reset_peak, resident

RATE = 2e-5
PART = 10  # one input in so many tells the classes apart
SHIFT = 0.5  # by which its mean differs, of a standard deviation of 1
ENDS = 5  # steps whose mean loss is the first and the last


@dataclass(frozen=True)
class Network:
    """inputs, hidden: neurons of the input and of the hidden layers. each: weights of a hidden
    neuron, on average. steps: of training; every `every`th moves weights (SET). ConfigError where
    a number makes no sense."""

    inputs: int = 65_536
    hidden: tuple[int, ...] = (5_000_000, 5_000_000)
    each: float = 10.0
    batch: int = 32
    steps: int = 20
    every: int = 10

    def __post_init__(self) -> None:
        widest = min(self.inputs, *self.hidden)
        if not 1 <= self.each < widest:
            raise ConfigError(
                f"a neuron must have 1 or more weights, and fewer than the {widest} neurons of the "
                f"narrowest layer; got {self.each:g}"
            )
        if self.steps < 2 * ENDS or self.batch < 2:
            raise ConfigError(
                f"needs {2 * ENDS} steps and a batch of 2, or more; got {self.steps} and "
                f"{self.batch}"
            )

    def build(self) -> nn.Module:
        """Packed hidden layers with ReLU, and a dense head of two classes."""
        layers: list[nn.Module] = []
        width = self.inputs
        for neurons in self.hidden:
            layers.append(PackedLinear(width, neurons, sparsity=1 - self.each / width))
            width = neurons
        return mlp([*layers, nn.Linear(width, 2)])


class Clouds:
    """Two Gaussian clouds whose means differ along a random part of the inputs."""

    def __init__(self, network: Network):
        self.network = network
        told = torch.randperm(network.inputs)[: math.ceil(network.inputs / PART)]
        self.direction = torch.zeros(network.inputs)
        self.direction[told] = SHIFT * (2.0 * torch.randint(2, (len(told),)) - 1.0)

    def batch(self) -> tuple[Tensor, Tensor]:
        y = torch.randint(2, (self.network.batch,))
        x = torch.randn(self.network.batch, self.network.inputs)
        return x.add_(torch.outer(2.0 * y - 1.0, self.direction)), y


def train(network: Network, echo: Any = print) -> dict[str, Any]:
    """Build and train it: counts, seconds, bytes of memory at the most, the loss on fresh batches.

    echo: is told how it goes. The steps of an update are timed apart.
    """
    torch.manual_seed(0)
    give_back()  # or what others freed would be taken again, and not be counted
    before = resident("VmRSS")
    reset_peak()
    start = time.perf_counter()
    model = network.build()
    optimizer = AdamW(_groups(model), fused=True)
    last = str(len(model) - 1)  # type: ignore[arg-type]
    sparse = attach(model, optimizer, method=SET(every=network.every), skip=[last])
    built = time.perf_counter() - start
    present = sum(layer.present for layer in sparse.layers)
    echo(f"built in {built:.0f} s: {present:,} present weights")
    clouds = Clouds(network)
    losses: list[float] = []
    plain: list[float] = []
    updates: list[float] = []
    for step in range(network.steps):
        x, y = clouds.batch()
        moves = len(sparse.changes)
        start = time.perf_counter()
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        taken = time.perf_counter() - start
        moved = len(sparse.changes) > moves
        (updates if moved else plain).append(taken)
        losses.append(loss.item())
        if step < ENDS or moved:
            word = ", weights moved" if moved else ""
            echo(f"step {step}: loss {losses[-1]:.4f}, {taken:.2f} s{word}")
    return {
        **asdict(network),
        "neurons": sum(network.hidden) + 2,
        "present": present,
        "dense": sum(layer.numel for layer in sparse.layers),
        "head": 2 * network.hidden[-1],
        "threads": torch.get_num_threads(),
        "build_s": built,
        "step_s": asdict(summarise(plain)),
        "update_s": asdict(summarise(updates)) if updates else None,
        "moved": sum(change.grown for change in sparse.changes),
        "peak_bytes": resident("VmHWM") - before,
        "first_loss": sum(losses[:ENDS]) / ENDS,
        "last_loss": sum(losses[-ENDS:]) / ENDS,
    }


def _groups(model: Any) -> list[dict[str, Any]]:
    """A neuron's output moves by rate times its inputs, so the head's, which has all neurons, is
    so much less: the sizes of updates do not depend on the width (Yang et al. 2021)."""
    head = model[-1]
    hidden = [p for module in model[:-1] for p in module.parameters()]
    rate = 1.0 / head.in_features
    return [{"params": hidden, "lr": RATE}, {"params": list(head.parameters()), "lr": rate}]


def lines(found: dict[str, Any]) -> list[str]:
    """What is printed, and stands on the page."""
    step, update = found["step_s"], found["update_s"]
    hidden = " -> ".join(f"{n:,}" for n in (found["inputs"], *found["hidden"], 2))
    moved = f", {update['median']:.2f} s where weights move" if update else ""
    return [
        f"{found['neurons']:,} neurons ({hidden}), {found['present']:,} present weights of "
        f"{found['dense']:.3g} in the hidden layers, {found['head']:,} in the dense head",
        f"batch {found['batch']}, {found['threads']} thread{'s' * (found['threads'] > 1)}: "
        f"{step['median']:.2f} s a step [{step['low']:.2f} - {step['high']:.2f}]{moved}; "
        f"{found['moved']:,} weights moved in {found['steps']} steps; built in "
        f"{found['build_s']:.0f} s",
        f"peak memory {found['peak_bytes'] / 2**30:.2f} GiB; loss {found['first_loss']:.4f} in the "
        f"first {ENDS} steps, {found['last_loss']:.4f} in the last",
    ]


def falls(found: dict[str, Any]) -> bool:
    """Whether the loss at the end is below that at the start."""
    return bool(found["last_loss"] < found["first_loss"])


def hidden_of(neurons: int, layers: int = 2) -> Sequence[int]:
    """
    >>> hidden_of(11)
    (6, 5)
    """
    return tuple(neurons // layers + (i < neurons % layers) for i in range(layers))
