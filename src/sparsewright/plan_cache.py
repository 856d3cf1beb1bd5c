"""Measured choices on disk: a layer that was timed on this machine is not timed again.

One JSON file for each layer's circumstances, named by their digest, in the folder `plans` of
$SPARSEWRIGHT_CACHE, else in sparsewright/plans under $XDG_CACHE_HOME or ~/.cache. What is in a
file only chooses among kernels; each is checked on the layer all the same.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import astuple
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import SparsityWarning
from .files import write_text
from .kernels import Choice, Timing, library
from .kernels.choose import kernels_of
from .measure.environment import cpu_name
from .nn import Task
from .plan import LayerPlan, PieceTiming, pattern_of
from .traced import Trace
from .weights import Weight

FORMAT = 1
T = TypeVar("T")
BUCKETS = 100
"""Sparsities are told apart to this part: two weights in one bucket share their measurements."""

Record = tuple[tuple[Timing, ...], tuple[tuple[str, str], ...]]
"""Timings, the fastest first, and refusals, as `Choice` has them."""


def folder() -> Path:
    """Where the files are.

    >>> folder().name
    'plans'
    """
    own = os.environ.get("SPARSEWRIGHT_CACHE")
    if own:
        return Path(own) / "plans"
    general = os.environ.get("XDG_CACHE_HOME")
    return (Path(general) if general else Path.home() / ".cache") / "sparsewright" / "plans"


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
    weights: Sequence[Weight],
    inputs: Sequence[Tensor],
    kernels: Sequence[str] | None,
    values: str,
) -> dict[str, Any]:
    """All that the times of a whole model depend on."""
    graph = "\n".join(f"{n.name} {n.target} {n.args} {n.kwargs}" for n in trace.graph.nodes)
    zeros = [[w.name, list(w.parameter.shape), _bucket(_sparsity(w.parameter))] for w in weights]
    patterns = [pattern_of(w.parameter.detach()) for w in weights]
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
        "kernels": _library_digest(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
    }


def _bucket(sparsity: float) -> int:
    """The sparsity, as told apart."""
    return round(BUCKETS * sparsity)


def _sparsity(weight: Tensor) -> float:
    return 1 - int(torch.count_nonzero(weight)) / max(1, weight.numel())


@functools.cache
def _library_digest() -> str:
    """The version of the compiled kernels: another build may be faster or slower."""
    path = library.LIBRARY.path
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()[:16] if path else "none"


def _file(key: dict[str, Any]) -> Path:
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
    return folder() / f"{digest[:32]}.json"


def read(key: dict[str, Any], seconds: float) -> Record | None:
    """What was measured in these circumstances, in at least as many seconds; None if nothing was.

    A file that holds something else is not used: a SparsityWarning names it, and the next
    measurement replaces it.
    """
    return _read(key, lambda entry: _record(entry, seconds))


def _record(entry: Any, seconds: float) -> Record | None:
    timings = tuple(_timing(t) for t in entry["timings"])
    refusals = tuple((_text(name), _text(reason)) for name, reason in entry["refusals"])
    if not timings or not _number(entry["seconds"]) >= 0:
        raise ValueError("it holds no timings")
    return (timings, refusals) if entry["seconds"] >= seconds else None


def read_pieces(key: dict[str, Any], seconds: float) -> tuple[PieceTiming, ...] | None:
    """What `write_pieces` kept in these circumstances, or None; broken files as with `read`."""
    return _read(key, lambda entry: _pieces(entry, seconds))


def _pieces(entry: Any, seconds: float) -> tuple[PieceTiming, ...] | None:
    timings = tuple(PieceTiming.from_list(t) for t in entry["pieces"])
    if not timings or not _number(entry["seconds"]) >= 0:
        raise ValueError("it holds no timings")
    return timings if entry["seconds"] >= seconds else None


def _read(key: dict[str, Any], parse: Callable[[Any], T | None]) -> T | None:
    """What `parse` makes of a file; None with a warning where that is broken."""
    path = _file(key)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        _ignored(path, error)
        return None
    try:
        entry = json.loads(text)
        if entry["key"] != key:
            raise ValueError("it was measured in other circumstances")
        return parse(entry)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        _ignored(path, error)
        return None


def _ignored(path: Path, error: Exception) -> None:
    warnings.warn(
        f"the cached plan {path} is not used, and measured anew: {type(error).__name__}: {error}",
        SparsityWarning,
        stacklevel=2,
    )


def write(key: dict[str, Any], seconds: float, choice: Choice) -> None:
    """Keep what was measured; where the folder cannot be written a SparsityWarning says so."""
    entry = {
        "key": key,
        "seconds": seconds,
        "timings": [[t.kernel, t.median, t.low, t.high, t.rounds, t.error] for t in choice.timings],
        "refusals": [list(refusal) for refusal in choice.refusals],
    }
    _write(key, entry)


def write_pieces(key: dict[str, Any], seconds: float, timings: Sequence[PieceTiming]) -> None:
    """Keep the times of a batch whole and in pieces, whose layers were timed for so many seconds
    each; a SparsityWarning as with `write`."""
    _write(key, {"key": key, "seconds": seconds, "pieces": [list(astuple(t)) for t in timings]})


def _write(key: dict[str, Any], entry: dict[str, Any]) -> None:
    path = _file(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(entry, indent=1) + "\n")
    except OSError as error:
        warnings.warn(
            f"measured plans are not kept: {path.parent} cannot be written ({error}); "
            "SPARSEWRIGHT_CACHE names another folder, sw.deploy(..., cache=False) asks for none",
            SparsityWarning,
            stacklevel=2,
        )


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
