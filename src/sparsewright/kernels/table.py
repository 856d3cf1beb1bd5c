"""The table of kernels: what each one needs, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from ..core import Packed
from ..registry import Table


@dataclass(frozen=True)
class Prepared:
    """A weight as one kernel wants it: tensors by name and numbers, in the op's own order."""

    tensors: Mapping[str, Tensor]
    numbers: tuple[int, ...] = ()


@dataclass(frozen=True)
class Kernel:
    """One implementation of y = x W^T + bias on one layout.

    layout: a name of LAYOUTS, or "dense". refuses: () -> why it cannot serve on this
    machine, or None; (weight) -> also for this dense weight.
    prepare: (packed weight; for layout "dense" the weight, and the rows of x) -> Prepared.
    op: (x, *tensors, bias, *numbers) -> y. reserve: why `choose` leaves it out unless it is named.
    """

    name: str
    layout: str
    device: str
    refuses: Callable[..., str | None]
    prepare: Callable[[Packed | Tensor, int], Prepared]
    op: Callable[..., Tensor]
    reserve: str | None = None

    @property
    def about(self) -> str:
        """What the lists of parts say."""
        return f"y = x W^T + bias with W in layout {self.layout}, on {self.device}"

    def run(self, x: Tensor, prepared: Prepared, bias: Tensor | None) -> Tensor:
        """x (..., in) float32 -> y (..., out)."""
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
