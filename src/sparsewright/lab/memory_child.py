"""A process that trains one network one way, and says how much memory that took.

`python -m sparsewright.lab.memory_child` reads its task as one JSON object of Asked's fields from
standard input and writes Found's as one JSON object to standard output.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F

from ..attach import attach
from ..core import Method
from ..errors import StateError
from ..freed import give_back
from ..methods.rigl import RigL
from ..methods.static import Static
from ..nn import PackedLinear
from ..registry import Table
from .train_ways import adamw

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")
STEPS = 3
WARM = ((64, 128, 10), 4)
"""Widths and batch of the network that is trained first, so that what libraries fetch at their
first use belongs to no way."""


@dataclass(frozen=True)
class Asked:
    """way: of WAYS. widths: of the layers, inputs first. sparsity: of each. threads: torch's."""

    way: str
    widths: tuple[int, ...]
    sparsity: float
    batch: int
    threads: int


@dataclass(frozen=True)
class Found:
    """Bytes above those before the network was there: most while it was built, most while it was
    trained, and at the end, with gradients. Between the three the allocator gives back what it
    kept for later; inside each it does as it likes. nnz: weights present at the end."""

    building: int
    training: int
    held: int
    nnz: int


Make = Callable[[tuple[int, ...], float], tuple[nn.Module, Method | None]]
"""(widths, sparsity) -> the network, and what keeps it sparse, if anything does."""
WAYS: Table[Make] = Table("way of memory")


@WAYS.register("dense")
def _dense(widths: tuple[int, ...], sparsity: float) -> tuple[nn.Module, None]:
    return mlp([nn.Linear(a, b) for a, b in pairwise(widths)]), None


@WAYS.register("masked static")
def _masked_static(widths: tuple[int, ...], sparsity: float) -> tuple[nn.Module, Method]:
    return _dense(widths, sparsity)[0], Static()


@WAYS.register("masked RigL")
def _masked_rigl(widths: tuple[int, ...], sparsity: float) -> tuple[nn.Module, Method]:
    return _dense(widths, sparsity)[0], _rigl()


@WAYS.register("packed static")
def _packed_static(widths: tuple[int, ...], sparsity: float) -> tuple[nn.Module, Method]:
    layers = [PackedLinear(a, b, sparsity=sparsity) for a, b in pairwise(widths)]
    return mlp(layers), Static()


@WAYS.register("packed RigL")
def _packed_rigl(widths: tuple[int, ...], sparsity: float) -> tuple[nn.Module, Method]:
    return _packed_static(widths, sparsity)[0], _rigl()


def _rigl() -> Method:
    """An update at the middle one of STEPS steps."""
    return RigL(every=STEPS, start=STEPS // 2, end=STEPS)


def mlp(layers: Sequence[nn.Module]) -> nn.Module:
    """The layers with ReLU between them.

    >>> mlp([nn.Linear(4, 2), nn.Linear(2, 1)])[1]
    ReLU()
    """
    steps: list[nn.Module] = []
    for layer in layers:
        steps += [layer, nn.ReLU()]
    return nn.Sequential(*steps[:-1])


def measure(asked: Asked) -> Found:
    """Train a small network of the way, note the memory, then train the one that is asked for."""
    torch.set_num_threads(asked.threads)
    widths, batch = WARM
    _train(Asked(asked.way, widths, min(asked.sparsity, 0.5), batch, asked.threads))
    give_back()
    before = resident("VmRSS")
    reset_peak()
    building, nnz, _alive = _train(asked)
    training = resident("VmHWM")
    give_back()
    return Found(building - before, training - before, resident("VmRSS") - before, nnz)


def _train(asked: Asked) -> tuple[int, int, object]:
    """The peak while it was built, the weights present, and all that was made."""
    torch.manual_seed(0)
    model, method = WAYS[asked.way](asked.widths, asked.sparsity)
    optimizer = adamw(model)
    sparse = None
    if method is not None:
        sparse = attach(
            model, optimizer, method=method, sparsity=asked.sparsity, allocate="uniform_all"
        )
    building = resident("VmHWM")
    give_back()  # what building has freed is no need of training's
    reset_peak()
    x = torch.randn(asked.batch, asked.widths[0])
    y = torch.randint(asked.widths[-1], (asked.batch,))
    for _ in range(STEPS):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    present = [int(p.count_nonzero()) for p in model.parameters()] if sparse is None else []
    nnz = sum(layer.present for layer in sparse.layers) if sparse is not None else sum(present)
    return building, nnz, (model, optimizer, sparse)


def resident(what: str) -> int:
    """Bytes of this process in memory now ("VmRSS"), or most since `reset_peak` ("VmHWM")."""
    if not STATUS.is_file():
        raise StateError(f"memory is read from {STATUS}, which only Linux has")
    found = re.search(rf"^{what}:\s*(\d+) kB$", STATUS.read_text(), re.MULTILINE)
    if found is None:
        raise StateError(f"{STATUS} does not say {what}")
    return 1024 * int(found[1])


def reset_peak() -> None:
    """Let the peak begin anew; StateError where the system does not allow it."""
    try:
        CLEAR.write_text("5")
    except OSError as error:
        raise StateError(f"the peak of memory cannot be reset by {CLEAR}: {error}") from None


def main() -> None:
    asked = json.load(sys.stdin)
    found = measure(Asked(**{**asked, "widths": tuple(asked["widths"])}))
    json.dump(asdict(found), sys.stdout)


if __name__ == "__main__":
    main()
