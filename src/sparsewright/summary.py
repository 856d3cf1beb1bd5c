"""What is sparse in a model, counted exactly, as a table to print and as plain data."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from .connectivity import dead_outputs
from .core import Layer, Shape
from .selection import LeftDense


@dataclass(frozen=True)
class Row:
    """One sparse weight: counts are of single weights, dead outputs of neurons or filters."""

    name: str
    shape: Shape
    pattern: str
    total: int
    present: int
    dead_outputs: int

    @property
    def sparsity(self) -> float:
        return 1.0 - self.present / self.total if self.total else 0.0


@dataclass(frozen=True)
class Summary:
    """Every sparse weight, every weight left dense with its reason, and the sums.

    asked: the whole-model sparsity that was asked for, None if the patterns fixed it.
    """

    rows: tuple[Row, ...]
    left_dense: tuple[LeftDense, ...]
    asked: float | None

    @property
    def total(self) -> int:
        return sum(row.total for row in self.rows)

    @property
    def present(self) -> int:
        return sum(row.present for row in self.rows)

    @property
    def sparsity(self) -> float:
        """Over the weights that were made sparse."""
        return 1.0 - self.present / self.total if self.total else 0.0

    @property
    def sparsity_of_all(self) -> float:
        """Over all weights but norms' and biases, those left dense included."""
        dense = sum(weight.total for weight in self.left_dense)
        total = self.total + dense
        return 1.0 - (self.present + dense) / total if total else 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "asked_sparsity": self.asked,
            "sparsity": self.sparsity,
            "sparsity_of_all": self.sparsity_of_all,
            "rows": [
                asdict(row) | {"shape": list(row.shape), "sparsity": row.sparsity}
                for row in self.rows
            ],
            "left_dense": [asdict(weight) for weight in self.left_dense],
        }

    def __str__(self) -> str:
        out = io.StringIO()
        Console(file=out, width=100).print(self._table())
        return out.getvalue().rstrip()

    def _table(self) -> Table:
        table = Table(title=self._title(), title_justify="left")
        table.add_column("weight")
        table.add_column("shape")
        table.add_column("pattern")
        for heading in ("present", "of", "sparsity", "dead outputs"):
            table.add_column(heading, justify="right")
        for row in self.rows:
            shape = "x".join(map(str, row.shape))
            counts = f"{row.present:,}", f"{row.total:,}", f"{row.sparsity:.4f}"
            table.add_row(row.name, shape, row.pattern, *counts, str(row.dead_outputs))
        for weight in self.left_dense:
            total = f"{weight.total:,}"
            table.add_row(weight.name, "", f"dense: {weight.reason}", total, total, "0.0000", "")
        return table

    def _title(self) -> str:
        asked = "" if self.asked is None else f" (asked: {self.asked:g})"
        title = f"sparsity {self.sparsity:.6f}{asked}: {self.present:,} of {self.total:,} weights"
        if self.left_dense:
            title += f"; {self.sparsity_of_all:.4f} counting the weights left dense"
        return title


def summarise(
    layers: Sequence[Layer], left_dense: Sequence[LeftDense], asked: float | None
) -> Summary:
    """Count the layers as they are now."""
    rows = tuple(
        Row(
            layer.name,
            layer.shape,
            str(layer.pattern),
            layer.numel,
            layer.present,
            dead_outputs(layer),
        )
        for layer in layers
    )
    return Summary(rows, tuple(left_dense), asked)
