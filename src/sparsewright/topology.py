"""Topology: where the present weights of one packed weight lie, and nothing else.

The places never change: a weight that moves gets another topology. So what kernels derive from them
is made once, and copies of a model share it. Operations name a topology by a number in a tensor,
which a compiled graph can hold as it does any tensor.
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable, Hashable
from typing import Any, TypeVar

import torch
from torch import Tensor

from .errors import LayoutError, StateError
from .watch import Watch

NARROW = 2**16
"""Most columns that 16-bit places can name."""
T = TypeVar("T")
_numbers = itertools.count(1)
_alive: weakref.WeakValueDictionary[int, Topology] = weakref.WeakValueDictionary()


class Topology:
    """The places of the present weights of a (rows, columns) matrix, in row-major order.

    starts: (rows + 1) int64, the first weight of every row. columns: (nnz) uint16 where there are
    at most 65536 columns, else int32; ascending in every row. number: int64 scalar tensor that
    operations take; `of` finds the topology by it. watch: what keeps the inputs and the gradients
    that pass, if anything does. owner: who holds it, as errors say it. Make one by `from_places` or
    `from_starts`.
    """

    def __init__(self, shape: tuple[int, int], starts: Tensor, columns: Tensor):
        self.shape = shape
        self.starts, self.columns = starts, columns
        self._derived: dict[Hashable, Any] = {}
        self.watch: Watch | None = None
        self.owner = ""
        self.number = torch.tensor(next(_numbers), device="cpu")  # whatever the default device is
        _alive[int(self.number)] = self

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
        narrow = torch.uint16 if width <= NARROW else torch.int32
        columns = torch.remainder(places, max(1, width)).to(narrow)
        ends = torch.arange(rows + 1, device=places.device) * width
        return cls((rows, width), torch.searchsorted(places, ends), columns)

    @classmethod
    def from_starts(cls, starts: Tensor, columns: Tensor, shape: tuple[int, int]) -> Topology:
        """From the first weight of every row and the columns, integers of any type; all checked.

        >>> Topology.from_starts(torch.tensor([0, 1, 2]), torch.tensor([1, 1]), (2, 2)).places()
        tensor([1, 3])
        """
        rows, width = shape
        for name, tensor in (("starts", starts), ("columns", columns)):
            if tensor.dim() != 1 or tensor.is_floating_point() or tensor.is_complex():
                raise LayoutError(
                    f"{name} must be integers of one dimension; got {tensor.dtype} of "
                    f"{tensor.dim()}"
                )
        starts, columns = starts.long(), columns.long()
        if len(starts) != rows + 1 or int(starts[0]) != 0 or int(starts[-1]) != len(columns):
            raise LayoutError(
                f"starts must be {rows + 1} numbers from 0 to the number of columns, "
                f"{len(columns)}; got {len(starts)}"
                + (f" from {int(starts[0])} to {int(starts[-1])}" if len(starts) else "")
            )
        counts = starts.diff()
        if bool((counts < 0).any()):
            raise LayoutError("starts must never descend")
        if len(columns) and not (int(columns.min()) >= 0 and int(columns.max()) < width):
            raise LayoutError(
                f"columns must lie in [0, {width}); got {int(columns.min())} to "
                f"{int(columns.max())}"
            )
        row = torch.repeat_interleave(torch.arange(rows, device=columns.device), counts)
        return cls.from_places(row * width + columns, (rows, width))

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

    def retire(self) -> None:
        """Let no operation find it any more: its weight has moved."""
        _alive.pop(int(self.number), None)
        self.release()

    def release(self) -> None:
        """Let go of all that is derived from it; what is needed again is made again."""
        self._derived = {}  # a copy may share the old one

    def __deepcopy__(self, memo: dict[int, Any]) -> Topology:
        """The same tensors, and all that is derived from them; but a number and a watch apart."""
        copy = Topology(self.shape, self.starts, self.columns)
        copy._derived = self._derived
        return copy

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
