"""`sparsewright bench train`: whole training steps of sparse models, by every way there is.

A step is zero_grad, forward, cross-entropy, backward and AdamW.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..layouts import FP32
from ..measure.roofline import Roofline
from ..prune import prune
from ..weights import find_weights
from .bench_cell import DENSE, OURS, best
from .bench_run import Settings, run_cells
from .bench_step import measure_step
from .bench_table import title
from .models import MODELS, build
from .train_ways import TRAIN_WAYS, Task

SHAPE, CLASSES = (3, 32, 32), 10
MLP = "mlp:3072-4096-4096-10"
DEFAULTS = {MLP: (0.9, 0.95, 0.99), "resnet20": (0.9,)}
"""Models, and their sparsities unless others are asked for."""
BATCH = 128
TARGETS = {0.9: 3.0, 0.95: 5.0, 0.99: 12.0}
"""Sparsity -> how many times faster than the best dense way a step of MLP is to be."""


@dataclass(frozen=True)
class TrainCell:
    """What is measured: a model of the lab on images of SHAPE, its sparsity, a batch.

    name: of the model, with its widths after a colon where they are not its own.
    """

    name: str
    sparsity: float
    batch: int
    pattern: str = "unstructured"
    values: str = FP32
    unit: str = "examples"

    def misfit(self) -> str | None:
        return None

    def task(self) -> Task:
        """The model, the same part of every layer absent at random, and a batch of noise."""
        torch.manual_seed(0)
        name, _, widths = self.name.partition(":")
        model = build(name, SHAPE, CLASSES, widths).train()
        prune(model, self.sparsity, score="random", allocate="uniform_all")
        weights = find_weights(model)
        with torch.no_grad():
            for weight in weights:  # as large together as the weights of the dense model
                weight.parameter.div_(math.sqrt(1 - self.sparsity))
        masks = {weight.name: weight.parameter.detach() != 0 for weight in weights}
        x, y = torch.randn(self.batch, *SHAPE), torch.randint(CLASSES, (self.batch,))
        return Task(model, masks, self.sparsity, x, y)


def train_cells(
    models: Sequence[str] | None = None,
    sparsities: Sequence[float] | None = None,
    batches: Sequence[int] | None = None,
) -> Iterator[TrainCell]:
    """The cells; UnknownNameError or ConfigError if a model is none of the lab's."""
    for model in models or DEFAULTS:
        name, _, widths = model.partition(":")
        with torch.device("meta"):
            MODELS[name]
            build(name, SHAPE, CLASSES, widths)
        for sparsity in sparsities or DEFAULTS.get(model, (0.9,)):
            for batch in batches or (BATCH,):
                yield TrainCell(model, sparsity, batch)


def run_train(cells: Iterable[TrainCell], settings: Settings, out: Path | None) -> Path | None:
    """Measure all cells, print them and whether targets are met, write a JSON file; its path."""
    names = list(settings.peers) if settings.peers is not None else TRAIN_WAYS.names()
    for name in names:
        TRAIN_WAYS[name]  # an unknown one is named before anything is measured

    def measure(cell: TrainCell, roof: Roofline) -> dict[str, Any]:
        return measure_step(
            cell.task(), names, roof, seconds=settings.seconds, rounds=settings.rounds
        )

    data, path = run_cells("train", cells, measure, settings, out)
    print("\n".join(target_lines(data["cells"])))
    return path


def target_lines(cells: Iterable[Mapping[str, Any]]) -> list[str]:
    """Whether each cell of MLP meets its target."""
    lines = []
    for cell in cells:
        target = TARGETS.get(cell["sparsity"]) if cell["workload"] == MLP else None
        dense, ours = (best(cell["rows"], side) for side in (DENSE, OURS))
        if target is not None and dense is not None and ours is not None:
            reached = dense["median_ms"] / ours["median_ms"]
            verdict = "met" if reached >= target else "missed"
            lines.append(
                f"target {verdict}: {title(cell)}: {reached:.2f}x the best dense way's speed "
                f"({dense['name']}), wanted {target:g}x"
            )
    return lines
