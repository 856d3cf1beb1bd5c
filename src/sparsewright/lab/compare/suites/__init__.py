"""Suites: a task, a network and a way of training that all recipes of a comparison share. Found by
folder.

Learning rates are those that served the dense network best, on examples held out of training:
`sparsewright compare --suite S --tune` found them, and wrote them to tuned.json beside this file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn

from ....errors import ConfigError
from ....registry import Table
from ...config import TrainConfig
from ...data import Pair

TUNED = Path(__file__).with_name("tuned.json")
HELD_OUT = 6  # one in so many training examples judges learning rates


class Problem(Protocol):
    """A suite's data in memory, and its networks."""

    @property
    def steps_per_epoch(self) -> int: ...

    @property
    def example(self) -> Tensor:
        """An input for the network, a batch of one."""

    def model(self, scale: float = 1.0) -> nn.Module:
        """A fresh network, its hidden widths times `scale`."""

    def batches(self, seed: int, epoch: int) -> Iterator[Pair]:
        """(inputs, targets) of one epoch, in an order that seed and epoch alone decide."""

    def evaluate(self, model: nn.Module) -> tuple[float, float]:
        """(mean loss, the suite's measure) on what is tested with."""

    def held_out(self) -> Problem:
        """The same, tested with a part of the training examples that is then not trained on."""


@dataclass(frozen=True)
class Suite:
    """What is compared on.

    config: how all recipes train (data, model, optimizer, batch, epochs, learning rate). widths,
    hidden: the network's widths as text with places for the hidden ones, which a small dense
    network scales. measure: what is compared; higher: whether more of it is better. unit: what it
    is given in, and factor: what it is multiplied by for people. sparsities, seeds: unless asked.
    """

    about: str
    config: TrainConfig
    widths: str
    hidden: tuple[int, ...]
    problem: Callable[[Suite], Problem]
    measure: str = "accuracy"
    unit: str = "%"
    factor: float = 100.0
    higher: bool = True
    sparsities: tuple[float, ...] = (0.8, 0.9, 0.95, 0.98)
    seeds: tuple[int, ...] = (0, 1, 2)
    grid: tuple[float, ...] = (0.01, 0.02, 0.05, 0.1, 0.2)

    def scaled(self, scale: float) -> str:
        """The widths of a network whose hidden layers are so much wider, at least 1 each."""
        return self.widths.format(*(max(1, round(scale * width)) for width in self.hidden))


SUITES: Table[Suite] = Table("suite", __name__)


def tuned(name: str, default: float) -> float:
    """The learning rate that a suite's grid chose; the default where none was measured yet."""
    known = tuned_grids()
    return float(known[name]["lr"]) if name in known else default


def tuned_grids(path: Path = TUNED) -> dict[str, Any]:
    """What `--tune` wrote down of every suite: its rate, and what every rate of the grid gave."""
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


def register(name: str, suite: Suite) -> None:
    """Put a suite into the table, with its tuned learning rate."""
    config = replace(suite.config, lr=tuned(name, suite.config.lr), widths=suite.scaled(1.0))
    SUITES.register(name)(replace(suite, config=config))


def check_sparsities(values: Sequence[float]) -> None:
    """ConfigError unless each is in (0, 1)."""
    for value in values:
        if not 0.0 < value < 1.0:
            raise ConfigError(f"a sparsity to compare at must be between 0 and 1; got {value}")
