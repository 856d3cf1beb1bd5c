"""The table of kernels: what each one needs, and how it is called."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Packed
from ..layouts import FP32
from ..registry import Table


@dataclass(frozen=True)
class Prepared:
    """A weight as one kernel wants it: tensors by name and numbers, in the op's own order.

    A tensor that is None stands for scales that the values have none of. numbers: what follows the
    bias; None stands for a residual that is not there.
    """

    tensors: Mapping[str, Tensor | None]
    numbers: tuple[int | None, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One implementation of one operation on one layout, by default of y = x W^T + bias.

    layout: a name of LAYOUTS, or "dense". refuses: () -> why it cannot serve on this
    machine, or None; (weight) -> also for this dense weight.
    prepare: (packed weight; for layout "dense" the weight, and the rows of x) -> Prepared; for a
    convolution (weight, the shape of x, the Conv2d).
    op: (x, *tensors, bias, *numbers) -> y. reserve: why `choose` leaves it out unless it is named.
    operation: the name of what it computes (operation.py). values: the types of values that it
    computes with. batches: fewest and most rows, or images, for which `choose` tries it unless it
    is named.
    runs_code: whether a bound call runs the weight as instructions (csrc/csb_code.h), which takes
    more bytes than its layout, and gives other last bits than the op. chains_exactly: whether a
    call in a chain gives the bits of the op, however many rows of a batch go through it at once.
    """

    name: str
    layout: str
    device: str
    refuses: Callable[..., str | None]
    prepare: Callable[..., Prepared]
    op: Callable[..., Tensor]
    reserve: str | None = None
    operation: str = "linear"
    values: tuple[str, ...] = (FP32,)
    batches: tuple[int, float] = (0, math.inf)
    runs_code: bool = False
    chains_exactly: bool = True

    @property
    def about(self) -> str:
        """What the lists of parts say."""
        return f"{self.operation} with the weight in layout {self.layout}, on {self.device}"

    def refuses_values(self, values: str) -> str | None:
        """Why it cannot compute with values of a type, or None."""
        if values in self.values:
            return None
        return f"it computes with values in {', '.join(self.values)}; these are in {values}"

    def refuses_batch(self, batch: int) -> str | None:
        """Why it is not timed for so many rows, or images, or None."""
        low, high = self.batches
        if low <= batch <= high:
            return None
        known = f"{low} or more" if math.isinf(high) else f"{low} to {high}"
        return f"timed for batches of {known}; this one is of {batch}"

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x float32 -> y: (..., in) -> (..., out), or (N, C, H, W) -> (N, out, H', W')."""
        return self.op(x, *prepared.tensors.values(), bias, *prepared.numbers)


KERNELS: Table[Kernel] = Table("kernel", __package__)


def never(weight: Tensor | None = None) -> None:
    """A kernel that serves wherever torch does."""


def as_packed(weight: Packed | Tensor) -> Packed:
    if not isinstance(weight, Packed):
        raise TypeError(f"this kernel needs a packed weight; got {type(weight).__name__}")
    return weight


def as_dense(weight: Packed | Tensor) -> Tensor:
    if not isinstance(weight, Tensor):
        raise TypeError(f"a dense kernel needs a tensor; got {type(weight).__name__}")
    return weight
