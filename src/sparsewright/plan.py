"""The plan of a deployed model: which kernel serves which layer, by which times, and why."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .core import Shape
from .errors import ArtifactError
from .files import write_text
from .layouts import FP32
from .plan_text import print_plan
from .present import present_in


@dataclass(frozen=True)
class Candidate:
    """One kernel that could have served a layer: its times in ms and its error, or its refusal.

    error: the largest difference from the reference, as a part of the largest output.
    """

    kernel: str
    median_ms: float | None = None
    low_ms: float | None = None
    high_ms: float | None = None
    error: float | None = None
    refused: str | None = None

    def to_dict(self) -> dict[str, Any]:
        if self.refused is not None:
            return {"kernel": self.kernel, "refused": self.refused}
        return {
            "kernel": self.kernel,
            "median_ms": self.median_ms,
            "low_ms": self.low_ms,
            "high_ms": self.high_ms,
            "error": self.error,
        }

    @classmethod
    def from_dict(cls, entry: Any) -> Candidate:
        kernel = _text(entry, "kernel")
        if "refused" in entry:
            return cls(kernel, refused=_text(entry, "refused"))
        median, low, high = (_number(entry, key) for key in ("median_ms", "low_ms", "high_ms"))
        return cls(kernel, median, low, high, _number(entry, "error"))


@dataclass(frozen=True)
class LayerPlan:
    """What serves one layer.

    operation: what it computes, with a convolution's geometry. shape: the weight's. present:
    weights that are not zero. layout: "dense" or a packed one. bytes: as deployed, without the
    bias; dense_bytes: as float32. speedup: the best dense median by the chosen one, 1.0 where
    dense was chosen, None where nothing was timed. values: how the weight's are stored; those of
    the sparse candidates too, and errors are those of the rounded weight.
    """

    layer: str
    operation: str
    shape: Shape
    present: int
    sparsity: float
    pattern: str
    kernel: str
    layout: str
    bytes: int
    dense_bytes: int
    speedup: float | None
    candidates: tuple[Candidate, ...] = ()
    values: str = FP32

    @property
    def is_sparse(self) -> bool:
        return self.layout != "dense"

    def to_dict(self) -> dict[str, Any]:
        return {
            "layer": self.layer,
            "operation": self.operation,
            "shape": list(self.shape),
            "present": self.present,
            "sparsity": self.sparsity,
            "pattern": self.pattern,
            "kernel": self.kernel,
            "layout": self.layout,
            "values": self.values,
            "bytes": self.bytes,
            "dense_bytes": self.dense_bytes,
            "speedup": self.speedup,
            "candidates": [c.to_dict() for c in self.candidates],
        }

    @classmethod
    def from_dict(cls, entry: Any) -> LayerPlan:
        return cls(
            layer=_text(entry, "layer"),
            operation=_text(entry, "operation"),
            shape=tuple(_count(s) for s in _list(entry, "shape")),
            present=_count(entry["present"]),
            sparsity=_number(entry, "sparsity") or 0.0,
            pattern=_text(entry, "pattern"),
            kernel=_text(entry, "kernel"),
            layout=_text(entry, "layout"),
            bytes=_count(entry["bytes"]),
            dense_bytes=_count(entry["dense_bytes"]),
            speedup=_number(entry, "speedup"),
            candidates=tuple(Candidate.from_dict(c) for c in _list(entry, "candidates")),
            values=_text(entry, "values"),
        )


@dataclass(frozen=True)
class PieceTiming:
    """One batch in ms: median, least and most; `size` samples at a time, by kernels that were
    chosen for `planned` samples, and whether images lay side by side."""

    planned: int
    size: int
    median_ms: float
    low_ms: float
    high_ms: float
    side_by_side: bool = False

    @property
    def way(self) -> tuple[int, int, bool]:
        return self.planned, self.size, self.side_by_side

    @classmethod
    def from_list(cls, entry: Any) -> PieceTiming:
        if not isinstance(entry, list) or len(entry) not in (5, 6):
            raise TypeError("a timing of pieces is a list of five or six")
        planned, size, *times = entry[:5]
        median, low, high = (_number({"ms": t}, "ms") or 0.0 for t in times)
        return cls(_samples(planned), _samples(size), median, low, high, *map(_flag, entry[5:]))


@dataclass(frozen=True)
class Pieces:
    """How a batch is run: `size` samples at a time through the whole model, None for all at once.

    planned: samples that the layers' kernels were chosen for. timings: fastest first. why_whole:
    why the samples cannot be taken apart. side_by_side: whether a vector holds a place of `size`
    images, of batches that fill enough of it, or of patches of so many (beside.py).
    """

    size: int | None
    planned: int
    timings: tuple[PieceTiming, ...] = ()
    why_whole: str | None = None
    side_by_side: bool = False

    @classmethod
    def fastest(cls, timings: Sequence[PieceTiming], batch: int) -> Pieces:
        best = timings[0]
        cut = best.side_by_side or best.size < batch
        size = best.size if cut else None
        return cls(size, best.planned, tuple(timings), side_by_side=best.side_by_side)

    def to_dict(self) -> dict[str, Any]:
        timings = [list(astuple(t)) for t in self.timings]
        own = {"size": self.size, "planned": self.planned, "timings": timings}
        return {**own, "why_whole": self.why_whole, "side_by_side": self.side_by_side}

    @classmethod
    def from_dict(cls, entry: Any) -> Pieces:
        timings = tuple(PieceTiming.from_list(t) for t in _list(entry, "timings"))
        size = None if entry["size"] is None else _samples(entry["size"])
        why = None if entry["why_whole"] is None else _text(entry, "why_whole")
        beside = _flag(entry.get("side_by_side", False))
        return cls(size, _samples(entry["planned"]), timings, why, beside)


@dataclass(frozen=True)
class Plan:
    """Which kernel serves which layer at a number of threads and a batch; str() is a table.

    notes: what else was done to the model, or could not be. pieces: how many samples go through
    the model at a time, None for a batch of one.
    """

    threads: int
    batch: int
    layers: tuple[LayerPlan, ...]
    notes: tuple[str, ...] = ()
    pieces: Pieces | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes."""
        layers = [row.to_dict() for row in self.layers]
        notes = list(self.notes)
        own = {"threads": self.threads, "batch": self.batch, "layers": layers, "notes": notes}
        return {**own, "pieces": None if self.pieces is None else self.pieces.to_dict()}

    @classmethod
    def from_dict(cls, entry: Any) -> Plan:
        """The plan that `to_dict` wrote; KeyError, TypeError or ValueError if it is none."""
        layers = tuple(LayerPlan.from_dict(row) for row in _list(entry, "layers"))
        notes = _list(entry, "notes")
        if not all(isinstance(note, str) for note in notes):
            raise TypeError("a plan's notes must be texts")
        found = entry.get("pieces")
        pieces = None if found is None else Pieces.from_dict(found)
        return cls(_count(entry["threads"]), _count(entry["batch"]), layers, tuple(notes), pieces)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the plan as JSON, for `load` and for people."""
        write_text(Path(path), json.dumps(self.to_dict(), indent=1) + "\n")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Plan:
        """The plan that `save` wrote; ArtifactError if the file holds none.

        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "plan.json"
        >>> Plan(2, 1, ()).save(path)
        >>> Plan.load(path)
        Plan(threads=2, batch=1, layers=(), notes=(), pieces=None)
        """
        try:
            return cls.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise ArtifactError(f"{os.fspath(path)} holds no plan: {error}") from error

    def __str__(self) -> str:
        return print_plan(self)


def pattern_of(weight: Tensor) -> str:
    """The pattern that zeros show: "dense", "channel", "block:RxC", "N:M" or "unstructured".

    weight: (out, in, *kernel). Channel means that every output is whole or empty. N:M means that
    every M inputs in a row, M a power of two, hold exactly N present weights; the smallest such M
    is named. block:RxC means that every tile of R outputs by C inputs is whole or empty, with R 4,
    8 or 16 and C a power of two up to 16; of such the one with most rows, then with most columns,
    is named, also where N:M holds. In a convolution both hold at every place of the kernel.

    >>> import torch
    >>> pattern_of(torch.tensor([[1.0, 0, 0, 2], [0, 3, 0, 4]]))
    '1:2'
    >>> pattern_of(torch.tensor([[1.0, 0, 0], [1, 0, 1]]).repeat_interleave(4, dim=0))
    'block:4x1'
    >>> pattern_of(torch.tensor([[1.0, 0, 0, 2], [0, 3, 0, 4]])[:, :, None].expand(2, 4, 3))
    '1:2'
    """
    present = present_in(weight)
    if all(bool(part.all()) for part in (present.flatten()[:FIRST], present)):
        return "dense"
    if present.dim() < 2:
        return "unstructured"
    inputs = present.shape[1]
    present = present.flatten(2).transpose(1, 2).flatten(1) if present.dim() > 2 else present
    if all(map(_by_channel, (present[:FIRST], present))) and present.any():
        return "channel"
    rows = next((size for size in BLOCK_ROWS if _repeats(present, size)), None)
    if rows and present.any():
        strips = present[::rows].t()
        fit = [size for size in BLOCK_COLUMNS if inputs % size == 0]
        return f"block:{rows}x{next(size for size in fit if _repeats(strips, size))}"
    for size in (2, 4, 8, 16, 32, 64):
        if inputs and inputs % size == 0:
            parts = present.reshape(-1, size)
            n = int(parts[0].sum())
            if 0 < n < size and all(_hold(p, n) for p in (parts[:FIRST], parts)):
                return f"{n}:{size}"
    return "unstructured"


BLOCK_ROWS, BLOCK_COLUMNS = (16, 8, 4), (16, 8, 4, 2, 1)
FIRST = 64
"""Parts that are looked at before all are: most weights show there that they have no pattern."""


def _by_channel(present: Tensor) -> bool:
    """Whether every row is whole or empty."""
    return bool((present == present[:, :1]).all())


def _hold(parts: Tensor, n: int) -> bool:
    return bool((parts.sum(dim=1) == n).all())


def _repeats(present: Tensor, size: int) -> bool:
    """Whether the rows come in groups of this size, alike within each."""
    if len(present) % size:
        return False
    groups = present.reshape(len(present) // size, size, -1)
    return all(bool((part == part[:, :1]).all()) for part in (groups[:FIRST, :, :FIRST], groups))


def _text(entry: Any, key: str) -> str:
    if not isinstance(entry, Mapping) or not isinstance(entry[key], str):
        raise TypeError(f"a plan's {key!r} must be text")
    return entry[key]


def _list(entry: Any, key: str) -> list[Any]:
    if not isinstance(entry, Mapping) or not isinstance(entry[key], list):
        raise TypeError(f"a plan's {key!r} must be a list")
    return entry[key]


def _count(value: Any) -> int:
    if type(value) is not int or not 0 <= value < 2**63:
        raise ValueError(f"a plan's counts are ints in [0, 2**63); got {str(value)[:40]}")
    return value


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise TypeError(f"a plan's side_by_side is true or false; got {str(value)[:40]}")
    return value


def _samples(value: Any) -> int:
    if not 0 < _count(value) < 2**31:
        raise ValueError(f"a plan's numbers of samples are in [1, 2**31); got {value}")
    return int(value)


def _number(entry: Any, key: str) -> float | None:
    value = entry[key]
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"a plan's {key!r} must be a finite number; got {str(value)[:40]}")
    return float(value)
