"""What a method or a score may be able to do besides what its protocol in core.py asks of all.

Each ability is a protocol of its own: whoever has its functions has the ability, and the
Sparsifier or `prune` asks for it. A method without any says which units are present, and when that
changes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor, nn

from .calibration import Calibration
from .core import Allocate, Layer, Method, Pattern, Score, View, Wish


@runtime_checkable
class Measured(Protocol):
    """A score that must look at the model, or at data, before it can judge.

    rounds: in how many steps to prune, measuring anew before each (SynFlow's 100); mostly 1.
    """

    @property
    def rounds(self) -> int: ...

    def measured(self, calibration: Calibration) -> Score:
        """A score that knows what was found, for views of the calibration's layers by name.

        The model's values and hooks are left as they were. `prune` calls it within
        `calibration.left_as_it_was`, which gives back gradients, buffers and modes.
        """


@runtime_checkable
class OfUnits(Protocol):
    """A score of whole units that is not the sum over their weights: a norm, the square of a sum.

    It is always shown the whole weight; its own call gives the scores of single weights.
    """

    def of_units(self, layer: View, pattern: Pattern) -> Tensor:
        """(groups, units) score of every unit of the pattern; higher is better."""


@runtime_checkable
class MeasuredAllocation(Protocol):
    """An allocation that must look at the model, or at data, before it can share out."""

    def measured(self, calibration: Calibration, score: Score) -> Allocate:
        """An allocation that knows what was found about the calibration's layers, by name.

        score: what weights are ranked by, measured already. The model is left as for a score.
        """


@runtime_checkable
class Meets(Protocol):
    """A method that must know the model, not only its weights one by one."""

    def meet(self, model: nn.Module, layers: Sequence[Layer]) -> Method:
        """The same method for this model; called once, after `bind` and before `begin`."""


@runtime_checkable
class Rebudgets(Protocol):
    """A method that moves budget between layers."""

    def rebudget(self, layers: Sequence[Layer], step: int) -> None:
        """Set `layer.keep` of all layers of one optimizer, at every step that is due, before they
        are updated; the weights kept in all must be as many as before (budget.share_again), and
        layers without `may_share` keep what they have.

        Gradients are there as for `update`.
        """


@runtime_checkable
class Blind(Protocol):
    """A method that needs gradients, and must meet a budget in layers that have none, too."""

    def without_gradient(self, layer: Layer, step: int) -> Wish | None:
        """In place of `update`, for a layer that is frozen or took no part in the step."""


@runtime_checkable
class Shapes(Protocol):
    """A method that acts at every optimizer step: it adds to gradients, or forms weights.

    keeps_absent: absent weights live on. Then the optimizer steps the *latent* weights, all of
    them, which lie in `layer.memory["latent"]` between steps, while the model computes with what
    `after_step` forms of them. Gradients are dense, an update leaves values and optimizer state
    as they are, and storage must be masked. Without it, absent weights are 0 at all times.
    """

    @property
    def keeps_absent(self) -> bool: ...

    def before_step(self, layer: Layer, step: int) -> None:
        """Between backward and the optimizer's step, before `update`: change `layer.weight.grad`
        in place. `layer.weight` holds the latent weights if there are any. Under LBFGS it is
        called once for every evaluation."""

    def after_step(self, layer: Layer, step: int) -> Tensor | None:
        """After the optimizer's step: change `layer.weight` in place (absent weights are put to 0
        by others). With latent weights these were saved, and what is left in `layer.weight` is
        what the model computes with; then it is also called before every evaluation of LBFGS. It
        is called before the first step, too, with step -1. It may return the units that are present
        from now on, as `begin` does."""


@runtime_checkable
class ReadsSome(Protocol):
    """A method that reads the gradients of fewer absent weights than it could: for the account of
    FLOPs alone, since gradients are kept as `needs_gradient`, `due` and `keeps_absent` say."""

    def reads_absent(self, layer: Layer, step: int) -> int:
        """Absent weights of a layer whose gradients of this step the method's definition takes."""


@runtime_checkable
class Gates(Protocol):
    """A method whose weights are random in training; what rests between steps is not."""

    def before_forward(self, layer: Layer, step: int) -> None:
        """Before the first forward of every step in training mode: write drawn weights into
        `layer.weight`, in place, and what `before_step` must know of them into `layer.memory`.
        Later forwards of the step see the same draw, whoever evaluates in between."""
