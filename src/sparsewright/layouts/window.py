"""window: 16 rows of like counts side by side, as in layout sell; in every step columns that lie so
near each other that a look-up in registers finds all their activations at once.

A step has a first column. Of the columns that each of the 16 rows has left, it takes the first, if
that is among the 32 from there on: else its place is padding. The next step begins at the lowest
column that any of them has left. So rows run ahead of each other by up to a window, and half of the
padding is saved that fixed windows would need. Padding has value 0; a kernel looks whether all
activations are finite, and leaves padding out where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..present import present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix
from .sell import LANES, check_order, rows_of

REACH = 32
"""Columns of a window: as many as two vectors of 16 floats hold."""
OF_LANE = 4
"""Places of a lane that lie side by side: a vector of them serves so many steps."""
NARROW = 2**16
"""Columns that 16 bits can name."""
ALIGNED = 16
NEAR = 2**20
"""Bytes of values up to which a window begins at a multiple of ALIGNED columns: loads of
activations across two lines of memory cost more than the padding that they would save. A larger
weight comes from farther away, and what counts is to read less of it."""
LEAST_USE = 0.15
"""Smallest part of the places that must be weights."""
SAMPLE = 8
"""Slices that are looked at to estimate it."""
DTYPES = {
    "starts": (torch.int32,),
    "order": (torch.int32,),
    "columns": (torch.uint16, torch.int32),
    "places": (torch.uint8,),
    "values": STORED,
}
FAR = np.iinfo(np.int64).max


class Window:
    """starts (slices + 1) int32: first step of a slice, multiples of 4; order (slices, 16) int32:
    the rows of its lanes, -1 for none; columns (steps,) uint16 or int32: the first column of each
    step's window; places (steps / 4, 16, 4) uint8: for four steps, where in their windows each
    lane's columns lie, 0 for padding; values (steps, 16)."""

    name = "window"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        rows = _Rows(weight)
        sample = np.unique(np.linspace(0, rows.slices - 1, SAMPLE).astype(int))
        some = rows.order[sample] if rows.slices else rows.order
        weights, steps = int(rows.counts[some[some >= 0]].sum()), 0
        for _, taken in rows.steps_of(some):
            steps += int((taken >= 0).any(axis=1).sum())
        full = LANES * rows.slices / max(1, weight.shape[0])
        use = weights * full / (steps * LANES) if steps else 1.0
        if use >= LEAST_USE:
            return None
        return f"{1 - use:.0%} of the places would be padding; at most {1 - LEAST_USE:.0%} may be"

    def pack(self, weight: Tensor) -> Packed:
        """
        >>> packed = Window().pack(torch.tensor([[0., 5.], [7., 6.]]))
        >>> packed.tensors["order"][0, :3]  # the row with more weights first, then no third row
        tensor([ 1,  0, -1], dtype=torch.int32)
        >>> packed.tensors["places"][0, :2]  # columns 0 and 1 of row 1, column 1 of row 0
        tensor([[0, 1, 0, 0],
                [1, 0, 0, 0]], dtype=torch.uint8)
        """
        reason = not_a_matrix(weight)
        if reason:
            raise LayoutError(f"layout window: {reason}")
        rows = _Rows(weight)
        out, width = weight.shape
        most = torch.iinfo(torch.int32).max // (2 * LANES * LANES)
        if rows.columns.size > most:
            raise LayoutError(
                f"layout window: needs at most {most} weights; got {rows.columns.size}"
            )
        firsts, taken = [], []
        for first, some in rows.steps_of(rows.order):
            firsts.append(first)
            taken.append(some)
        shape = (len(firsts), rows.slices)
        first = np.concatenate(firsts).reshape(shape) if firsts else np.zeros(shape, np.int64)
        places = np.stack(taken) if taken else np.zeros((*shape, LANES), np.int64)
        alive = (places >= 0).any(axis=2)  # (step, slice)
        own = alive.sum(axis=0)
        room = -(-own // OF_LANE) * OF_LANE
        starts = np.concatenate([[0], room.cumsum()])
        step, which = np.nonzero(alive)
        to = starts[which] + step
        columns = np.zeros(starts[-1], np.int64)
        inside = np.zeros((starts[-1], LANES), np.uint8)
        values = np.zeros((starts[-1], LANES), np.float32)
        columns[to] = first[step, which]
        at = places[step, which]
        there = at >= 0
        found = rows.columns[np.where(there, at, 0)] if rows.columns.size else at
        inside[to] = np.where(there, found - columns[to][:, None], 0)
        if rows.columns.size:
            values[to] = np.where(there, rows.values[np.where(there, at, 0)], 0)
        narrow = np.uint16 if width < NARROW else np.int32
        side_by_side = inside.reshape(-1, OF_LANE, LANES).transpose(0, 2, 1)
        tensors = {
            "starts": torch.from_numpy(starts.astype(np.int32)),
            "order": torch.from_numpy(rows.order.astype(np.int32)),
            "columns": torch.from_numpy(columns.astype(narrow)),
            "places": torch.from_numpy(np.ascontiguousarray(side_by_side)),
            "values": torch.from_numpy(values),
        }
        return Packed(self.name, (out, width), tensors)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        row, _ = rows_of(packed)
        columns, present = _columns(packed)
        weight = torch.zeros(packed.shape)
        weight[row[present], columns[present]] = packed.tensors["values"][present]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        check(not packed.meta, packed, f"has no meta; got {sorted(packed.meta)}")
        values, places, columns = (packed.tensors[n] for n in ("values", "places", "columns"))
        right = values.dim() == 2 and values.shape[1] == LANES
        check(right, packed, f"values must be (steps, {LANES})")
        steps = values.shape[0]
        check(columns.shape == (steps,), packed, f"columns must have {steps} entries")
        wanted = (steps // OF_LANE, LANES, OF_LANE)
        right = steps % OF_LANE == 0 and places.shape == wanted
        check(right, packed, f"places must be {wanted}, for whole groups of {OF_LANE} steps")
        check_order(packed, steps)
        whole = bool((packed.tensors["starts"] % OF_LANE == 0).all())
        check(whole, packed, f"starts must be multiples of {OF_LANE}")
        width = packed.shape[1]
        check(columns.dtype != torch.uint16 or width < NARROW, packed, "needs int32 columns")
        _check_places(packed)


def by_step(places: Tensor) -> Tensor:
    """places (groups, 16, 4) -> (steps, 16).

    >>> by_step(torch.arange(64).view(1, 16, 4))[1, :3]
    tensor([1, 5, 9])
    """
    return places.transpose(1, 2).reshape(-1, LANES)


class _Rows:
    """What is present in a weight, row after row, and the rows by descending counts."""

    def __init__(self, weight: Tensor) -> None:
        dense = weight.detach().cpu()
        self.width = dense.shape[1]
        present = present_in(dense).numpy()
        row, self.columns = present.nonzero()
        self.values = dense.numpy()[row, self.columns]
        self.counts = present.sum(axis=1)
        self.ends = self.counts.cumsum()
        self.slices = -(-len(self.counts) // LANES)
        order = np.full(self.slices * LANES, -1)
        order[: len(self.counts)] = np.argsort(-self.counts, kind="stable")
        self.order = order.reshape(-1, LANES)
        far = self.values.nbytes > NEAR
        self.grid = 1 if far else ALIGNED

    def steps_of(self, order: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """For step after step: the first column (slices,), and which of `columns` each lane takes
        (slices, 16), -1 for none, until no slice of `order` has any left."""
        has = order >= 0
        end = np.where(has, self.ends[order], 0) if len(self.ends) else np.zeros_like(order)
        at = np.where(has, end - self.counts[order], 0) if len(self.ends) else end
        last = max(0, self.width - REACH)
        columns = np.append(self.columns, FAR)  # of a lane with none left
        nothing = len(self.columns)
        while True:
            column = columns[np.where(at < end, at, nothing)]
            lowest = column.min(axis=1)
            if not (lowest < FAR).any():
                return
            first = np.minimum(lowest // self.grid * self.grid, last)
            taken = column < (first + REACH)[:, None]
            yield first, np.where(taken, at, -1)
            at = at + taken


def _columns(packed: Packed) -> tuple[Tensor, Tensor]:
    """The column of every place (steps, 16), and where a weight is present."""
    inside = by_step(packed.tensors["places"]).long()
    first = packed.tensors["columns"].to(torch.int32).long()
    return first[:, None] + inside, packed.tensors["values"] != 0


def _check_places(packed: Packed) -> None:
    width = packed.shape[1]
    first = packed.tensors["columns"].to(torch.int32)
    last = max(0, width - REACH)
    near = bool(((first >= 0) & (first <= last)).all())
    check(near, packed, f"columns must lie in [0, {last}]")
    columns, there = _columns(packed)
    inside = by_step(packed.tensors["places"])
    known = bool((torch.where(there, inside, 0) < REACH).all()) and not bool(inside[~there].any())
    check(known, packed, f"places must lie in [0, {REACH}), and padding at 0")
    real = bool((columns[there] < width).all())
    check(real, packed, f"the columns of weights must lie in [0, {width})")
    row, _ = rows_of(packed)
    check(not bool((there & (row < 0)).any()), packed, "lanes without a row must be empty")
    # The columns of a lane ascend within a slice, so none is named twice.
    starts = packed.tensors["starts"].long()
    slice_of = torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())
    key = torch.where(there, slice_of[:, None] * (width + REACH) + columns, -1)
    before = torch.cat([key.new_full((1, LANES), -1), key.cummax(0).values[:-1]])[: len(key)]
    ascend = bool((key[there] > before[there]).all())
    check(ascend, packed, "the columns of a row must ascend")


LAYOUTS.register("window")(Window())
