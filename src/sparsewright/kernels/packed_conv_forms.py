"""The gradient of a convolution's input as convolutions of dy with the transposed, flipped weight.

With a stride of s the positions of dx fall into s * s phases, each of which meets weights of the
kernel that no other meets: the transposed convolution of Dumoulin and Visin ("A guide to
convolution arithmetic for deep learning", 2016) without its zeros between the positions of dy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..topology import Topology
from . import packed_forms
from .operation import Conv2d
from .packed_forms import ByCells, by_cells


def cells(topology: Topology) -> ByCells:
    """The form of a convolution's weight; for Topology.derived."""
    return by_cells(topology)


@dataclass(frozen=True)
class Taps:
    """The weights of a kernel, along one axis, that positions `phase` modulo the stride meet.

    Position phase + stride * t of dx meets weight first + each * j at position
    offset - dilation * j + t of dy, for j below `count`.
    """

    phase: int
    first: int
    each: int
    count: int
    dilation: int
    offset: int

    def padding(self, size: int, stride: int, size_of_dy: int) -> tuple[int, int, int]:
        """How many positions of dx, of `size` in all, are of this phase; zeros before and after dy
        (negative where positions of it meet none)."""
        own = -(-(size - self.phase) // stride)
        before = self.dilation * (self.count - 1) - self.offset
        return own, before, own + self.offset - size_of_dy


def taps_of(kernel: int, stride: int, padding: int, dilation: int) -> list[Taps]:
    """Every phase that meets any weight.

    >>> [(t.phase, t.first, t.count) for t in taps_of(3, 2, 1, 1)]
    [(0, 1, 1), (1, 0, 2)]
    """
    common = math.gcd(dilation, stride)
    each, found = stride // common, []
    for phase in range(stride):
        met = [k for k in range(kernel) if (phase + padding - dilation * k) % stride == 0]
        if met:
            offset = (phase + padding - dilation * met[0]) // stride
            found.append(Taps(phase, met[0], each, len(met), dilation // common, offset))
    return found


@dataclass(frozen=True)
class Phase:
    """The weights of one phase of dx: rows are channels of x, columns those of dy and taps."""

    vertical: Taps
    horizontal: Taps
    form: ByCells
    groups: int

    def of(self, dy: Tensor, values: Tensor, conv: Conv2d, size: Sequence[int]) -> Tensor | None:
        """dx at the positions of this phase, None if it is 0; size: (H, W) of dx."""
        taps = (self.vertical, self.horizontal)
        axes = [t.padding(size[i], conv.stride[i], dy.shape[2 + i]) for i, t in enumerate(taps)]
        for (own, before, after), n in zip(axes, dy.shape[2:], strict=True):
            if own <= 0 or n + before <= 0 or n + after <= 0:
                return None
        (_, top, bottom), (_, left, right) = axes
        padding = (top, left)
        if top != bottom or left != right or min(top, left) < 0:
            dy, padding = F.pad(dy, (left, right, top, bottom)), (0, 0)
        dilation = (self.vertical.dilation, self.horizontal.dilation)
        kernel = (self.vertical.count, self.horizontal.count)
        own_conv = Conv2d(kernel, (1, 1), padding, dilation, self.groups)
        return convolve(self.form, dy, values, None, own_conv)


@dataclass(frozen=True)
class InputGradient:
    """Makes the phases of a convolution; for Topology.derived."""

    conv: Conv2d

    def __call__(self, topology: Topology) -> Phases:
        conv, (out, width) = self.conv, topology.shape
        share, depth = out // conv.groups, width // conv.places
        row, column = topology.rows(), topology.columns.long()
        channel = column // conv.places + row // max(1, share) * depth
        y, x = column // conv.kernel[1] % conv.kernel[0], column % conv.kernel[1]
        axes = zip(conv.kernel, conv.stride, conv.padding, conv.dilation, strict=True)
        vertical, horizontal = (taps_of(*numbers) for numbers in axes)
        phases = []
        for v in vertical:
            for h in horizontal:
                met = _met(v, y) & _met(h, x)
                which = met.nonzero()[:, 0]
                if not len(which):
                    continue
                wide = share * v.count * h.count
                of_dy = row[which] % share * v.count + _flipped(v, y[which])
                key = (channel[which] * wide + of_dy * h.count + _flipped(h, x[which])).sort()
                own = Topology.from_places(key.values, (depth * conv.groups, wide))
                order = which[key.indices].to(torch.int32)
                phases.append(Phase(v, h, by_cells(own, order), conv.groups))
        return Phases(conv, tuple(phases))


def _met(taps: Taps, k: Tensor) -> Tensor:
    return (k >= taps.first) & ((k - taps.first) % taps.each == 0)


def _flipped(taps: Taps, k: Tensor) -> Tensor:
    return taps.count - 1 - (k - taps.first) // taps.each


@dataclass(frozen=True)
class Phases:
    """All phases of dx that meet weights; the others are 0."""

    conv: Conv2d
    phases: tuple[Phase, ...]

    def tensors(self) -> list[Tensor]:
        """What they hold beside W's topology."""
        return [t for phase in self.phases for t in phase.form.tensors()]

    def of(self, dy: Tensor, values: Tensor, shape: Sequence[int]) -> Tensor:
        """dy (N, out, H', W'), values in the order of W's topology -> dx of `shape`."""
        size, stride = shape[2:], self.conv.stride
        parts = [(phase, phase.of(dy, values, self.conv, size)) for phase in self.phases]
        some = [(phase, part) for phase, part in parts if part is not None]
        if stride == (1, 1) and some:
            return some[0][1]
        every = len(some) == stride[0] * stride[1]  # of the positions: none is left to be 0
        dx = dy.new_empty(shape) if every else dy.new_zeros(shape)
        for phase, part in some:
            rows = slice(phase.vertical.phase, None, stride[0])
            dx[:, :, rows, phase.horizontal.phase :: stride[1]] = part
        return dx


def convolve(form: ByCells, x: Tensor, values: Tensor, bias: Tensor | None, conv: Conv2d) -> Tensor:
    """x (N, C, H, W) -> (N, out, H', W')."""
    own = (form.out, form.chunk, form.block, *conv.numbers, 0, packed_forms.ISA)
    return torch.ops.sparsewright.csb_conv2d(x, *form.filled(values), None, bias, None, *own)


def outer(form: ByCells, dy: Tensor, x: Tensor, conv: Conv2d) -> Tensor:
    """dy (N, out, H', W'), x (N, C, H, W) -> (nnz)."""
    own = (form.starts, form.pairs, form.places, form.cuts, form.chunk, form.block)
    return torch.ops.sparsewright.csb_conv2d_outer(dy, x, *own, *conv.numbers, packed_forms.ISA)
