"""A trial: one recipe at one sparsity with one seed, and the account of what it spent."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...attach import attach
from ...errors import StateError
from ...initialise import fan_in_values
from ...measure.flops import TrainingFlops, forward_flops
from ...sparsifier import Sparsifier
from ...weights import find_weights
from ..data import Pair
from ..recipe import OPTIMIZERS, decay_groups, learning_rate
from ..train import seed_all
from .suites import Problem, Suite

CALIBRATION = 1024  # training examples that measured scores and solvers look at


class Trial:
    """What a recipe works with; it hands back a trained network and leaves here what it spent.

    sparsity: asked for. options: what the recipe decided, to be written down. flops: of training
    and of what pruning measured. seconds, cpu_seconds: of the same. epochs_trained: summed over
    all networks that the recipe trained. alive: called at every step; it may end the run.
    """

    def __init__(
        self,
        suite: Suite,
        problem: Problem,
        *,
        sparsity: float,
        seed: int,
        epochs: int,
        alive: Callable[[], None] = lambda: None,
    ):
        self.suite, self.problem = suite, problem
        self.sparsity, self.seed, self.epochs = sparsity, seed, epochs
        self.config = replace(suite.config, epochs=epochs, seed=seed)
        self.steps = problem.steps_per_epoch * epochs
        self.options: dict[str, Any] = {}
        self.seconds = self.cpu_seconds = 0.0
        self.epochs_trained = 0
        self.sparse: Sparsifier | None = None
        self._alive = alive
        self._spent = 0.0
        self._flops: TrainingFlops | None = None

    # networks

    def model(self, scale: float = 1.0) -> nn.Module:
        """A fresh network; the seed decides its first values, of variance 2 / fan-in.

        That is what sparse networks get by their present inputs; a dense one has them all.
        """
        seed_all(self.seed)
        model = self.problem.model(scale)
        self.redraw(model, self.seed)
        self._count(model)
        return model

    @torch.no_grad()
    def redraw(self, model: nn.Module, seed: int) -> None:
        """Other first values for every weight that is summed over, by another seed."""
        generator = torch.Generator().manual_seed(seed)
        for weight in find_weights(model):
            if not weight.is_lookup:
                everything = torch.ones(weight.shape, dtype=torch.bool)
                weight.parameter.copy_(fan_in_values(everything, generator))

    def optimizer(self, model: nn.Module) -> torch.optim.Optimizer:
        """The suite's, new."""
        groups = decay_groups(model, self.config.weight_decay)
        return OPTIMIZERS[self.config.optimizer](groups, self.config)

    def attach(
        self, model: nn.Module, optimizer: torch.optim.Optimizer, **wishes: Any
    ) -> Sparsifier:
        """`sparsewright.attach` by the trial's seed, for `steps` of the run unless told else."""
        skip = [*self.config.skip, *wishes.pop("skip", ())]
        given = {"seed": self.seed, "steps": self.steps, "sparsity": self.sparsity, **wishes}
        return attach(model, optimizer, skip=sorted(set(skip)), **given)

    # what is spent

    @property
    def flops(self) -> TrainingFlops:
        assert self._flops is not None, "model() comes first"
        return self._flops

    @property
    def total_flops(self) -> float:
        """Of all networks that the recipe trained."""
        return self._spent + self.flops.total

    def _count(self, model: nn.Module) -> None:
        self._spent += self._flops.total if self._flops else 0.0
        self._flops = TrainingFlops(forward_flops(model, self.problem.example))

    @contextmanager
    def clock(self) -> Iterator[None]:
        """What runs inside takes time that counts."""
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - wall
            self.cpu_seconds += time.process_time() - cpu

    @contextmanager
    def pruning(self) -> Iterator[None]:
        """What runs inside counts, in time and in the FLOPs that it executes."""
        with self.clock(), self.flops.executed():
            yield

    def calibration(self) -> list[Pair]:
        """Batches of so many training examples."""
        count = math.ceil(CALIBRATION / self.config.batch)
        found = zip(range(count), self.problem.batches(self.seed, 0), strict=False)
        return [batch for _, batch in found]

    # training

    def fit(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        sparse: Sparsifier | None = None,
        *,
        begin: int = 0,
        end: int | None = None,
    ) -> None:
        """Train for the epochs from `begin` up to `end` of the one schedule of learning rates."""
        self.let_go()
        end = self.epochs if end is None else end
        each, flops = self.problem.steps_per_epoch, self.flops
        step = begin * each
        self.sparse = sparse
        model.train()
        with self.clock():
            for epoch in range(begin + 1, end + 1):
                total = torch.zeros(())
                for x, y in self.problem.batches(self.seed, epoch):
                    self._alive()
                    lr = learning_rate(self.config, step, each, self.steps)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    optimizer.zero_grad()
                    flops.step(len(x), sparse)
                    value = loss(model, x, y)
                    value.backward()
                    optimizer.step()
                    total += value.detach()
                    step += 1
                if not torch.isfinite(total):
                    raise StateError(f"the loss became {total.item()} in epoch {epoch}")
        self.epochs_trained += end - begin

    def let_go(self) -> None:
        """Detach what holds the masks of a network, which is not trained on."""
        if self.sparse is not None:
            self.sparse.detach()
        self.sparse = None


def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean cross-entropy in nats; outputs (..., classes), targets (...)."""
    return F.cross_entropy(model(x).flatten(0, -2), y.flatten())
