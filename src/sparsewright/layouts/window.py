"""window: 16 rows of like counts side by side, as in layout sell; in every step columns that lie so
near each other that a look-up in registers finds all their activations at once.

A window has a first column, and two steps. Of the columns that each of the 16 rows has left, a step
takes the first, if that is among the 32 from there on: else its place is padding. The next window
begins at the lowest column that any of them has left, or a little before it. So rows run ahead of
each other by up to a window, and about half of the padding is saved that fixed windows would need;
and the activations of a window are loaded once for both of its steps. Padding has value 0, or none
in a weight that is read from afar, or from less far and has much of it; a kernel looks whether all
activations are finite, and leaves padding out where they are not.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..present import count_true, present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix
from ._packing import compiled, holds
from .sell import LANES, NARROW, check_order, lane_rows

REACH = 32
"""Columns of a window: as many as two vectors of 16 floats hold."""
PADDING = 255
OF_WINDOW = 2
"""Steps of a window. With one the activations are loaded for every step anew; with four there is
half as much padding again at 90 % zeros."""
OF_LANE = 4
"""Places of a lane that lie side by side: a vector of them serves so many steps."""
GRID = 8
"""A window begins at a multiple of so many columns: every second load of 16 activations lies in one
line of the cache then. With any first column there is less padding and hardly one does; with
multiples of 16 it is the other way round. Both are slower."""
NEAR, FAR = 2**20, 2**23
"""Bytes of float32 values: up to NEAR, padding has values too, 0; beyond FAR, it has none. To put
values in their lanes takes less time than to read the others where they come from afar."""
DENSE_USE = 0.75
"""Part of the places that are weights, in a weight of a size between, below which padding has no
values."""
LEAST_USE = 0.15
"""Smallest part of the places that must be weights."""
SAMPLE = 8
"""Slices that are looked at to estimate it."""
DTYPES = {
    "starts": (torch.int32,),
    "order": (torch.int32,),
    "columns": (torch.uint16, torch.int32),
    "places": (torch.uint8,),
    "firsts": (torch.int32,),
    "values": STORED,
}
NONE_LEFT = np.iinfo(np.int64).max
MOST = np.iinfo(np.int32).max


class Window:
    """starts (slices + 1) int32: first step of a slice, multiples of 4; order (slices, 16) int32:
    the rows of its lanes, -1 for none; columns (steps / 2,) uint16 or int32: the first column of
    each window; places (steps / 4, 16, 4) uint8: for four steps, where in their windows each
    lane's columns lie, 255 for padding; firsts (slices + 1) int32: first value of a slice; values
    (n,): slice after slice, step after step, lane after lane, either of all places or of those
    alone that are no padding."""

    name = "window"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        counts = present_in(weight).numpy().sum(axis=1)
        order = _by_count(counts)
        sample = np.unique(np.linspace(0, max(len(order) - 1, 0), SAMPLE).astype(int))
        named = order[sample].flatten() if len(order) else counts[:0]
        named = named[named >= 0]
        some = weight.detach().cpu()[named]
        counted = compiled("window_steps", some)
        steps = counted(GRID) if counted else _steps(some)
        room = steps * LANES * (len(named) / max(1, sample.size * LANES))  # lanes with rows
        use = counts[named].sum() / room if room else 1.0
        if use >= LEAST_USE:
            return None
        return f"{1 - use:.0%} of the places would be padding; at most {1 - LEAST_USE:.0%} may be"

    def pack(self, weight: Tensor) -> Packed:
        """
        >>> packed = Window().pack(torch.tensor([[0., 5.], [7., 6.]]))
        >>> packed.tensors["order"][0, :3]  # the row with more weights first, then no third row
        tensor([ 1,  0, -1], dtype=torch.int32)
        >>> packed.tensors["places"][0, :2]  # columns 0 and 1 of row 1, column 1 of row 0
        tensor([[  0,   1, 255, 255],
                [  1, 255, 255, 255]], dtype=torch.uint8)
        """
        reason = not_a_matrix(weight)
        if reason:
            raise LayoutError(f"layout window: {reason}")
        most = _most(count_true(present_in(weight)))
        packed = compiled("window_pack", weight)
        if packed is None:
            return _fill(weight, most)
        tensors = dict(zip(DTYPES, packed(GRID, most), strict=True))
        return Packed(self.name, (weight.shape[0], weight.shape[1]), tensors)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        columns, inside = _columns(packed)
        present = inside != PADDING
        row = lane_rows(packed).numpy()
        weight = np.zeros(packed.shape, np.float32)
        values = _by_step(packed).numpy()
        weight[row[present], columns[present]] = values[present]
        return torch.from_numpy(weight)

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        check(not packed.meta, packed, f"has no meta; got {sorted(packed.meta)}")
        places, columns = packed.tensors["places"], packed.tensors["columns"]
        right = places.dim() == 3 and places.shape[1:] == (LANES, OF_LANE)
        check(right, packed, f"places must be (n, {LANES}, {OF_LANE})")
        steps = len(places) * OF_LANE
        windows = (steps // OF_WINDOW,)
        check(columns.shape == windows, packed, f"columns must be {windows} for {steps} steps")
        check_order(packed, steps)
        whole = bool((packed.tensors["starts"] % OF_LANE == 0).all())
        check(whole, packed, f"starts must be multiples of {OF_LANE}")
        width = packed.shape[1]
        check(columns.dtype != torch.uint16 or width < NARROW, packed, "needs int32 columns")
        _check_firsts(packed, steps * LANES)
        if not holds("window_holds", packed, DTYPES):
            _check_places(packed)


def by_step(places: Tensor) -> Tensor:
    """places (groups, 16, 4) -> (steps, 16).

    >>> by_step(torch.arange(64).view(1, 16, 4))[1, :3]
    tensor([1, 5, 9])
    """
    return places.transpose(1, 2).reshape(-1, LANES)


def columns_of(columns: Tensor, places: Tensor) -> Tensor:
    """First columns (steps / 2,) of windows, places (steps / 4, 16, 4) in them -> the column of
    each place (steps, 16) int32; of padding, anything.

    >>> places = torch.full((1, 16, 4), 255, dtype=torch.uint8)
    >>> places[0, 1] = torch.tensor([7, 9, 0, 1])
    >>> columns_of(torch.tensor([8, 24]), places)[:, 1]
    tensor([15, 17, 24, 25], dtype=torch.int32)
    """
    first = columns.to(torch.int32).repeat_interleave(OF_WINDOW)
    return first[:, None] + by_step(places)


def padded(places: Tensor, values: Tensor) -> Tensor:
    """values (n,) of places (steps / 4, 16, 4) -> (steps, 16), 0 for padding.

    >>> places = torch.full((1, 16, 4), 255, dtype=torch.uint8)
    >>> places[0, 1, 0] = 7
    >>> padded(places, torch.tensor([5.0]))[0, :3]
    tensor([0., 5., 0.])
    """
    if values.numel() == places.numel():
        return values.view(-1, LANES)
    present = by_step(places) != PADDING
    return values.new_zeros(present.shape).masked_scatter_(present, values)


def _by_step(packed: Packed) -> Tensor:
    return padded(packed.tensors["places"], packed.tensors["values"])


def _most(weights: int) -> int:
    """Places up to which all of them have values, in a weight that has so many weights."""
    size = 4 * weights
    if size <= NEAR:
        return MOST
    return 0 if size > FAR else int(weights / DENSE_USE)


def _steps(weight: Tensor) -> int:
    """How many there would be, before those of each slice are made whole groups."""
    return sum(len(which) for which, _, _ in _Rows(weight).steps())


def _fill(weight: Tensor, most: int) -> Packed:
    """`Window.pack` in plain numpy, which the compiled way does again, faster."""
    rows = _Rows(weight)
    out, width = weight.shape
    steps = list(rows.steps())
    which = _joined([slices for slices, _, _ in steps], ())
    first = _joined([columns for _, columns, _ in steps], ())
    source = _joined([taken for _, _, taken in steps], (LANES,))
    step = np.repeat(np.arange(len(steps)), [len(slices) for slices, _, _ in steps])
    room = -(-np.bincount(which, minlength=len(rows.order)) // OF_LANE) * OF_LANE
    starts = np.concatenate([[0], room.cumsum()])
    if starts[-1] > MOST:
        raise LayoutError(f"layout window: needs fewer than 2**31 steps; got {starts[-1]}")
    columns = np.zeros(starts[-1] // OF_WINDOW, np.int64)
    inside = np.full((starts[-1], LANES), PADDING, np.uint8)
    values = np.zeros((starts[-1], LANES), np.float32)
    to = starts[which] + step
    columns[to // OF_WINDOW] = first
    inside[to] = np.where(source < 0, PADDING, rows.columns[source] - first[:, None])
    values[to] = np.append(rows.values, np.float32(0))[source]  # the last one of padding
    narrow = np.uint16 if width < NARROW else np.int32
    side_by_side = inside.reshape(-1, OF_LANE, LANES).transpose(0, 2, 1)
    firsts = starts * LANES
    if firsts[-1] > most:
        values = values[inside != PADDING]
        named = np.append(rows.counts, 0)[rows.order]  # order has -1 where there is no row
        firsts = np.concatenate([[0], named.sum(axis=1).cumsum()])
        if firsts[-1] > MOST:
            raise LayoutError(f"layout window: needs fewer than 2**31 weights; got {firsts[-1]}")
    tensors = {
        "starts": torch.from_numpy(starts.astype(np.int32)),
        "order": torch.from_numpy(rows.order.astype(np.int32)),
        "columns": torch.from_numpy(columns.astype(narrow)),
        "places": torch.from_numpy(np.ascontiguousarray(side_by_side)),
        "firsts": torch.from_numpy(firsts.astype(np.int32)),
        "values": torch.from_numpy(values.reshape(-1)),
    }
    return Packed(Window.name, (out, width), tensors)


class _Rows:
    """What is present in a weight, row after row, and the rows by descending counts."""

    def __init__(self, weight: Tensor) -> None:
        present = present_in(weight).numpy()
        row, column = present.nonzero()
        self.columns = np.append(column, NONE_LEFT)  # the last one of a lane with none left
        self.values = weight.detach().cpu().resolve_neg().numpy()[row, column]
        self.counts = present.sum(axis=1)
        self.order = _by_count(self.counts)
        self.last = max(0, weight.shape[1] - REACH)

    def steps(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For step after step: which slices take part (n,), those that had weights left where its
        window begins; the first column of each (n,); and which of `columns` each lane takes
        (n, 16), -1 for none."""
        which = np.arange(len(self.order))
        end = np.append(self.counts.cumsum(), 0)[self.order]  # order has -1 where there is no row
        at = end - np.append(self.counts, 0)[self.order]
        while True:
            lowest = self._next(at, end).min(axis=1)
            left = lowest < NONE_LEFT
            if not left.all():
                which, at, end, lowest = (v[left] for v in (which, at, end, lowest))
            if not len(which):
                return
            first = np.minimum(lowest // GRID * GRID, self.last)
            for _ in range(OF_WINDOW):
                taken = self._next(at, end) < (first + REACH)[:, None]
                yield which, first, np.where(taken, at, -1)
                at = at + taken

    def _next(self, at: np.ndarray, end: np.ndarray) -> np.ndarray:
        """The first column that each lane has left."""
        return self.columns[np.where(at < end, at, -1)]


def _joined(parts: list[np.ndarray], row: tuple[int, ...]) -> np.ndarray:
    return np.concatenate([np.zeros((0, *row), np.int64), *parts])


def _by_count(counts: np.ndarray) -> np.ndarray:
    """(slices, 16): the rows by descending counts, -1 where there is none."""
    order = np.full(-(-len(counts) // LANES) * LANES, -1)
    order[: len(counts)] = np.argsort(-counts, kind="stable")
    return order.reshape(-1, LANES)


def _columns(packed: Packed) -> tuple[np.ndarray, np.ndarray]:
    """Of every place (steps, 16): its column, and where in the window that is."""
    places = packed.tensors["places"]
    columns = columns_of(packed.tensors["columns"], places)
    return columns.numpy(), by_step(places).numpy()


def _check_firsts(packed: Packed, places: int) -> None:
    firsts, values = packed.tensors["firsts"], packed.tensors["values"]
    slices, count = len(packed.tensors["order"]), values.numel()
    right = values.dim() == 1 and count <= places
    check(right, packed, f"values must be (n,), of at most {places} places")
    check(firsts.shape == (slices + 1,), packed, f"firsts must have {slices + 1} entries")
    ends = int(firsts[0]) == 0 and int(firsts[-1]) == count
    check(ends, packed, f"firsts must run from 0 to {count}")
    check(bool((firsts[1:] >= firsts[:-1]).all()), packed, "firsts must not descend")


def _check_places(packed: Packed) -> None:
    width = packed.shape[1]
    columns, inside = _columns(packed)
    first, last = packed.tensors["columns"].numpy(), max(0, width - REACH)
    near = bool(((first >= 0) & (first <= last)).all())
    check(near, packed, f"columns must lie in [0, {last}]")
    # How many places lie before each slice that have values.
    starts, firsts = packed.tensors["starts"].numpy(), packed.tensors["firsts"].numpy()
    all_of_them = packed.tensors["values"].numel() == inside.size
    each = np.full(len(inside), LANES) if all_of_them else (inside != PADDING).sum(axis=1)
    before = np.concatenate([[0], each.cumsum()])[starts]
    counted = bool((before == firsts).all())
    check(counted, packed, "firsts must count the values before each slice")
    present = (_by_step(packed) != 0).numpy()
    known = bool(np.where(present, inside < REACH, inside == PADDING).all())
    check(known, packed, f"places must lie in [0, {REACH}), and padding at {PADDING}")
    found = columns.T[present.T]  # lane after lane
    check(bool((found < width).all()), packed, f"the columns of weights must lie in [0, {width})")
    row = lane_rows(packed).numpy().T[present.T]
    check(bool((row >= 0).all()), packed, "lanes without a row must be empty")
    ascend = (found[1:] > found[:-1]) | (row[1:] != row[:-1])  # so none is named twice
    check(bool(ascend.all()), packed, "the columns of a row must ascend")


LAYOUTS.register("window")(Window())
