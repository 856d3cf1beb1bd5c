"""sell: 16 rows of like counts side by side, step by step (sliced ELLPACK with sorted rows,
SELL-C-sigma: Kreutzer, Hager, Wellein, Fehske and Bishop, 2014).

Rows are sorted by their number of weights, so the 16 of a slice end together and hardly a step is
padding. A kernel for single activations needs no sum across lanes. Padding has value 0 and column
in_features, where the kernel keeps a zero, so that no activation of an absent weight is read.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..present import present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix

LANES = 16
NARROW = 2**16
"""Columns that 16-bit places can name: one of them is for padding."""
WASTE = 0.5
"""Largest part of the places that may be padding."""
DTYPES = {
    "starts": (torch.int32,),
    "order": (torch.int32,),
    "columns": (torch.uint16, torch.int32),
    "values": STORED,
}


class Sell:
    """starts (slices + 1) int32: first step of a slice; order (slices, 16) int32: the rows of its
    lanes, -1 for none; columns (steps, 16) uint16 or int32; values (steps, 16)."""

    name = "sell"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        counts = present_in(weight).sum(dim=1)
        total, room = int(counts.sum()), int(_steps(counts.sort(descending=True)[0]).sum()) * LANES
        full = LANES * -(-weight.shape[0] // LANES) / max(1, weight.shape[0])
        if room * (1 - WASTE) <= total * full:
            return None
        return f"{1 - total / room:.0%} of the places would be padding; at most {WASTE:.0%} may be"

    def pack(self, weight: Tensor) -> Packed:
        """
        >>> packed = Sell().pack(torch.tensor([[0., 5.], [7., 6.]]))
        >>> packed.tensors["order"][0, :3]  # the row with more weights first, then no third row
        tensor([ 1,  0, -1], dtype=torch.int32)
        """
        reason = not_a_matrix(weight)
        if reason:
            raise LayoutError(f"layout sell: {reason}")
        weight = weight.detach().cpu()
        out, width = weight.shape
        present = weight != 0
        counts = present.sum(dim=1)
        if int(counts.sum()) > torch.iinfo(torch.int32).max // LANES:
            raise LayoutError(f"layout sell: needs fewer than 2**27 weights; got {counts.sum()}")
        ranked = counts.sort(descending=True, stable=True)
        slices = -(-out // LANES)
        order = torch.full((slices * LANES,), -1, dtype=torch.int32)
        order[:out] = ranked.indices.to(torch.int32)
        starts = torch.zeros(slices + 1, dtype=torch.int64)
        torch.cumsum(_steps(ranked.values), 0, out=starts[1:])
        row, column = present.nonzero(as_tuple=True)
        rank = torch.arange(len(row)) - (counts.cumsum(0) - counts)[row]
        place = torch.empty(out, dtype=torch.int64)
        place[ranked.indices] = torch.arange(out)
        at = (starts[place[row] // LANES] + rank) * LANES + place[row] % LANES
        steps = int(starts[-1])
        values = torch.zeros(steps * LANES)
        columns = torch.full((steps * LANES,), width, dtype=torch.int32)
        values[at], columns[at] = weight[present], column.to(torch.int32)
        narrow = torch.uint16 if width < NARROW else torch.int32
        tensors = {
            "starts": starts.to(torch.int32),
            "order": order.view(slices, LANES),
            "columns": columns.to(narrow).view(steps, LANES),
            "values": values.view(steps, LANES),
        }
        return Packed(self.name, (out, width), tensors)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        row, _ = rows_of(packed)
        values, columns = packed.tensors["values"], packed.tensors["columns"].long()
        present = values != 0
        weight = torch.zeros(packed.shape)
        weight[row[present], columns[present]] = values[present]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        check(not packed.meta, packed, f"has no meta; got {sorted(packed.meta)}")
        width = packed.shape[1]
        columns, values = packed.tensors["columns"], packed.tensors["values"]
        right = values.dim() == 2 and values.shape[1] == LANES and columns.shape == values.shape
        check(right, packed, f"values and columns must both be (steps, {LANES})")
        check_order(packed, values.shape[0])
        check(columns.dtype != torch.uint16 or width < NARROW, packed, "needs int32 columns")
        _check_places(packed)


def check_order(packed: Packed, steps: int) -> None:
    """The rules of starts (slices + 1) and order (slices, 16), for so many steps."""
    out, starts, order = packed.shape[0], packed.tensors["starts"], packed.tensors["order"]
    slices = -(-out // LANES)
    check(starts.shape == (slices + 1,), packed, f"starts must have {slices + 1} entries")
    check(order.shape == (slices, LANES), packed, f"order must be ({slices}, {LANES})")
    ends = int(starts[0]) == 0 and int(starts[-1]) == steps
    check(ends, packed, f"starts must run from 0 to {steps}")
    check(bool((starts[1:] >= starts[:-1]).all()), packed, "starts must not descend")
    named = order.flatten().long()
    inside = bool(((named >= -1) & (named < out)).all())
    check(inside, packed, f"order must lie in [-1, {out})")
    rows = named[named >= 0].sort().values
    every = rows.numel() == out and bool((rows == torch.arange(out)).all())
    check(every, packed, "order must name every row once")


def _check_places(packed: Packed) -> None:
    width = packed.shape[1]
    columns, present = packed.tensors["columns"].to(torch.int32), packed.tensors["values"] != 0
    inside = (columns >= 0) & torch.where(present, columns < width, columns == width)
    rule = f"columns must lie in [0, {width}), and padding at {width}"
    check(bool(inside.all()), packed, rule)
    row, first = rows_of(packed)
    check(not bool((present & (row < 0)).any()), packed, "lanes without a row must be empty")
    # Present weights come first and their columns ascend, so none is named twice.
    before, after = columns[:-1], columns[1:]
    later = torch.where(present[1:], present[:-1] & (after > before), True) | first[1:, None]
    check(bool(later.all()), packed, "the columns of a row must ascend")


def rows_of(packed: Packed) -> tuple[Tensor, Tensor]:
    """The row of every place (steps, 16), -1 for none; whether a step is its slice's first."""
    rows = lane_rows(packed)
    first = torch.zeros(len(rows) + 1, dtype=torch.bool)
    first[packed.tensors["starts"].long()] = True
    return rows, first[: len(rows)]


def lane_rows(packed: Packed) -> Tensor:
    """The row of every place (steps, 16), -1 for none."""
    steps = packed.tensors["starts"].long().diff()
    return packed.tensors["order"].long().repeat_interleave(steps, dim=0)


def _steps(ranked: Tensor) -> Tensor:
    """Steps of every slice of rows that are sorted by descending counts: those of its first."""
    return ranked[::LANES]


LAYOUTS.register("sell")(Sell())
