"""The grid of a pattern's units over a layer's (out, in) matrix, columns brought into the pattern's
order: what solvers must know of it, whatever its name.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core import Pattern, Shape, table_size
from ..patterns import units_of


@dataclass(frozen=True, eq=False)
class Grid:
    """order: (in) columns, so that those of one unit, and of one group, are neighbours.

    rows, columns: of one unit. run: units of one group along the columns. shared: whether a group
    reaches over all rows, else each strip of `rows` rows has its own. units: of a whole group.
    """

    order: Tensor
    rows: int
    columns: int
    run: int
    shared: bool
    units: int

    @property
    def single(self) -> bool:
        """Whether every weight is a unit of its own."""
        return self.rows == self.columns == 1

    @property
    def across(self) -> int:
        """Units along the columns."""
        return len(self.order) // self.columns

    @property
    def is_whole(self) -> bool:
        """Whether a group has all columns."""
        return self.run == self.across


def grid_of(pattern: Pattern, shape: Shape) -> Grid | str:
    """The grid of a pattern over a weight of this shape, or why there is none.

    >>> from sparsewright.patterns import as_pattern
    >>> grid = grid_of(as_pattern("2:4"), (2, 4, 1, 2))
    >>> grid.order.tolist(), grid.run, grid.shared
    ([0, 2, 4, 6, 1, 3, 5, 7], 4, False)
    """
    _, each = table_size(pattern, shape)
    units = unit_matrix(pattern, shape)
    out, inputs = units.shape
    order = units[0].argsort(stable=True)
    units = units[:, order]
    columns = _run(units[0])
    rows = _run(units[:, 0])
    ragged = f"needs units that form a grid; pattern {pattern} has others"
    if out % rows or inputs % columns:
        return ragged
    tiles = units[::rows, ::columns]  # (strips, across)
    if not torch.equal(tiles.repeat_interleave(rows, 0).repeat_interleave(columns, 1), units):
        return ragged
    groups = tiles // each
    run = _run(groups[0])
    base = groups[:, :1]
    alike = torch.equal(groups - base, (groups[:1] - base[:1]).expand_as(groups))
    even = torch.equal(groups[0] - groups[0, 0], torch.arange(groups.shape[1]) // run)
    shared = len(groups) > 1 and bool((base == base[0]).all())
    apart = shared or len(base.unique()) == len(base)
    if not (alike and even and apart):
        return f"needs groups that form a grid; pattern {pattern} has others"
    return Grid(order, rows, columns, run, shared, each)


def unit_matrix(pattern: Pattern, shape: Shape) -> Tensor:
    """(out, in) the flat unit of every weight."""
    places = torch.arange(torch.Size(shape).numel())
    return units_of(pattern, places, shape).view(shape).flatten(1)


def _run(line: Tensor) -> int:
    """How many entries at the beginning are alike."""
    other = (line != line[0]).nonzero()
    return int(other[0]) if len(other) else len(line)
