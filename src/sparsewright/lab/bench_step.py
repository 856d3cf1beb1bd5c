"""One cell of `bench train`: every way of training a task checked, then whole steps timed in turn.

A way that cannot serve, or whose loss or gradients are wrong, is a row that says so.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..measure.roofline import Roofline
from ..measure.timing import Timing, interleave
from .bench_cell import HOPELESS, ROUNDS, Row
from .train_ways import TRAIN_WAYS, Task, Trainer

LOSS_TOLERANCE = 1e-4
"""Of the loss in float64: sums in float32, in any order, through all layers."""
TOLERANCE = 1e-2
"""Of the norm of each parameter's gradient in float64. Where a neuron's input is within rounding of
0, two right ways may disagree whether its ReLU is open, and then one example's share of its
gradient is there or not: some 1e-3 of the norm in a million of such inputs. That kernels are right
to the last bits is for the tests; this sees that a way trains the same network."""
NUMBERS = 7
"""Floats that AdamW moves for each trained number: it reads weight, gradient and two moments, and
writes three of them."""
UPDATE = " (update)"


def measure_step(
    task: Task,
    names: list[str],
    roofline: Roofline,
    *,
    seconds: float = 0.0,
    rounds: int = ROUNDS,
) -> dict[str, Any]:
    """What a step costs at least, and a row for every way by these names, fastest first.

    seconds: of timing, at least; `rounds` are run in any case.
    """
    expected = Expected(task)
    ready: dict[str, Trainer] = {}
    rows: dict[str, Row] = {}
    for name in names:
        way = TRAIN_WAYS[name]
        row: Row = {"name": name, "side": way.side}
        rows[name] = row
        try:
            made = way.build(task)
            if isinstance(made, str):
                row["refused"] = made
                continue
            wrong, row["error"] = expected.compare(made)
        except Exception as broken:  # another library's: one of them must not end the run
            row["failed"] = f"{type(broken).__name__}: {(str(broken).splitlines() or [''])[0]}"
            continue
        if wrong is not None:
            row["failed"] = wrong
            continue
        ready[name] = made
        row.update({"note": made.note} if made.note else {})
    times = _times(ready, seconds, rounds)
    flop, size = step_work(task)
    floor = flop / roofline.flops + size / roofline.bandwidth(size)
    for name, made in ready.items():
        rows[name].update(_figures(made, times[name], times.get(name + UPDATE)))
        median = rows[name]["median_ms"] / 1e3
        rows[name].update({"of_floor": floor / median, "per_second": len(task.x) / median})
    found = sorted(rows.values(), key=lambda row: row.get("median_ms", math.inf))
    return {
        "threads": torch.get_num_threads(),
        "batch": len(task.x),
        "tolerance": TOLERANCE,
        "bytes": size,
        "flop": flop,
        "floor_ms": 1e3 * floor,
        "rows": found,
    }


def _times(ready: Mapping[str, Trainer], seconds: float, rounds: int) -> dict[str, Timing]:
    calls = {name: made.step for name, made in ready.items()}
    updates = {name + UPDATE: m.update.step for name, m in ready.items() if m.update is not None}
    return interleave({**calls, **updates}, seconds=seconds, min_rounds=rounds, hopeless=HOPELESS)


def _figures(made: Trainer, plain: Timing, update: Timing | None) -> Row:
    """Milliseconds of a step: the mean of a period where one of its steps moves places."""
    share = 1 / made.every
    row: Row = {"rounds": plain.rounds}
    for key in ("median", "low", "high"):
        time = getattr(plain, key)
        if update is not None:
            time = (1 - share) * time + share * getattr(update, key)
        row[f"{key}_ms"] = 1e3 * time
    if update is not None:
        row["plain_ms"], row["update_ms"] = 1e3 * plain.median, 1e3 * update.median
        row["note"] = (
            f"{row['plain_ms']:.2f} ms, and {row['update_ms']:.2f} ms at one of {made.every} steps"
        )
    return row


class Expected:
    """Loss and gradients of the masked dense model, in float64, on a task's batch."""

    def __init__(self, task: Task):
        self.masks = task.masks
        model = copy.deepcopy(task.model).double()
        loss = F.cross_entropy(model(task.x.double()), task.y)
        loss.backward()
        self.loss = loss.item()
        self.gradients = {
            name: _present(parameter, task.masks.get(name.removesuffix(".weight")))
            for name, parameter in model.named_parameters()
        }

    def compare(self, made: Trainer) -> tuple[str | None, float]:
        """Why a way is wrong, or None; and the largest of its errors that TOLERANCE bounds.

        Gradients of absent weights are nobody's concern: the dense ways have them.
        """
        loss = made.backward().item()
        off = abs(loss - self.loss) / max(abs(self.loss), 1e-30)
        own = dict(made.model.named_parameters())
        worst, where = 0.0, ""
        for name, wanted in self.gradients.items():
            layer = name.removesuffix(".weight")
            parameter = made.weights[layer] if layer in made.weights else own[name]
            got = _present(parameter, self.masks.get(layer))
            error = _off(got, wanted)
            if not error <= worst:
                worst, where = error, name
        if not off <= LOSS_TOLERANCE:
            return f"wrong loss: {loss:.6g}, where {self.loss:.6g} is expected", worst
        if not worst <= TOLERANCE:
            return f"wrong gradient of {where}: off by {worst:.3g} of its norm", worst
        return None, worst


def _present(parameter: nn.Parameter, mask: Tensor | None) -> Tensor:
    """A parameter's gradient; of a masked one, row by row, what is present."""
    gradient = parameter.grad
    if gradient is None:
        raise ValueError("a parameter has no gradient")
    return gradient if mask is None or gradient.shape != mask.shape else gradient[mask]


def _off(got: Tensor, wanted: Tensor) -> float:
    if got.shape != wanted.shape:
        return math.inf
    return float((got.double() - wanted).norm() / wanted.norm().clamp(min=1e-30))


def step_work(task: Task) -> tuple[int, int]:
    """(flop, bytes) that no way of taking a step avoids.

    Flop: two for every present weight and place of its layer's output, forward, for the weights'
    gradient, and for the inputs' gradient where the inputs want one. Bytes: NUMBERS floats for
    every trained number, which the optimizer moves after the backward. What lies between layers
    counts for nothing: a floor may leave things out.

    >>> layer = nn.Linear(4, 2, bias=False)
    >>> masks = {"0": torch.ones(2, 4, dtype=torch.bool)}
    >>> step_work(Task(nn.Sequential(layer), masks, 0.0, torch.ones(3, 4), torch.zeros(3).long()))
    (96, 224)
    """
    flop, hooks = 0, []
    model = task.copy()
    trained = sum(p.numel() for p in model.parameters())

    def count(mask: Tensor) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            nonlocal flop
            passes = 3 if inputs[0].requires_grad else 2
            flop += 2 * passes * int(mask.sum()) * (output.numel() // mask.shape[0])

        return hook

    for name, mask in task.masks.items():
        trained -= int((~mask).sum())
        hooks.append(model.get_submodule(name).register_forward_hook(count(mask)))
    model(task.x)
    for handle in hooks:
        handle.remove()
    return flop, 4 * NUMBERS * trained
