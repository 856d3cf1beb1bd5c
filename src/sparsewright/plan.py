"""The plan of a deployed model: which kernel serves which layer, by which times, and why."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from .core import Shape


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
    dense was chosen, None where nothing was timed.
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
        )


@dataclass(frozen=True)
class Plan:
    """Which kernel serves which layer at a number of threads and a batch; str() is a table.

    notes: what else was done to the model, or could not be.
    """

    threads: int
    batch: int
    layers: tuple[LayerPlan, ...]
    notes: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values that JSON takes."""
        layers = [row.to_dict() for row in self.layers]
        notes = list(self.notes)
        return {"threads": self.threads, "batch": self.batch, "layers": layers, "notes": notes}

    @classmethod
    def from_dict(cls, entry: Any) -> Plan:
        """The plan that `to_dict` wrote; KeyError, TypeError or ValueError if it is none."""
        layers = tuple(LayerPlan.from_dict(row) for row in _list(entry, "layers"))
        notes = _list(entry, "notes")
        if not all(isinstance(note, str) for note in notes):
            raise TypeError("a plan's notes must be texts")
        return cls(_count(entry["threads"]), _count(entry["batch"]), layers, tuple(notes))

    def __str__(self) -> str:
        out = Console(file=io.StringIO(), width=110, no_color=True, highlight=False)
        out.print(self.table())
        for line in self._remarks():
            out.print(Text(line), soft_wrap=True)
        assert isinstance(out.file, io.StringIO)
        return out.file.getvalue().rstrip()

    def table(self) -> Table:
        """The plan as a table of rich."""
        table = Table(title=f"batch {self.batch}, threads: {self.threads}", title_justify="left")
        for name in ("layer", "shape", "sparsity", "pattern", "kernel", "speed-up", "bytes"):
            is_number = name in ("sparsity", "speed-up", "bytes")
            table.add_column(name, justify="right" if is_number else "left")
        for row in self.layers:
            table.add_row(*(Text(cell) for cell in _cells(row)))
        return table

    def _remarks(self) -> list[str]:
        lines = [] if any(row.is_sparse for row in self.layers) else ["No layer is served sparse."]
        lines.append("Speed-up: over the best dense candidate of the same layer, timed in turn.")
        lines += self.notes
        layers: dict[tuple[str, str], list[str]] = {}
        for row in self.layers:
            for candidate in row.candidates:
                if candidate.refused is not None:
                    layers.setdefault((candidate.kernel, candidate.refused), []).append(row.layer)
        for (kernel, reason), names in layers.items():
            lines.append(f"not {kernel} for {_listed(names)}: {reason}")
        return lines


def _cells(row: LayerPlan) -> list[str]:
    return [
        row.layer,
        "x".join(str(s) for s in row.shape),
        f"{row.sparsity:.1%}",
        row.pattern,
        row.kernel,
        "-" if row.speedup is None else f"{row.speedup:.2f}x",
        f"{row.bytes:,} of {row.dense_bytes:,}" if row.is_sparse else f"{row.bytes:,}",
    ]


def _listed(names: list[str]) -> str:
    shown = ", ".join(repr(n) for n in names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


def pattern_of(weight: Tensor) -> str:
    """The pattern that a matrix's zeros show: "dense", "N:M" or "unstructured".

    N:M means that every M inputs in a row, M a power of two, hold exactly N present weights; the
    smallest such M is named.

    >>> import torch
    >>> pattern_of(torch.tensor([[1.0, 0, 0, 2], [0, 3, 0, 4]]))
    '1:2'
    """
    present = weight.detach() != 0
    if bool(present.all()):
        return "dense"
    if present.dim() != 2:
        return "unstructured"
    inputs = present.shape[1]
    for size in (2, 4, 8, 16, 32, 64):
        if inputs and inputs % size == 0:
            kept = present.reshape(-1, size).sum(dim=1)
            n = int(kept[0])
            if 0 < n < size and bool((kept == n).all()):
                return f"{n}:{size}"
    return "unstructured"


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


def _number(entry: Any, key: str) -> float | None:
    value = entry[key]
    if value is None:
        return None
    if type(value) not in (int, float) or not math.isfinite(value):
        raise ValueError(f"a plan's {key!r} must be a finite number; got {str(value)[:40]}")
    return float(value)
