"""Topology: where the present weights of one packed weight lie, and nothing else.

It never changes: a weight whose topology moves gets another one. So what is derived from it (the
transposed places, what kernels want) is made once, and copies of a model share it. Operations name
a topology by a number in a tensor, which a compiled graph can hold as it does any tensor.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import LayoutError, StateError

NARROW = 2**16
"""Most columns that 16-bit places can name."""
T = TypeVar("T")
_numbers = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, Topology] = weakref.WeakValueDictionary()


class Topology:
    """The places of the present weights of a (rows, columns) matrix, in row-major order.

    starts: (rows + 1) int64, the first weight of every row. columns: (nnz) uint16 where there are
    at most 65536 columns, else int32; ascending in every row. number: int64 scalar tensor that
    operations take; `of` finds the topology by it. Make one by `from_places`.
    """

    def __init__(self, shape: tuple[int, int], starts: Tensor, columns: Tensor):
        self.shape = shape
        self.starts, self.columns = starts, columns
        self._derived: dict[Hashable, Any] = {}
        number = next(_numbers)
        self.number = torch.tensor(number)
        _alive[number] = self

    @classmethod
    def from_places(cls, places: Tensor, shape: tuple[int, int]) -> Topology:
        """From flat places (row * columns + column), int64, ascending, none twice.

        LayoutError if they are not so, or lie outside the matrix.

        >>> Topology.from_places(torch.tensor([1, 3]), (2, 2)).places()
        tensor([1, 3])
        """
        rows, width = shape
        if width > 2**31 - 1:
            raise LayoutError(f"a packed weight has at most {2**31 - 1} columns; got {width}")
        if places.dtype != torch.int64 or places.dim() != 1:
            raise LayoutError(
                f"places must be int64 of one dimension; got {places.dtype} of {places.dim()}"
            )
        if len(places) and not (int(places[0]) >= 0 and int(places[-1]) < rows * width):
            raise LayoutError(
                f"places must lie in [0, {rows * width}); got {int(places[0])} to {int(places[-1])}"
            )
        if bool((places[1:] <= places[:-1]).any()):
            raise LayoutError("places must ascend, none twice")
        row = torch.div(places, max(1, width), rounding_mode="floor")
        counts = torch.bincount(row, minlength=rows)
        starts = torch.zeros(rows + 1, dtype=torch.int64, device=places.device)
        torch.cumsum(counts, 0, out=starts[1:])
        narrow = torch.uint16 if width <= NARROW else torch.int32
        return cls((rows, width), starts, (places - row * width).to(narrow))

    @property
    def nnz(self) -> int:
        """Number of weights present."""
        return self.columns.shape[0]

    @property
    def device(self) -> torch.device:
        return self.columns.device

    @property
    def nbytes(self) -> int:
        """Bytes of the places and of all that is derived from them now."""
        tensors = [self.starts, self.columns]
        for derived in self._derived.values():
            tensors += derived.tensors()
        return sum(t.numel() * t.element_size() for t in tensors)

    def rows(self) -> Tensor:
        """(nnz) int64: the row of every weight."""
        index = torch.arange(self.shape[0], device=self.device)
        return torch.repeat_interleave(index, self.starts.diff())

    def places(self) -> Tensor:
        """(nnz) int64: row * columns + column of every weight, ascending."""
        return self.rows() * self.shape[1] + self.columns.long()

    def derived(self, make: Callable[[Topology], T]) -> T:
        """What `make` makes of the topology, made once. It must have `tensors()`, what it holds."""
        if make not in self._derived:
            self._derived[make] = make(self)
        return self._derived[make]

    def to(self, device: torch.device) -> Topology:
        """The same places on another device."""
        if self.device == device:
            return self
        return Topology(self.shape, self.starts.to(device), self.columns.to(device))

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        return self  # it never changes

    def __reduce__(self) -> tuple[Any, ...]:
        return Topology, (self.shape, self.starts, self.columns)


def of(number: Tensor) -> Topology:
    """The topology of a number; StateError if no module has it any more."""
    found = _alive.get(int(number))
    if found is None:
        raise StateError(
            "a packed weight's places changed between forward and backward: call backward before "
            "the optimizer's step"
        )
    return found


class Transposed:
    """The places of W^T: a topology, and which weight of W is each of its weights.

    order: (nnz) int64 or, up to 2**31 - 1 weights, int32.

    >>> t = Topology.from_places(torch.tensor([1, 2, 3]), (2, 2)).derived(Transposed)
    >>> t.topology.places(), t.order
    (tensor([1, 2, 3]), tensor([1, 0, 2], dtype=torch.int32))
    """

    def __init__(self, topology: Topology):
        rows, width = topology.shape
        row, column = topology.rows(), topology.columns.long()
        keys = column * rows + row
        ordered = keys.sort()
        self.topology = Topology.from_places(ordered.values, (width, rows))
        small = topology.nnz < 2**31
        self.order = ordered.indices.to(torch.int32) if small else ordered.indices

    def tensors(self) -> list[Tensor]:
        return [self.topology.starts, self.topology.columns, self.order]
