"""Pruning without training: score the weights, keep the best (Han et al. 2015 with magnitude), at
once or in rounds that measure anew (Tanaka et al. 2020)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from .abilities import Measured, MeasuredAllocation, OfUnits
from .allocate import as_allocation
from .arguments import check_call, check_model, check_sparsity, seeded, whole
from .calibration import Calibration, Loss, check_loss, left_as_it_was
from .core import Allocate, Layer, Pattern, Score, View
from .errors import ConfigError
from .naming import Overrides, Skip
from .ranking import first_units
from .scores import as_score
from .selection import Candidates, LeftDense, candidates
from .solvers import Solver
from .solving import refuse_held, solve
from .summary import Summary, summarise


def prune(
    model: nn.Module,
    sparsity: float | None = None,
    pattern: str | Pattern = "unstructured",
    score: str | Score = "magnitude",
    allocate: str | Allocate = "uniform",
    *,
    skip: Skip = (),
    overrides: Overrides | None = None,
    on_misfit: str | Pattern = "error",
    data: Iterable[Any] | None = None,
    loss: Loss | None = None,
    rounds: int | None = None,
    solver: str | Solver | None = None,
    seed: int = 0,
) -> Summary:
    """Put the weights of least score to zero, in place, and return what was done.

    sparsity: over the layers made sparse, in [0, 1), met to the weight where units are single
    weights, else as nearly as whole units allow; None takes the pattern's own. In several rounds of
    whole units it may lie farther off, by a part of a unit of each layer: what a round has taken
    does not come back.
    score: a name of `sparsewright methods`, or an object. Those that measure the model take data:
    batches as a training loop has them, pairs (inputs, targets) or mappings of keyword arguments; a
    list or a DataLoader, as some go through it more than once. The model is measured in the mode
    (train or eval) that it is in; Wanda, OBD, SynFlow, OWL and solvers take eval. loss: a function
    (model, batch) -> scalar, without data (model) -> scalar; by default cross-entropy, or the
    output's own `loss`. "gradient" and "weight_gradient" take the model's own gradients if neither
    is given: call backward first.
    rounds: prune in so many steps, with a density of density^(k / rounds) after step k, and measure
    anew before each, absent weights left out; None takes the score's own, mostly 1. allocate:
    "uniform", the default here, leaves the first layer dense; `attach` takes "erk". Other arguments
    as for `attach`. Weights that are 0 already, a unit at a time, are the first to go. Whatever
    goes wrong, the model is left as it was. To train on under its masks: `attach(model, optimizer,
    method="static", masks=sw.masks_of(model))`.

    solver: "sparsegpt", "obc", "obs", "wanda" or an object, in a score's place: layer by layer it
    chooses what goes, and most change what stays, so that the outputs on data change least. It
    takes data, batches of inputs (see `solving.solve`, which has more to choose). "wanda" is a
    score and a solver: the score measures the unpruned model once, the solver each layer behind
    those that are pruned by then.

    >>> model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8), nn.Linear(8, 4))
    >>> prune(model, 0.5, "2:4").present
    80
    """
    check_model(model)
    if sparsity is not None:
        check_sparsity(sparsity)
    if solver is not None:
        if loss is not None or rounds is not None or as_score(score) != as_score("magnitude"):
            raise ConfigError(
                f"solver {solver!r} chooses by outputs on data; leave score, loss and rounds out"
            )
        return solve(
            model,
            sparsity,
            pattern,
            solver,
            data=data,
            allocate=allocate,
            skip=skip,
            overrides=overrides,
            on_misfit=on_misfit,
            seed=seed,
        )
    asked = _Asked(as_score(score), as_allocation(allocate), sparsity, data, loss, seed)
    count = asked.rounds(rounds)
    chosen = candidates(
        model,
        pattern=pattern,
        generator=seeded(seed),
        score=asked.score,
        skip=skip,
        overrides=overrides,
        on_misfit=on_misfit,
    )
    refuse_held(chosen.layers)
    before = [(layer, *_state(layer)) for layer in chosen.layers] if count > 1 else []
    try:
        for k in range(1, count + 1):
            layers, left_dense, units = asked.one_round(model, chosen, k, count)
            # All units before any weight changes: a layer that fails leaves the model as it was.
            for layer, kept in zip(layers, units, strict=True):
                layer.set_table(kept)
    except BaseException:
        for layer, there, values in before:
            layer.set_table(there)
            layer.storage.write(values)
        raise
    return summarise(layers, left_dense, sparsity)


@dataclass(frozen=True, eq=False)
class _Asked:
    """What decides which weights stay, in every round."""

    score: Score
    allocate: Allocate
    sparsity: float | None
    data: Iterable[Any] | None
    loss: Loss | None
    seed: int

    @property
    def measures(self) -> bool:
        """Whether data or a loss are of use."""
        measured = isinstance(self.score, Measured) or isinstance(self.allocate, MeasuredAllocation)
        return measured or self.score.needs_gradient

    def rounds(self, given: int | None) -> int:
        """How many; ConfigError for a number that makes no sense, or data that nothing looks at."""
        for name, value in (("data", self.data), ("loss", self.loss)):
            if value is not None and not self.measures:
                raise ConfigError(
                    f"score {self.score} and allocation {self.allocate} measure nothing on data; "
                    f"leave {name} out"
                )
        if self.loss is not None:
            check_call("loss", self.loss, ("model",) if self.data is None else ("model", "batch"))
        own = self.score.rounds if isinstance(self.score, Measured) else 1
        count = own if given is None else whole("rounds", given, least=1)
        if count > 1 and self.score.needs_gradient and self.data is None and self.loss is None:
            raise ConfigError(
                f"rounds measure gradients anew before each step, and score {self.score} was given "
                "neither data nor loss; give one of them, or 1 round"
            )
        return count

    def one_round(
        self, model: nn.Module, chosen: Candidates, k: int, count: int
    ) -> tuple[list[Layer], list[LeftDense], list[Tensor]]:
        """The layers made sparse, what is left dense, and the units that stay after round k."""
        loss = None if self.loss is None else _Seen(self.loss)
        calibration = Calibration(model, chosen.layers, self.data, loss)
        with left_as_it_was(model, chosen.layers, self.seed):
            score, allocate = self.score, self.allocate
            if isinstance(score, Measured):
                score = score.measured(calibration)
            if score.needs_gradient and not (self.data is None and self.loss is None):
                _take_gradients(calibration)
            score = _zeros_last(score, chosen.layers)
            if isinstance(allocate, MeasuredAllocation):
                allocate = allocate.measured(calibration, score)
            if loss is not None and not loss.called:
                raise ConfigError(f"score {self.score} measures no loss; leave loss out")
            with torch.no_grad():
                layers, left_dense = chosen.share_out(
                    self.sparsity, allocate, score, part=k / count if count > 1 else None
                )
                return layers, left_dense, [first_units(layer, score) for layer in layers]


class _Seen:
    """A loss that knows whether it was asked for."""

    def __init__(self, loss: Loss):
        self.loss, self.called = loss, False

    def __call__(self, *given: Any) -> Tensor:
        self.called = True
        return self.loss(*given)


def _take_gradients(calibration: Calibration) -> None:
    """The mean gradient of the loss over all batches in place of the model's own."""
    for parameter in calibration.model.parameters():
        parameter.grad = None
    for loss in calibration.losses():
        check_loss(loss)
        loss.backward()  # a sum: no score by gradient asks for its scale


def _state(layer: Layer) -> tuple[Tensor, Tensor]:
    """What is present, and its values in order."""
    return layer.present_units, layer.weight.detach().clone().reshape(-1)


def _zeros_last(score: Score, layers: Sequence[Layer]) -> Score:
    """The score, or if some unit is 0 already, the same with such units below all others."""
    return ZerosLast(score) if any(_has_zeros(layer) for layer in layers) else score


def _has_zeros(layer: Layer) -> bool:
    """Whether some unit that counts as present is 0 in all its weights."""
    values = layer.weight.detach()
    if values.shape != layer.shape or not layer.numel or bool((values != 0).all()):
        return False  # packed weights are present whatever they are
    return int((layer.pattern.fold((values != 0).float()) == 0).sum()) > 0


@dataclass(frozen=True, eq=False)
class ZerosLast:
    """A score under which units that are 0 already are the first to go."""

    score: Score
    sees: ClassVar[str] = "all"

    @property
    def needs_gradient(self) -> bool:
        return self.score.needs_gradient

    def __call__(self, layer: View) -> Tensor:
        return self.score(layer)

    def of_units(self, layer: View, pattern: Pattern) -> Tensor:
        if isinstance(self.score, OfUnits):
            table = self.score.of_units(layer, pattern)
        else:
            table = pattern.fold(self.score(layer))
        zero = pattern.fold((layer.weight.detach() != 0).float()) == 0
        return table.masked_fill(zero, -torch.inf)
