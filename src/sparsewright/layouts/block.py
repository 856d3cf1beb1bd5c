"""block: strips of 4, 8 or 16 rows side by side, one column after the other (register blocking:
Im, Yelick and Vuduc, 2004; blocks of R x C are C neighbouring columns of a strip).

A kernel loads a column of the activations once for all rows of a strip. Columns in which every row
of the strip has a weight come first; then those that are partly absent, with zeros as padding: a
kernel masks these, so that no activation reaches a row that has no weight for it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..present import present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix

ROWS = (16, 8, 4)
NARROW = 2**16
"""Columns that 16-bit numbers can name."""
WASTE = 0.1
"""Largest part of the values that may be padding."""
DTYPES = {
    "starts": (torch.int32,),
    "columns": (torch.uint16, torch.int32),
    "values": STORED,
}


class Block:
    """starts (2 * strips + 1) int32: first step of every strip's whole columns and of its others;
    columns (steps) uint16 or int32; values (steps, rows), rows 4, 8 or 16."""

    name = "block"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        present = present_in(weight)
        if _rows_of(present) is not None:
            return None
        rows = ROWS[-1]
        return (
            f"{_padding(present, rows):.0%} of the values would be padding in strips of {rows} "
            f"rows; at most {WASTE:.0%} may be"
        )

    def pack(self, weight: Tensor, rows: int | None = None) -> Packed:
        """
        rows: of a strip, 4, 8 or 16; by default the most that need little padding, or 4.

        >>> packed = Block().pack(torch.tensor([[5., 0.], [6., 3.], [7., 0.], [8., 0.]]))
        >>> packed.tensors["values"].tolist()  # the whole column, then the other
        [[5.0, 6.0, 7.0, 8.0], [0.0, 3.0, 0.0, 0.0]]
        """
        reason = not_a_matrix(weight)
        if reason:
            raise LayoutError(f"layout block: {reason}")
        weight = weight.detach().cpu()
        out, width = weight.shape
        if rows is None:
            rows = _rows_of(weight != 0) or ROWS[-1]
        if rows not in ROWS:
            raise LayoutError(f"layout block: needs rows of {sorted(ROWS)}; got {rows}")
        strips = _strips(weight, rows)
        used = (strips != 0).any(dim=1)
        # (strips, 2, in): the whole columns, then the others.
        whole = _strips(weight != 0, rows, beyond=True).all(dim=1)
        kinds = torch.stack([used & whole, used & ~whole], dim=1)
        strip, _, column = kinds.nonzero(as_tuple=True)
        if len(strip) > torch.iinfo(torch.int32).max:
            raise LayoutError(f"layout block: needs fewer than 2**31 steps; got {len(strip)}")
        starts = torch.zeros(2 * len(strips) + 1, dtype=torch.int64)
        starts[1:] = kinds.sum(dim=2).flatten().cumsum(0)
        tensors = {
            "starts": starts.to(torch.int32),
            "columns": column.to(torch.int32).to(torch.uint16 if width <= NARROW else torch.int32),
            "values": strips[strip, :, column],
        }
        return Packed(self.name, (out, width), tensors)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        strip, _ = _ranges_of(packed)
        values, columns = packed.tensors["values"], packed.tensors["columns"].to(torch.int32)
        step, lane = values.nonzero(as_tuple=True)
        weight = torch.zeros(packed.shape)
        weight[strip[step] * values.shape[1] + lane, columns.long()[step]] = values[step, lane]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        check(not packed.meta, packed, f"has no meta; got {sorted(packed.meta)}")
        starts, columns, values = (packed.tensors[n] for n in DTYPES)
        right = values.dim() == 2 and values.shape[1] in ROWS
        check(right, packed, f"values must be (steps, rows) with rows of {sorted(ROWS)}")
        (steps, rows), (out, width) = values.shape, packed.shape
        check(columns.shape == (steps,), packed, f"columns must have {steps} entries")
        entries = 2 * -(-out // rows) + 1
        check(starts.shape == (entries,), packed, f"starts must have {entries} entries")
        ends = int(starts[0]) == 0 and int(starts[-1]) == steps
        check(ends, packed, f"starts must run from 0 to {steps}")
        check(bool((starts[1:] >= starts[:-1]).all()), packed, "starts must not descend")
        narrow = columns.dtype == torch.uint16
        check(not narrow or width <= NARROW, packed, "needs int32 columns")
        _check_steps(packed)


def _check_steps(packed: Packed) -> None:
    columns, values = packed.tensors["columns"].to(torch.int32), packed.tensors["values"]
    (out, width), rows = packed.shape, values.shape[1]
    inside = bool(((columns >= 0) & (columns < width)).all())
    check(inside, packed, f"columns must lie in [0, {width})")
    strip, other = _ranges_of(packed)
    later = (columns[1:] > columns[:-1]) | (strip[1:] != strip[:-1]) | (other[1:] != other[:-1])
    check(bool(later.all()), packed, "columns must ascend among whole ones and among others")
    # A column is named once: not as a whole one and again among the others.
    key = (strip * max(1, width) + columns).sort().values
    check(bool((key[1:] > key[:-1]).all()), packed, "a strip must name a column once")
    present = values != 0
    beyond = strip[:, None] * rows + torch.arange(rows) >= out
    check(not bool((present & beyond).any()), packed, f"rows beyond {out} must be empty")
    full = (present | beyond).all(dim=1)
    check(bool((full != other).all()), packed, "whole columns come first, and only they are whole")
    check(bool(present.any(dim=1).all()), packed, "a column must hold a weight")


def _ranges_of(packed: Packed) -> tuple[Tensor, Tensor]:
    """The strip of every step, and whether it is one of the strip's other columns."""
    counts = packed.tensors["starts"].long().diff()
    place = torch.repeat_interleave(torch.arange(len(counts)), counts)
    return place // 2, place % 2 == 1


def _strips(weight: Tensor, rows: int, beyond: bool = False) -> Tensor:
    """(out, in) -> (strips, rows, in), rows beyond the last filled up."""
    out, width = weight.shape
    strips = -(-out // rows)
    if strips * rows == out:
        return weight.reshape(strips, rows, width)
    filled = weight.new_full((strips * rows, width), beyond)
    filled[:out] = weight
    return filled.view(strips, rows, width)


def _padding(present: Tensor, rows: int) -> float:
    """The part of the values that would be padding."""
    room = int(_strips(present, rows).any(dim=1).sum()) * rows
    return 1 - int(present.sum()) / room if room else 0.0


def _rows_of(present: Tensor) -> int | None:
    """Rows of the largest strips that need little padding, if there are any."""
    return next((rows for rows in ROWS if _padding(present, rows) <= WASTE), None)


LAYOUTS.register("block")(Block())
