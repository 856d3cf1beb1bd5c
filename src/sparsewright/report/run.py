"""What a report knows of a run, as frozen dataclasses in the words of the run folder's files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Epoch:
    """One line of metrics.jsonl; accuracies in [0, 1], seconds of this epoch alone."""

    epoch: int
    step: int
    train_loss: float
    train_accuracy: float
    test_loss: float
    test_accuracy: float
    sparsity: float = 0.0
    lr: float | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class LayerMask:
    """One layer's mask after one epoch: counts are weights, fractions in [0, 1]."""

    present: int
    total: int
    sparsity: float
    dead_outputs: int
    dropped: int
    grown: int
    overlap_first: float
    ever: float


@dataclass(frozen=True)
class MaskEpoch:
    """One line of masks.jsonl."""

    epoch: int
    step: int
    layers: Mapping[str, LayerMask]
    input_counts: tuple[int, ...] = ()

    @property
    def total(self) -> int:
        return sum(layer.total for layer in self.layers.values())

    @property
    def present(self) -> int:
        return sum(layer.present for layer in self.layers.values())

    def count(self, name: str) -> int:
        """Sum of an integer field over the layers."""
        return sum(getattr(layer, name) for layer in self.layers.values())

    def mean(self, name: str) -> float:
        """Mean of a field over the layers, each weighted by its number of weights."""
        whole = sum(getattr(layer, name) * layer.total for layer in self.layers.values())
        return whole / max(1, self.total)


@dataclass(frozen=True)
class Row:
    """One sparse layer at the end of the run."""

    name: str
    shape: tuple[int, ...]
    pattern: str
    total: int
    present: int
    dead_outputs: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.present / max(1, self.total)


@dataclass(frozen=True)
class LeftDense:
    """A layer that stayed dense, and why."""

    name: str
    total: int
    reason: str


@dataclass(frozen=True)
class Ended:
    """summary.json: how the run ended. sparsity counts over the sparse layers alone."""

    rows: tuple[Row, ...]
    left_dense: tuple[LeftDense, ...]
    test_accuracy: float
    asked_sparsity: float | None
    seconds: float | None

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    @property
    def present(self) -> int:
        return sum(row.present for row in self.rows)

    @property
    def sparsity(self) -> float:
        return 1.0 - self.present / self.total if self.total else 0.0

    @property
    def sparsity_of_all(self) -> float:
        """Over all weights that could be pruned, the layers left dense included."""
        everything = self.total + sum(left.total for left in self.left_dense)
        return (self.total - self.present) / everything if everything else 0.0


SPARSE_WAY = "sparsewright"  # what deploy.json calls the deployed model among the ways


@dataclass(frozen=True)
class Timed:
    """A way or kernel and its time in milliseconds, or the reason why it refused."""

    name: str
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    refused: str | None = None
    error: float | None = None

    @property
    def dense(self) -> bool:
        """Whether this is a dense way, a baseline."""
        return self.name != SPARSE_WAY


@dataclass(frozen=True)
class LayerPlan:
    """Which kernel serves one layer; speedup is the best dense time over the chosen one."""

    layer: str
    shape: tuple[int, ...]
    sparsity: float
    pattern: str
    kernel: str
    layout: str
    bytes: int
    dense_bytes: int
    speedup: float | None
    candidates: tuple[Timed, ...]


@dataclass(frozen=True)
class Batch:
    """The whole model at one batch size beside every dense way."""

    size: int
    ways: tuple[Timed, ...]
    best_dense: str | None
    speedup: float | None
    max_error: float | None
    layers: tuple[LayerPlan, ...]

    def ratio(self, way: Timed) -> float | None:
        """The best dense way's time over this way's: above 1 is faster than the best dense."""
        best = next((w.median_ms for w in self.ways if w.name == self.best_dense), None)
        return best / way.median_ms if best and way.median_ms else None


@dataclass(frozen=True)
class Deployment:
    """deploy.json."""

    threads: int
    batches: tuple[Batch, ...]
    bytes: Mapping[str, int]
    outputs_equal: bool | None
    tolerance: float | None


@dataclass(frozen=True)
class StateBytes:
    """Bytes of training state; places are masks where storage is masked."""

    values: int
    gradients: int
    optimizer: int
    places: int

    @property
    def total(self) -> int:
        return self.values + self.gradients + self.optimizer + self.places


@dataclass(frozen=True)
class LayerCost:
    """What one layer costs in a step; dense: its bytes if no weight were absent."""

    name: str
    kind: str
    storage: str
    bytes: StateBytes
    dense: StateBytes
    forward_ms: float
    backward_ms: float


@dataclass(frozen=True)
class Cost:
    """cost.json: training state and median milliseconds of a step, by layer."""

    batch: int
    threads: int
    step_ms: float
    low_ms: float
    high_ms: float
    optimizer_ms: float
    other_ms: float
    layers: tuple[LayerCost, ...]

    def bytes(self, part: str) -> int:
        """Bytes of one part, or "total", over all layers."""
        return sum(getattr(layer.bytes, part) for layer in self.layers)

    @property
    def dense_bytes(self) -> int:
        return sum(layer.dense.total for layer in self.layers)

    @property
    def forward_ms(self) -> float:
        return sum(layer.forward_ms for layer in self.layers)

    @property
    def backward_ms(self) -> float:
        return sum(layer.backward_ms for layer in self.layers)


@dataclass(frozen=True)
class Run:
    """One run folder. `notes` says what is missing or was cut short, and how to get it."""

    path: Path
    name: str
    config: Mapping[str, Any]
    environment: Mapping[str, Any] = field(default_factory=dict)
    epochs: tuple[Epoch, ...] = ()
    masks: tuple[MaskEpoch, ...] = ()
    ended: Ended | None = None
    deployment: Deployment | None = None
    cost: Cost | None = None
    notes: tuple[str, ...] = ()

    @property
    def sparse(self) -> bool:
        """Whether any layer was made sparse."""
        return bool(self.masks) or bool(self.ended and self.ended.rows)

    @property
    def accuracy(self) -> float | None:
        """Final test accuracy in [0, 1], or None before the first epoch ended."""
        if self.ended is not None:
            return self.ended.test_accuracy
        return self.epochs[-1].test_accuracy if self.epochs else None

    @property
    def last_epoch(self) -> int:
        """Number of the last epoch that ended, counting from 1; 0 before it."""
        return self.epochs[-1].epoch if self.epochs else 0

    def same_task(self, other: Run) -> bool:
        """Whether both trained the same model on the same data."""
        keys = ("data", "model", "widths")
        return all(self.config.get(key) == other.config.get(key) for key in keys)
