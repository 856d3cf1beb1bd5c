"""csb: blocks of rows by chunks of columns (compressed sparse blocks, after Buluç, Fineman, Frigo,
Gilbert and Leiserson, 2009), one byte for the place inside a chunk, rows in pairs.

A kernel for batches keeps the activations of one chunk in the nearest cache while a block's rows
pass over them. Inside a block and chunk the rows are sorted by their counts and joined two by two,
so the ends of their loops can be foreseen. Padding has value 0 and place 255, where the kernel
keeps a zero, so that no activation of an absent weight is read.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ..core import Packed
from ..errors import LayoutError
from ..present import present_in
from . import LAYOUTS, STORED, check, check_form, not_a_matrix
from ._packing import compiled, holds

EMPTY = 255
"""The place of padding, so a chunk has at most as many columns."""
NARROW = 160
"""Most columns of a chunk, by default, where vectors have 16 floats."""
BLOCK, SMALL_BLOCK = 128, 64
"""Most rows of a block, and fewest where there are more: fewer pay more often for a chunk."""
SHARES = 4
"""Blocks come in multiples of it, where there are enough, so that threads get even shares."""
WASTE = 0.5
"""Largest part of the places that may be padding."""
DTYPES = {
    "starts": (torch.int32,),
    "pairs": (torch.int32,),
    "columns": (torch.uint8,),
    "values": STORED,
}


class Csb:
    """starts (blocks * chunks + 1, 2) int32: first pair, first step of every block and chunk;
    pairs int32: row of the block, its partner << 8, steps << 16; columns (steps, 2) uint8; values
    (steps, 2); meta: chunk, block. A partner of `block` rows stands for none."""

    name = "csb"

    def refuses(self, weight: Tensor) -> str | None:
        reason = not_a_matrix(weight)
        if reason:
            return reason
        chunk, block = _packed_sizes(weight.shape)
        counted = compiled("csb_steps", weight)
        steps, total = counted(chunk, block) if counted else _steps(weight, chunk, block)
        room = steps * 2
        if room * (1 - WASTE) <= total:
            return None
        return f"{1 - total / room:.0%} of the places would be padding; at most {WASTE:.0%} may be"

    def pack(self, weight: Tensor, chunk: int | None = None, block: int | None = None) -> Packed:
        """
        chunk: columns, in [1, 255]; block: rows, in [1, 128]; by default what fits the weight.

        >>> packed = Csb().pack(torch.eye(4))  # one step of padding beside each weight
        >>> packed.tensors["columns"][:2].tolist()
        [[0, 1], [255, 255]]
        """
        reason = not_a_matrix(weight)
        if reason:
            raise LayoutError(f"layout csb: {reason}")
        own = _packed_sizes(weight.shape)
        chunk, block = own[0] if chunk is None else chunk, own[1] if block is None else block
        if not (1 <= chunk <= EMPTY and 1 <= block <= BLOCK):
            raise LayoutError(
                f"layout csb: needs chunk in [1, {EMPTY}] and block in [1, {BLOCK}]; got "
                f"{chunk} and {block}"
            )
        packed = compiled("csb_pack", weight)
        if packed is None:
            return _fill(weight.detach().cpu(), chunk, block)
        tensors = dict(zip(DTYPES, packed(chunk, block), strict=True))
        shape = (weight.shape[0], weight.shape[1])
        return Packed(self.name, shape, tensors, {"block": block, "chunk": chunk})

    def unpack(self, packed: Packed) -> Tensor:
        self.validate(packed)
        rows, chunks = _places_of(packed)
        values, columns = packed.tensors["values"], packed.tensors["columns"].long()
        present = values != 0
        weight = torch.zeros(packed.shape)
        column = chunks[:, None] * packed.meta["chunk"] + columns
        weight[rows[present], column[present]] = values[present]
        return weight

    def validate(self, packed: Packed) -> None:
        check_form(packed, self.name, DTYPES)
        wanted = sorted(packed.meta) == ["block", "chunk"]
        check(wanted, packed, f"needs meta block and chunk; got {packed.meta!r}")
        chunk, block = packed.meta["chunk"], packed.meta["block"]
        good = type(chunk) is int and 1 <= chunk <= EMPTY
        check(good, packed, f"chunk must be in [1, {EMPTY}]; got {chunk!r}")
        good = type(block) is int and 1 <= block <= BLOCK
        check(good, packed, f"block must be in [1, {BLOCK}]; got {block!r}")
        starts, pairs, columns, values = (packed.tensors[n] for n in DTYPES)
        cells = -(-packed.shape[0] // block) * -(-packed.shape[1] // chunk)
        check(starts.shape == (cells + 1, 2), packed, f"starts must be ({cells + 1}, 2)")
        check(pairs.dim() == 1, packed, "pairs must have one dimension")
        right = values.dim() == 2 and values.shape[1] == 2 and columns.shape == values.shape
        check(right, packed, "values and columns must both be (steps, 2)")
        ends = starts[0].tolist() == [0, 0]
        ends = ends and starts[-1].tolist() == [pairs.shape[0], values.shape[0]]
        rule = f"starts must run from 0, 0 to {pairs.shape[0]}, {values.shape[0]}"
        check(ends, packed, rule)
        check(bool((starts[1:] >= starts[:-1]).all()), packed, "starts must not descend")
        if not holds("csb_holds", packed, DTYPES, chunk, block):
            _check_pairs(packed)
            _check_places(packed)


def _check_pairs(packed: Packed) -> None:
    block = packed.meta["block"]
    starts, pairs = packed.tensors["starts"].long(), packed.tensors["pairs"].long()
    steps, rows = pairs >> 16, torch.stack([pairs & 255, pairs >> 8 & 255])
    check(bool((pairs >= 0).all()), packed, "pairs must not be negative")
    check(bool((rows <= block).all()), packed, f"rows of a pair must lie in [0, {block}]")
    check(bool((steps % 2 == 0).all()), packed, "the steps of a pair must be even")
    # Every cell's pairs have the steps that its start says.
    total = torch.zeros(len(pairs) + 1, dtype=torch.int64)
    torch.cumsum(steps, 0, out=total[1:])
    check(bool((total[starts[:, 0]] == starts[:, 1]).all()), packed, "steps must fit the starts")
    cell = torch.repeat_interleave(torch.arange(len(starts) - 1), starts[:, 0].diff())
    key = (cell * (block + 1) + rows)[rows < block]
    once = key.unique().numel() == key.numel()
    check(once, packed, "a block's chunk must name a row once")


def _check_places(packed: Packed) -> None:
    (out, width), chunk = packed.shape, packed.meta["chunk"]
    values, places = packed.tensors["values"], packed.tensors["columns"].to(torch.int16)
    if not values.numel():
        return
    present = values != 0
    rows, chunks = _pairs_of(packed)
    steps = packed.tensors["pairs"].long() >> 16
    widths = (width - chunks * chunk).clamp(max=chunk).to(torch.int16)
    inside = torch.where(
        present, places < widths.repeat_interleave(steps)[:, None], places == EMPTY
    )
    rule = f"a place must lie inside its chunk, and padding at {EMPTY}"
    check(bool(inside.all()), packed, rule)
    block = packed.meta["block"]
    nowhere = ((rows >= out) | (rows < 0)).repeat_interleave(steps, dim=0)
    check(not bool((present & nowhere).any()), packed, f"rows of a block of {block} beyond {out}")
    first = torch.zeros(len(values) + 1, dtype=torch.bool)
    first[steps.cumsum(0)] = True
    later = torch.where(present[1:], present[:-1] & (places[1:] > places[:-1]), True)
    later |= first[1:-1, None]
    check(bool(later.all()), packed, "the places of a row must ascend within a chunk")


def _places_of(packed: Packed) -> tuple[Tensor, Tensor]:
    """The row of every place (steps, 2), -1 for none, and the chunk of every step."""
    rows, chunks = _pairs_of(packed)
    steps = packed.tensors["pairs"].long() >> 16
    return rows.repeat_interleave(steps, dim=0), chunks.repeat_interleave(steps)


def _pairs_of(packed: Packed) -> tuple[Tensor, Tensor]:
    """The rows of every pair (pairs, 2), -1 for none, and its chunk."""
    block = packed.meta["block"]
    starts, pairs = packed.tensors["starts"].long(), packed.tensors["pairs"].long()
    chunks = -(-packed.shape[1] // packed.meta["chunk"])
    cell = torch.repeat_interleave(torch.arange(len(starts) - 1), starts[:, 0].diff())
    local = torch.stack([pairs & 255, pairs >> 8 & 255], dim=1)
    rows = torch.where(local < block, cell[:, None] // max(1, chunks) * block + local, -1)
    return rows, cell % max(1, chunks)


def sizes(shape: Sequence[int]) -> tuple[int, int]:
    """Columns of a chunk, rows of a block.

    The last chunk may be short: rows without a weight in it cost nothing there.
    """
    out, width = shape
    shares = -(-max(1, -(-out // BLOCK)) // SHARES) * SHARES
    even = -(-out // shares)
    return min(max(1, width), EMPTY), min(BLOCK, max(SMALL_BLOCK, even + even % 2))


def _packed_sizes(shape: Sequence[int]) -> tuple[int, int]:
    """Those of a weight that is packed to be deployed. With AVX-512 a column's activations take
    twice the memory; even and narrower chunks of them fit the nearest cache too, and were faster,
    most of all for convolutions."""
    chunk, block = sizes(shape)
    if torch.backends.cpu.get_cpu_capability() == "AVX512":
        width = max(1, shape[1])
        chunk = -(-width // -(-width // NARROW))
    return chunk, block


class Pairs:
    """Rows of like counts joined two by two: rows (blocks, chunks, pairs, 2) of a block, steps
    (blocks, chunks, pairs). counts: weights (blocks, chunks, rows of a block), even in number."""

    def __init__(self, counts: Tensor):
        blocks, chunks, even = counts.shape
        ranked = counts.sort(dim=2, stable=True)
        self.counts = counts
        self.rows = ranked.indices.view(blocks, chunks, even // 2, 2)
        most = ranked.values.view(blocks, chunks, even // 2, 2).amax(dim=3)
        self.steps = most + most % 2
        self.used = self.steps > 0

    def starts(self) -> Tensor:
        """LayoutError if they do not fit 32 bits."""
        blocks, chunks, _ = self.steps.shape
        total = int(self.steps.sum())
        if total > torch.iinfo(torch.int32).max:
            raise LayoutError(f"layout csb: needs fewer than 2**31 steps; got {total}")
        starts = torch.zeros(blocks * chunks + 1, 2, dtype=torch.int64)
        starts[1:, 0] = self.used.sum(dim=2).flatten().cumsum(0)
        starts[1:, 1] = self.steps.sum(dim=2).flatten().cumsum(0)
        return starts.to(torch.int32)

    def coded(self) -> Tensor:
        """The layout's `pairs`."""
        coded = self.rows[..., 0] | self.rows[..., 1] << 8 | self.steps << 16
        return coded[self.used].to(torch.int32)


def _join(present: Tensor, chunk: int, block: int) -> Pairs:
    out, width = present.shape
    blocks, chunks = -(-out // block), -(-width // chunk)
    grid = torch.zeros(blocks * block, chunks * chunk, dtype=torch.bool)
    grid[:out, :width] = present
    few = grid.view(blocks, block, chunks, chunk).sum(dim=3, dtype=torch.int32)  # faster than int64
    counts = few.long().transpose(1, 2)
    return Pairs(torch.nn.functional.pad(counts, (0, block % 2)))


def _steps(weight: Tensor, chunk: int, block: int) -> tuple[int, int]:
    """How many there would be, padding counted, and the weights that are present."""
    joined = _join(present_in(weight), chunk, block)
    return int(joined.steps.sum()), int(joined.counts.sum())


def _fill(weight: Tensor, chunk: int, block: int) -> Packed:
    """`Csb.pack` in plain torch, which the compiled way does again, faster."""
    out, width = weight.shape
    present = present_in(weight)
    pairs = _join(present, chunk, block)
    chunks, total = pairs.steps.shape[1], int(pairs.steps.sum())
    # Where every row's weights of every chunk begin: (blocks, chunks, rows of a block).
    first = (pairs.steps.flatten().cumsum(0) - pairs.steps.flatten()).view(pairs.steps.shape)
    begin = torch.empty_like(pairs.counts)
    places = first[..., None] * 2 + torch.arange(2)
    begin.scatter_(2, pairs.rows.flatten(2), places.flatten(2))
    # From here on the weights lie by rows, and the cells of a row and a chunk with them.
    counts, begin = (
        t.transpose(1, 2)[:, :block].flatten(0, 1)[:out] for t in (pairs.counts, begin)
    )
    before = counts.flatten().cumsum(0) - counts.flatten()
    corner = torch.arange(out)[:, None] * width + torch.arange(chunks) * chunk
    at = torch.from_numpy(np.flatnonzero(present))  # faster than torch's
    place = at - corner.flatten().repeat_interleave(counts.flatten())
    slot = (begin.flatten() - 2 * before).repeat_interleave(counts.flatten())
    slot += 2 * torch.arange(len(at))  # its rank in its cell is its rank of all, less those before
    values = torch.zeros(total * 2)
    columns = torch.full((total * 2,), EMPTY, dtype=torch.uint8)
    values.scatter_(0, slot, weight.flatten().index_select(0, at))
    columns.scatter_(0, slot, place.to(torch.uint8))
    tensors = {
        "starts": pairs.starts(),
        "pairs": pairs.coded(),
        "columns": columns.view(total, 2),
        "values": values.view(total, 2),
    }
    return Packed("csb", (out, width), tensors, {"block": block, "chunk": chunk})


LAYOUTS.register("csb")(Csb())
