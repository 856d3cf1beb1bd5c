"""nm: 16 rows side by side ("lanes"), and in every chunk of columns the same number of slots.

A slot holds one value and its place inside the chunk for each of the 16 rows, so a kernel reads
16 values and 16 bytes and looks the activations up in registers (DESIGN 7). Patterns N:M fill
every slot. Other weights leave slots empty: an empty slot has value 0 and place 255 and no
activation is read for it, so that an infinite activation of an absent weight does no harm.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..core import Packed
from ..errors import LayoutError
from ..present import present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix

LANES = 16
EMPTY = 255
LOOK_UP = 32
"""Columns that a register look-up holds: the chunk of choice."""
CHUNKS = (32, 24, 28, 20, 16, 48, 40, 64, 96, 80, 128, 160, 192, 256)
"""Chunks that are tried, the one that most M divide first; longer ones have no look-up."""
STEP = 4
"""Divides every one of CHUNKS."""
MAX_CHUNK = 256
WASTE = 0.5
"""Largest part of the slots that may be empty."""
DTYPES = {"values": STORED, "columns": (torch.uint8,)}


class NMLanes:
    """values (tiles, chunks, slots, 16), columns uint8 of the same shape; meta: chunk."""

    name = "nm"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        present = present_in(weight)
        return _waste(present, *_best_chunk(present))

    def pack(self, weight: Tensor, chunk: int | None = None) -> Packed:
        """
        chunk: columns per chunk, in [1, 256]; by default 32, or another with fewer empty slots.

        >>> packed = NMLanes().pack(torch.tensor([[0., 5.], [7., 0.]]), chunk=2)
        >>> packed.tensors["columns"].shape  # (tiles, chunks, slots, 16)
        torch.Size([1, 1, 1, 16])
        """
        reason = not_a_matrix(weight)
        if chunk is not None and not 1 <= chunk <= MAX_CHUNK:
            reason = f"chunk must be in [1, {MAX_CHUNK}]; got {chunk}"
        if reason:
            raise LayoutError(f"layout nm: {reason}")
        weight = weight.detach().cpu()
        present = weight != 0
        if chunk is not None:
            return _fill(weight, present, chunk, _most(present, chunk))
        chunk, slots = _best_chunk(present)
        reason = _waste(present, chunk, slots)
        if reason:
            raise LayoutError(f"layout nm: {reason}")
        return _fill(weight, present, chunk, slots)

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        values, columns, chunk = *_both(packed), packed.meta["chunk"]
        tile, at, _, lane = torch.nonzero(values != 0, as_tuple=True)
        weight = torch.zeros(packed.shape)
        present = values != 0
        weight[tile * LANES + lane, at * chunk + columns[present].long()] = values[present]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        check(sorted(packed.meta) == ["chunk"], packed, f"needs meta chunk; got {packed.meta!r}")
        chunk = packed.meta["chunk"]
        good = type(chunk) is int and 1 <= chunk <= MAX_CHUNK
        check(good, packed, f"chunk must be in [1, {MAX_CHUNK}]; got {chunk!r}")
        (out, width), (values, columns) = packed.shape, _both(packed)
        tiles, chunks = -(-out // LANES), -(-width // chunk)
        shape = tuple(values.shape)
        right = len(shape) == 4 and shape[:2] == (tiles, chunks) and shape[3] == LANES
        check(right, packed, f"values must be ({tiles}, {chunks}, slots, {LANES}); got {shape}")
        few = shape[2] <= chunk
        check(few, packed, f"a chunk of {chunk} columns has at most {chunk} slots; got {shape[2]}")
        same = tuple(columns.shape) == shape
        check(same, packed, f"columns must have the shape of values; got {tuple(columns.shape)}")
        _check_places(packed, values, columns, chunk)


def _check_places(packed: Packed, values: Tensor, columns: Tensor, chunk: int) -> None:
    out, width = packed.shape
    if not values.numel():
        return
    present, places = values != 0, columns.to(torch.int16)
    widths = torch.full((values.shape[1],), chunk, dtype=torch.int16)
    widths[-1] = width - (values.shape[1] - 1) * chunk
    inside = places < widths[:, None, None]
    check(bool((inside | ~present).all()), packed, "a place lies outside of its chunk")
    check(bool((present | (places == EMPTY)).all()), packed, f"empty slots must have place {EMPTY}")
    rows = torch.arange(values.shape[0] * LANES).view(-1, 1, 1, LANES)
    check(not bool((present & (rows >= out)).any()), packed, f"rows beyond {out} must be empty")
    # Present slots come first and their places ascend, so none is named twice.
    before, after = places[:, :, :-1], places[:, :, 1:]
    later = torch.where(present[:, :, 1:], present[:, :, :-1] & (after > before), True)
    check(bool(later.all()), packed, "the places of a row must ascend within a chunk")


def _both(packed: Packed) -> tuple[Tensor, Tensor]:
    return packed.tensors["values"], packed.tensors["columns"]


def _best_chunk(present: Tensor) -> tuple[int, int]:
    """32 if hardly a slot would be empty, else the chunk with the fewest slots; and its slots."""
    most = _most(present, LOOK_UP)
    if _all_slots(present, LOOK_UP, most) * 0.9 <= int(present.sum()):
        return LOOK_UP, most
    fours = _counts(present, STEP)  # every candidate is a multiple: count single weights once
    fit = [c for c in CHUNKS if c <= max(present.shape[1], LOOK_UP)]
    slots = {c: int(_counts(fours, c // STEP).max()) for c in fit}
    best = min(fit, key=lambda c: _all_slots(present, c, slots[c]))  # the first among equals
    return best, slots[best]


def _all_slots(present: Tensor, chunk: int, slots: int) -> int:
    """Slots of the whole weight, without the lanes that only fill the last tile of rows."""
    return slots * -(-present.shape[1] // chunk) * present.shape[0]


def _waste(present: Tensor, chunk: int, slots: int) -> str | None:
    """Why so many empty slots are not worth it, or None."""
    total, room = int(present.sum()), _all_slots(present, chunk, slots)
    if room * (1 - WASTE) <= total:
        return None
    return f"{1 - total / room:.0%} of the slots would be empty; at most {WASTE:.0%} may be"


def _most(present: Tensor, chunk: int) -> int:
    """The most weights that any row has in any chunk."""
    return int(_counts(present, chunk).max()) if present.numel() else 0


def _counts(table: Tensor, chunk: int) -> Tensor:
    """(out, in) -> (out, chunks): sums over every `chunk` columns, at most 256 each."""
    padded = F.pad(table.to(torch.int16), (0, -table.shape[1] % chunk))
    return padded.view(table.shape[0], -1, chunk).sum(dim=2, dtype=torch.int16)


def _fill(weight: Tensor, present: Tensor, chunk: int, slots: int) -> Packed:
    """Every present weight goes to (row tile, chunk, its rank in the chunk, row in the tile)."""
    out, width = weight.shape
    shape = (-(-out // LANES), -(-width // chunk), slots, LANES)
    values, columns = torch.zeros(shape), torch.full(shape, EMPTY, dtype=torch.uint8)
    row, column = present.nonzero(as_tuple=True)
    at = column // chunk
    if row.numel():
        group = row * shape[1] + at  # ascends, so a weight's rank is its distance to the first
        first = torch.cat([torch.ones(1, dtype=torch.bool), group[1:] != group[:-1]])
        starts = first.nonzero()[:, 0]
        rank = torch.arange(len(group)) - starts[first.cumsum(0) - 1]
        slot = ((row // LANES * shape[1] + at) * slots + rank) * LANES + row % LANES
        values.view(-1)[slot] = weight[present]
        columns.view(-1)[slot] = (column - at * chunk).to(torch.uint8)
    return Packed("nm", (out, width), {"values": values, "columns": columns}, {"chunk": chunk})


LAYOUTS.register("nm")(NMLanes())
