"""Where the weights of a layer are kept: what every storage of them can do (storage.py: masked;
packed_storage.py: packed), so that nothing else need know which one it is."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn
from torch.optim import Optimizer

from .errors import StateError

if TYPE_CHECKING:
    from .core import Exchange, Pattern, Shape
    from .replicas import Replicas
    from .weights import Weight


class Offers(Protocol):
    """The best absent units of one group, while the scores of all pass by in order."""

    def take(self, scores: Tensor) -> bool:
        """Look at the next scores; whether it could be done: not if one is NaN."""

    def best(self) -> Tensor:
        """The best units, flat, ascending; all that there are where they are fewer."""


class Storage(Protocol):
    """The present weights of a layer, and their values."""

    pattern: Pattern

    @property
    def weight(self) -> nn.Parameter:
        """What the optimizer steps: the dense weight with its zeros, or the present values."""

    @property
    def shape(self) -> Shape:
        """Of the dense weight."""

    @property
    def holds_absent(self) -> bool:
        """Whether absent weights have a place of their own in `weight`."""

    def check(self, name: str) -> None:
        """StateError if the present units are others than these, changed behind its back."""

    def units(self) -> Tensor:
        """Flat present units (group * units + unit), int64, ascending."""

    def count(self) -> int:
        """Number of present units."""

    def table(self) -> Tensor:
        """(groups, units) bool, True = present; a tensor of its own."""

    def mask(self) -> Tensor:
        """Bool in the dense weight's shape, True = present; a tensor of its own."""

    @property
    def absent(self) -> Tensor:
        """Bool in the dense weight's shape, True = absent; not to be changed."""

    def find(self, units: Tensor) -> Tensor:
        """(n) int64, which of the present units each of these is, -1 for none of them."""

    def present(self) -> tuple[Tensor, Tensor | None]:
        """Values and gradients of the present weights, in order of their places."""

    def take(self, places: Tensor) -> tuple[Tensor, Tensor | None]:
        """Values and gradients at flat places, all present."""

    def offers(self, scores: Tensor, count: int, leaves: Tensor, last: bool) -> Offers:
        """What finds the best absent units of one group while scores like these pass by; those
        present units that leave are among them, or come last."""

    def gradient_at(self, places: Tensor) -> Tensor:
        """Gradients at flat places, absent ones too (see has_gradient)."""

    def tiles(self, rows: int, gradients: bool) -> Iterator[tuple[Tensor, Tensor | None, Tensor]]:
        """(weight, gradient, mask) of so many rows at a time, dense, in order."""

    def rows(self) -> Tensor:
        """The row of the (shape[0], rest) matrix that each present weight lies in, ascending."""

    def input_counts(self) -> Tensor:
        """Present weights along the second axis of the dense weight: its inputs or channels."""

    def reached(self, alive: Tensor | None, is_lookup: bool) -> Tensor:
        """Bool, which outputs a present weight joins to an input that is alive (None: to any)."""

    def has_gradient(self) -> bool:
        """Whether gradients of absent weights are there."""

    def write(self, values: Tensor) -> None:
        """Put a value, in order of their places, into every present weight."""

    def place(self, units: Tensor, optimizer: Optimizer | None = None) -> None:
        """Other present units, ascending; a weight that stays keeps its value, a new one is 0.

        The optimizer's state, if it has any, follows weights that are packed.
        """

    def select(self, units: Tensor) -> None:
        """Other present units, a (groups, units) bool table or flat and ascending; no value,
        gradient or state changes (masked only)."""

    def release(self) -> None:
        """Before and after a move: let go of what a step makes anew when it first needs it, and of
        memory that lies free."""

    def move(self, exchange: Exchange, optimizer: Optimizer) -> None:
        """The same in training: units that come take their values and the optimizer state of a
        first step, no gradient, and those that leave none behind."""

    def is_held(self) -> bool:
        """Whether a Sparsifier watches the weight."""

    def watch(self, wanted: Callable[[], bool], replicas: Replicas) -> Any:
        """Begin to train sparse: gradients of absent weights are kept when wanted() as they
        arrive, else not. replicas: the processes that train together. Returns what
        `.remove()` ends."""

    def mask_gradient(self) -> None:
        """Drop the gradients of absent weights."""

    def settle(self) -> None:
        """After a step: absent weights are exactly 0."""

    def follow(self, copy: Weight) -> None:
        """Give a copy of the weight (a moving average) the places of this one."""


def refuse_second(held: bool) -> None:
    """StateError if another Sparsifier holds the weight: the two would undo each other's masks."""
    if held:
        raise StateError("attached already: call detach() on the Sparsifier that holds it first")
