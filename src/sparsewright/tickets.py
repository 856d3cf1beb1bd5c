"""Lottery tickets: train, prune a part, rewind the rest to where it was, and again.

Iterative magnitude pruning (Frankle, Carbin, ICLR 2019); rewound to an early step (Frankle,
Dziugaite, Roy, Carbin, ICML 2020); or the learning rate alone (Renda, Frankle, Carbin, ICLR 2020).
"""

from __future__ import annotations

import copy
import fnmatch
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .abilities import Measured
from .arguments import check_mapping, check_model, number, optimizers_of, seeded, told, whole
from .attach import attach
from .budget import Budgeted
from .core import Layer, Method, Pattern, Score
from .errors import ConfigError, StateError, UnknownNameError
from .masks import Masks, check_masks
from .methods._share import SCOPES, Scope, share_by_rank
from .naming import Overrides, Skip
from .ranking import best_units
from .scores import as_score
from .selection import select_layers
from .sparsifier import Sparsifier

Rewind = int | Literal["init", "lr"]
FIRST_DENSE = "round 0, which trains dense, "


@dataclass(frozen=True, eq=False)
class Ticket:
    """One round's network: which weights it has; the model has their values, the others at 0.

    round: prunings before it. masks: layer -> bool in the weight's shape, True = present.
    start: the step that its training begins at: k where weights were rewound to step k, else 0.
    sparsity: of the layers that tickets are drawn in.
    """

    round: int
    masks: dict[str, Tensor]
    start: int
    sparsity: float
    _of: Tickets

    def attach(
        self,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        method: str | Method = "static",
        **options: Any,
    ) -> Sparsifier:
        """Hold the masks while any loop trains the model with a new optimizer; see `sw.attach`.

        options: those of `sw.attach` but for sparsity, pattern, and what selects layers, which are
        the Tickets' own. StateError for an optimizer that has been used in an earlier round.
        """
        return self._of._attach(self, optimizer, method, options)


class Tickets:
    """Go through the rounds of iterative pruning around a training loop of one's own.

    rounds: prunings, 0 or more; a first round trains the network dense, so that `rounds + 1`
    tickets come. fraction: of the present weights of a layer, pruned after each round, in [0, 1).
    output: factor on the fraction in the model's last layer; the paper's is a half. fractions:
    {glob: fraction} for layers that have one of their own. rewind: "init" puts every parameter and
    buffer back to what it was when Tickets was made; a step k to what it was after k steps of
    round 0; "lr" keeps them, and only the learning rate's schedule is gone through again. scope:
    weights are ranked within a "layer", or over all layers ("global") but those with a fraction of
    their own, the last among them unless output is 1. score: what is worth keeping. pattern, skip,
    overrides, on_misfit: as for `sw.attach`.

    In round n a layer keeps (1 - fraction)^n of its weights, to the unit; the public code of the
    paper prunes one weight more. OpenLTH's way is scope="global" with output=0. A loop that was
    left goes on with the round it was in, from its beginning. The masks go with another network of
    the same shape, say one with other first values: `sw.attach(twin, optimizer, method="static",
    masks=ticket.masks)`. Raises ConfigError, StateError or UnknownNameError.

    >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> for ticket in Tickets(model, rounds=2, fraction=0.5):
    ...     optimizer = torch.optim.SGD(model.parameters(), 0.1)
    ...     _ = ticket.attach(optimizer)
    ...     model(torch.randn(4, 64)).square().sum().backward()
    ...     optimizer.step()
    ...     print(ticket.round, round(ticket.sparsity, 3))
    0 0.0
    1 0.472
    2 0.715
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        rounds: int,
        fraction: float = 0.2,
        output: float = 0.5,
        fractions: Mapping[str, float] | None = None,
        rewind: Rewind = "init",
        scope: Scope = "layer",
        score: str | Score = "magnitude",
        pattern: str | Pattern = "unstructured",
        skip: Skip = (),
        overrides: Overrides | None = None,
        on_misfit: str | Pattern = "error",
        seed: int = 0,
    ):
        check_model(model)
        if fractions is not None:
            check_mapping("Tickets: fractions", fractions, "{glob: fraction}")
        _check(rounds, rewind, scope, {"fraction": fraction, **(fractions or {})}, output)
        self.model, self.rounds, self.rewind, self.scope = model, rounds, rewind, scope
        self.score, self.round = as_score(score), 0
        if isinstance(self.score, Measured):
            raise ConfigError(
                f"Tickets: score {self.score} measures the model on data, and tickets are drawn by "
                "what weights are after training: take 'magnitude'"
            )
        self._kinds: dict[str, Any] = {
            "pattern": pattern,
            "skip": skip,
            "overrides": overrides,
            "on_misfit": on_misfit,
        }
        self._generator = seeded(seed)
        layers = self._layers(None)
        self.masks = {layer.name: layer.mask for layer in layers}
        self._rates, self._own = _rates(layers, fraction, output, fractions or {})
        self._kept = None if rewind == "lr" or self._awaits else _copy_of(model)
        self._sparse: Sparsifier | None = None
        self._hooks: list[Any] = []

    def __iter__(self) -> Iterator[Ticket]:
        while True:
            self._apply()
            yield Ticket(self.round, dict(self.masks), self._start, self.sparsity, self)
            if self.round >= self.rounds:
                self._let_go()
                return
            self._next()

    @property
    def sparsity(self) -> float:
        """Fraction of weights that the masks of this round leave out."""
        whole = sum(mask.numel() for mask in self.masks.values())
        return 1.0 - sum(int(mask.sum()) for mask in self.masks.values()) / max(1, whole)

    def state_dict(self) -> dict[str, Any]:
        """The round, its masks and what is rewound to: tensors and plain values.

        With it an interrupted search goes on from the beginning of the round it was in. Where
        nothing is rewound to (rewind="lr", or before step k) that takes the model's state at that
        beginning too.
        """
        return {
            "round": self.round,
            "masks": dict(self.masks),
            "kept": self._kept,
            "generator": self._generator.get_state(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict()`; the next iteration begins at its round."""
        check_mapping("the state of Tickets", state, "what state_dict() gave")
        if lacks := sorted({"round", "masks", "kept", "generator"} - set(state)):
            raise StateError(
                f"the state of Tickets must be what state_dict() gave; it lacks {lacks}"
            )
        check_masks(self.model, state["masks"])
        if set(state["masks"]) != set(self.masks):
            raise StateError(
                f"the state has masks of {sorted(state['masks'])}; these tickets are drawn in "
                f"{sorted(self.masks)}"
            )
        self._let_go()
        self.round, self._kept = int(state["round"]), state["kept"]
        device = {name: mask.device for name, mask in self.masks.items()}
        self.masks = {name: mask.to(device[name]) for name, mask in state["masks"].items()}
        self._generator.set_state(state["generator"].cpu())

    # what a round does

    @property
    def _awaits(self) -> bool:
        """Whether what is rewound to is still to be met, in round 0."""
        return self.round == 0 and isinstance(self.rewind, int) and self.rewind > 0

    @property
    def _start(self) -> int:
        return self.rewind if self.round and isinstance(self.rewind, int) else 0

    def _layers(self, masks: Masks | None) -> list[Layer]:
        layers, _ = select_layers(
            self.model,
            sparsity=0.0 if masks is None else None,
            allocate="uniform_all",
            score=self.score,
            generator=self._generator,
            masks=masks,
            **self._kinds,
        )
        for layer in layers:
            if layer.pattern.sparsity is not None or not layer.storage.holds_absent:
                raise ConfigError(
                    f"layer {layer.name!r}: tickets need masked weights under a pattern that "
                    f"holds many sparsities; got {type(layer.storage).__name__} and {layer.pattern}"
                )
        return layers

    def _attach(
        self,
        ticket: Ticket,
        optimizer: Optimizer | Sequence[Optimizer],
        method: str | Method,
        options: dict[str, Any],
    ) -> Sparsifier:
        if ticket.round != self.round:
            raise StateError(
                f"the ticket is of round {ticket.round}, and the tickets are at {self.round}"
            )
        if fixed := sorted(set(options) & (set(self._kinds) | {"masks", "sparsity"})):
            raise ConfigError(
                f"{', '.join(fixed)}: the tickets' own; give it to Tickets, or leave it out"
            )
        given = optimizers_of(optimizer)
        if self.round and any(one.state for one in given):
            raise StateError(
                f"round {self.round}: the optimizer has state of an earlier round; build a new one "
                "in every round"
            )
        self._let_go()
        sparse = attach(
            self.model, given, method=method, masks=self.masks, **self._kinds, **options
        )
        self._sparse = sparse
        if self._awaits and self._kept is None:
            self._hooks = [one.register_step_post_hook(self._look) for one in given]
        return sparse

    def _look(self, *_: Any) -> None:
        """Keep the model at the step that later rounds go back to."""
        if self._kept is None and self._sparse is not None and self._sparse.step == self.rewind:
            self._kept = _copy_of(self.model)

    def _let_go(self) -> None:
        if self._sparse is not None:
            self._sparse.detach()
        for hook in self._hooks:
            hook.remove()
        self._sparse, self._hooks = None, []

    @torch.no_grad()
    def _next(self) -> None:
        """Prune what was trained, and rewind."""
        if self._awaits and self._kept is None:
            raise StateError(
                f"{FIRST_DENSE}must be attached (ticket.attach) and take the {self.rewind} steps "
                "that later rounds are rewound to"
            )
        self._let_go()
        layers = self._layers(self.masks)
        for layer in layers:
            if bool(layer.weight[layer.absent].any()):
                raise StateError(
                    f"round {self.round}: absent weights of layer {layer.name!r} have moved; hold "
                    "the masks in training with ticket.attach(optimizer)"
                )
        self.round += 1
        for layer in layers:
            asked = Budgeted.of(layer.name, layer.shape, layer.pattern)
            left = (1.0 - self._rates[layer.name]) ** self.round * layer.numel
            layer.keep = asked.nearest(left)
            layer.is_own = layer.name in self._own  # its mask alone fixes nothing
        if self.scope == "global":
            share_by_rank(layers, self.score)
        for layer in layers:
            present = layer.storage.count() // max(1, layer.groups)
            units = best_units(layer, self.score, min(layer.keep, present))
            layer.storage.select(units)
            self.masks[layer.name] = layer.mask

    @torch.no_grad()
    def _apply(self) -> None:
        """Values and zeros of the round's beginning."""
        if self._kept is not None and not self._awaits:
            self.model.load_state_dict(self._kept)
        for layer in self._layers(self.masks):
            layer.storage.settle()


def _rates(
    layers: Sequence[Layer], fraction: float, output: float, fractions: Mapping[str, float]
) -> tuple[dict[str, float], set[str]]:
    """Layer -> its fraction, and the names of those that have one of their own."""
    names = [layer.name for layer in layers]
    rates, own = dict.fromkeys(names, fraction), set()
    if output != 1.0:
        rates[names[-1]] = fraction * output
        own.add(names[-1])
    for glob, value in fractions.items():
        hits = fnmatch.filter(names, glob)
        if not hits:
            raise UnknownNameError("layer to give a fraction", glob, names)
        rates.update(dict.fromkeys(hits, value))
        own.update(hits)
    return rates, own


def _check(
    rounds: int, rewind: Rewind, scope: str, fractions: Mapping[str, float], output: float
) -> None:
    whole("Tickets: rounds", rounds, least=0)
    is_step = type(rewind) is int and rewind >= 0
    if not is_step and not (isinstance(rewind, str) and rewind in ("init", "lr")):
        raise ConfigError(f"Tickets: rewind must be 'init', 'lr' or a step; got {told(rewind)}")
    if scope not in SCOPES:
        raise UnknownNameError("value of Tickets' scope", scope, SCOPES)
    for name, value in fractions.items():
        number(f"Tickets: {name}", value)
        if not 0.0 <= value < 1.0:
            raise ConfigError(f"Tickets: {name} (pruned in a round) must be in [0, 1); got {value}")
    number("Tickets: output", output)
    if not 0.0 <= output <= 1.0:
        raise ConfigError(
            f"Tickets: output (factor of the fraction) must be in [0, 1]; got {output}"
        )


def _copy_of(model: nn.Module) -> dict[str, Any]:
    """The model's state, apart from the model."""
    return {name: copy.deepcopy(value) for name, value in model.state_dict().items()}
