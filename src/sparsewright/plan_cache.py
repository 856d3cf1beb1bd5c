"""Measured choices on disk: a layer that was timed on this machine is not timed again.

One file for each layer's circumstances (disk_cache.py). What is in a file only chooses among
kernels; each is checked on the layer all the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, astuple
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import disk_cache, library
from .as_code import Together
from .disk_cache import PLANS
from .kernels import Choice, Timing
from .kernels.choose import kernels_of
from .measure.environment import cpu_name
from .nn import Task
from .plan import LayerPlan, PieceTiming
from .traced import Trace

FORMAT = 1
BUCKETS = 100
"""Sparsities are told apart to this part: two weights in one bucket share their measurements."""

Record = tuple[tuple[Timing, ...], tuple[tuple[str, str], ...]]
"""Timings, the fastest first, and refusals, as `Choice` has them."""


def circumstances(
    task: Task, row: LayerPlan, kernels: list[str] | None, values: str
) -> dict[str, Any]:
    """All that a layer's timings depend on, as values that JSON takes. row: of its weight."""
    return {
        **_machine(),
        "operation": str(task.operation),
        "weight": list(task.weight.shape),
        "pattern": row.pattern,
        "values": values,
        "sparsity": _bucket(row.sparsity),
        "bias": task.bias is not None,
        "x": list(task.x.shape),
        "contiguous": task.x.is_contiguous(),
        "candidates": sorted(kernels_of(task.operation) if kernels is None else kernels),
    }


def of_model(
    trace: Trace,
    rows: Sequence[LayerPlan],
    inputs: Sequence[Tensor],
    kernels: Sequence[str] | None,
    values: str,
) -> dict[str, Any]:
    """All that the times of a whole model depend on. rows: of its weights as they are."""
    graph = "\n".join(f"{n.name} {n.target} {n.args} {n.kwargs}" for n in trace.graph.nodes)
    zeros = [[row.layer, list(row.shape), _bucket(row.sparsity)] for row in rows]
    patterns = [row.pattern for row in rows]
    return {
        **_machine(),
        "graph": hashlib.sha256(graph.encode()).hexdigest(),
        "weights": hashlib.sha256(json.dumps([zeros, patterns]).encode()).hexdigest(),
        "inputs": [list(x.shape) for x in inputs],
        "candidates": None if kernels is None else sorted(kernels),
        "values": values,
    }


def _machine() -> dict[str, Any]:
    return {
        "format": FORMAT,
        "cpu": cpu_name(),
        "isa": library.best_isa(),
        "code": library.why_no_code() is None,
        "kernels": _library_digest(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _bucket(sparsity: float) -> int:
    """The sparsity, as told apart."""
    return round(BUCKETS * sparsity)


@functools.cache
def _library_digest() -> str:
    """The version of the compiled kernels: another build may be faster or slower."""
    path = library.LIBRARY.path
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else "none"


def read(key: dict[str, Any], seconds: float) -> Record | None:
    """What was measured in these circumstances, in at least as many seconds; None if nothing was.

    A file that holds something else is not used: a SparsityWarning names it, and the next
    measurement replaces it.
    """
    return disk_cache.read(PLANS, key, lambda entry: _record(entry, seconds))


def _record(entry: Any, seconds: float) -> Record | None:
    timings = tuple(_timing(t) for t in entry["timings"])
    refusals = tuple((_text(name), _text(reason)) for name, reason in entry["refusals"])
    if not timings or not _number(entry["seconds"]) >= 0:
        raise ValueError("it holds no timings")
    return (timings, refusals) if entry["seconds"] >= seconds else None


def read_pieces(key: dict[str, Any], seconds: float) -> tuple[PieceTiming, ...] | None:
    """What `write_pieces` kept in these circumstances, or None; broken files as with `read`."""
    return disk_cache.read(PLANS, key, lambda entry: _pieces(entry, seconds))


def _pieces(entry: Any, seconds: float) -> tuple[PieceTiming, ...] | None:
    timings = tuple(PieceTiming.from_list(t) for t in entry["pieces"])
    if not timings or not _number(entry["seconds"]) >= 0:
        raise ValueError("it holds no timings")
    return timings if entry["seconds"] >= seconds else None


def read_together(key: dict[str, Any], seconds: float) -> Together | None:
    """What `write_together` kept in these circumstances, or None; broken files as with `read`."""
    return disk_cache.read(PLANS, key, lambda entry: _together(entry, seconds))


def _together(entry: Any, seconds: float) -> Together | None:
    found = Together(_number(entry["code_ms"]), _number(entry["loops_ms"]))
    return found if _number(entry["seconds"]) >= seconds else None


def write(key: dict[str, Any], seconds: float, choice: Choice) -> None:
    """Keep what was measured; where the folder cannot be written a SparsityWarning says so."""
    entry = {
        "seconds": seconds,
        "timings": [[t.kernel, t.median, t.low, t.high, t.rounds, t.error] for t in choice.timings],
        "refusals": [list(refusal) for refusal in choice.refusals],
    }
    disk_cache.write(PLANS, key, entry)


def write_pieces(key: dict[str, Any], seconds: float, timings: Sequence[PieceTiming]) -> None:
    """Keep the times of a batch whole and in pieces, whose layers were timed for so many seconds
    each; a SparsityWarning as with `write`."""
    rows = [list(astuple(t)) for t in timings]
    disk_cache.write(PLANS, key, {"seconds": seconds, "pieces": rows})


def write_together(key: dict[str, Any], seconds: float, found: Together) -> None:
    """Keep the times of a model with its layers as code and by loops; a SparsityWarning as with
    `write`."""
    disk_cache.write(PLANS, key, {"seconds": seconds, **asdict(found)})


def _timing(row: Any) -> Timing:
    kernel, median, low, high, rounds, error = row
    if type(rounds) is not int:
        raise TypeError("rounds are whole numbers")
    times = _number(median), _number(low), _number(high)
    return Timing(_text(kernel), *times, rounds, _number(error))


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"needs a text; got {type(value).__name__}")
    return value


def _number(value: Any) -> float:
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"needs a finite number; got {str(value)[:40]}")
    return float(value)
