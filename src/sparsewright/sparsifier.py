"""The Sparsifier: the one object with state. It hooks an optimizer and keeps a model's masks.

The user's loop does not change. Gradients of absent weights are masked as they arrive, the method
is asked before each optimizer step, and absent weights are put back to exactly zero after it (some
optimizers, like Muon, mix entries).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .abilities import Blind, Rebudgets
from .connectivity import problems
from .core import Layer, Method, Wish, as_table, as_units
from .errors import SparsityWarning, StateError
from .exchange import exchange_of, moved_between, units_after
from .gradients import Withheld, give_back, withhold
from .initialise import Init, initialise
from .replicas import Group, Replicas
from .selection import LeftDense
from .sparse_state import STATE_VERSION, check_version, read_layers, saved_layers
from .steering import Steering, check_storage, hook_draws, keeps_absent, unscale
from .summary import Summary, summarise
from .weights import find_weights

WRAPPERS = ("module.", "_orig_mod.")
"""What DataParallel, AveragedModel and torch.compile put before a weight's name."""


@dataclass(frozen=True)
class Change:
    """One mask that moved: how many weights were dropped and grown before optimizer step `step`."""

    step: int
    layer: str
    dropped: int
    grown: int


class Sparsifier:
    """Masks of a model in training; made by `attach`.

    layers: the sparse weights, in the model's order. changes: every mask move so far in this
    process, oldest first. replicas: the processes that train this model together.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizers: Sequence[Optimizer],
        method: Method,
        layers: Sequence[Layer],
        left_dense: Sequence[LeftDense],
        asked: float | None,
        process_group: Group = None,
    ):
        self.layers = list(layers)
        self.method = method
        self.changes: list[Change] = []
        self._optimizers = list(optimizers)
        self._left_dense = list(left_dense)
        self._asked = asked
        self._steps = [0] * len(self._optimizers)
        self._of_optimizer = self._assign(model)
        self._held: dict[int, Withheld] = {}
        self.replicas = Replicas(model, process_group)
        check_storage(method, self.layers)
        self._keeps_absent = keeps_absent(method)
        self._blind = method if isinstance(method, Blind) else None
        self._steering = [
            Steering(method, self._layers_of(index), one)
            for index, one in enumerate(self._optimizers)
        ]
        self._handles = self._hook() + hook_draws(model, method, self._draw)

    # what the user calls

    @property
    def step(self) -> int:
        """Optimizer steps taken (or withheld by the method) so far."""
        return min(self._steps)

    @property
    def generator(self) -> torch.Generator:
        """The CPU random source of all choices of this run."""
        return self.layers[0].generator

    def report(self) -> Summary:
        """Exact counts of every sparse weight as it is now."""
        return summarise(self.layers, self._left_dense, self._asked)

    def summary(self) -> None:
        """Print the table of `report`."""
        print(self.report())

    def state_dict(self) -> dict[str, Any]:
        """Masks, step counts and random state: tensors and plain values only.

        Together with the model's and the optimizer's own state it makes a resumed run
        bit-identical to one that was not stopped.
        """
        return {
            "version": STATE_VERSION,
            "method": type(self.method).__name__,
            "steps": list(self._steps),
            "generator": self.generator.get_state(),
            "layers": saved_layers(self.layers),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict()`; call it beside the model's and the optimizer's own.

        Raises StateError, and changes nothing, if the state is of another model or attachment.
        """
        check_version(state)
        if len(state["steps"]) != len(self._optimizers):
            raise StateError(
                f"the sparse state is of {len(state['steps'])} optimizers; got "
                f"{len(self._optimizers)}"
            )
        method = type(self.method).__name__
        if state["method"] != method:
            raise StateError(f"the sparse state is of method {state['method']}; this is {method}")
        may_move = isinstance(self.method, Rebudgets)
        saved = read_layers(self.layers, state["layers"], may_move)
        for layer in self.layers:
            layer.keep, units, layer.memory, pattern = saved[layer.name]
            layer.pattern = layer.storage.pattern = pattern
            layer.set_table(units)
        for steering in self._steering:
            steering.rest()
        self._steps = [int(step) for step in state["steps"]]
        self.generator.set_state(state["generator"].cpu())

    def __reduce_ex__(self, protocol: object) -> Any:
        """StateError: its hooks are on one model and optimizer, and a copy would hold nothing."""
        raise StateError(
            "a Sparsifier cannot be copied or pickled: save its state_dict(), and load it into "
            "another that attach made; a copy of the model alone is a plain model"
        )

    def apply_masks(self, model: nn.Module) -> None:
        """Put absent weights to zero in a copy of the model, such as a moving average of it.

        A packed copy takes the places of now: a weight that stays keeps its average, a new one
        begins at its value. Call it for such a copy before it averages again. The copy may be
        wrapped (AveragedModel, DistributedDataParallel, torch.compile). Raises StateError if it
        lacks one of the sparse weights.
        """
        weights = {_plain(w.name): w for w in find_weights(model)}
        for layer in self.layers:
            weight = weights.get(_plain(layer.name))
            if weight is None or weight.shape != layer.shape:
                raise StateError(
                    f"the copy has no weight {layer.name!r} of shape {layer.shape}; it has: "
                    f"{', '.join(weights)}"
                )
            layer.storage.follow(weight)

    def detach(self) -> None:
        """Remove every hook and leave a plain model whose absent weights are zeros."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    # set-up

    def _assign(self, model: nn.Module) -> list[int]:
        """The index of each layer's optimizer."""
        owner = {
            id(parameter): index
            for index, optimizer in enumerate(self._optimizers)
            for group in optimizer.param_groups
            for parameter in group["params"]
        }
        lost = [
            layer.name
            for layer in self.layers
            if layer.weight.requires_grad and id(layer.weight) not in owner
        ]
        if lost:
            raise StateError(
                f"weight {lost[0]!r} of {type(model).__name__} is in no parameter group of the "
                f"optimizer ({len(lost)} of {len(self.layers)} are not): build the optimizer on "
                "this model's parameters, leave such weights out (skip=[...]) or freeze them "
                "(requires_grad=False)"
            )
        return [owner.get(id(layer.weight), 0) for layer in self.layers]

    def _hook(self) -> list[Any]:
        handles: list[Any] = []
        for index, layer in enumerate(self.layers):
            try:
                handles.append(layer.storage.watch(self._wants(index), self.replicas))
            except StateError as error:
                for handle in handles:
                    handle.remove()
                raise StateError(f"weight {layer.name!r} is {error}") from None
        for index, optimizer in enumerate(self._optimizers):
            handles.append(optimizer.register_step_pre_hook(self._pre_hook(index)))
            handles.append(optimizer.register_step_post_hook(self._post_hook(index)))
        return handles

    def _begin(self, init: Init) -> None:
        # All first units before any weight changes: a layer that fails leaves the model as it was.
        units = [self.method.begin(layer) for layer in self.layers]
        for layer, first, owner in zip(self.layers, units, self._of_optimizer, strict=True):
            if self._keeps_absent:
                layer.storage.select(as_table(layer, first))
            else:
                layer.storage.place(as_units(layer, first), self._optimizers[owner])
        initialise(self.layers, init)
        for steering in self._steering:
            steering.begin()
        self._apply_masks()
        for problem in problems(self.layers):
            warnings.warn(problem, SparsityWarning, stacklevel=3)

    # around each optimizer step

    def _due(self, optimizer: int) -> bool:
        return self.method.due(self._steps[optimizer])

    def _wants(self, index: int) -> Callable[[], bool]:
        """Whether the coming update wants the gradients of a layer's absent weights."""
        optimizer, always = self._of_optimizer[index], self._keeps_absent
        return lambda: always or (self.method.needs_gradient and self._due(optimizer))

    def _pre_hook(self, index: int) -> Callable[..., Any]:
        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            closure = args[1] if len(args) > 1 else kwargs.get("closure")
            if closure is None:
                self._before_step(index)
                return None
            wrapped = self._wrap_closure(index, closure)
            if len(args) > 1:
                return (args[0], wrapped, *args[2:]), kwargs
            return args, {**kwargs, "closure": wrapped}

        return hook

    def _wrap_closure(self, index: int, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The closure computes the gradients, so the update happens right after its first call."""
        first = True

        def wrapped() -> Any:
            nonlocal first
            if not first:
                if self._keeps_absent:
                    self._after_step(index)
                self._apply_masks(index)
            loss = closure()
            if first:
                self._before_step(index)
            else:
                self._steering[index].before(self._steps[index])
                self._mask_gradients(index)
                if index in self._held:
                    self._withhold(index)
            first = False
            return loss

        return wrapped

    def _post_hook(self, index: int) -> Callable[..., None]:
        def hook(optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            give_back(self._held.pop(index, []))
            self._after_step(index)
            if not _skipped_by_scaler(optimizer):
                self._steps[index] += 1

        return hook

    def _before_step(self, index: int) -> None:
        optimizer = self._optimizers[index]
        if _skipped_by_scaler(optimizer):
            return
        due = self._due(index)
        self._steering[index].before(self._steps[index])
        if due:
            unscale(optimizer)  # a method may weigh gradients against weights
            self._steering[index].budget(self._steps[index])
            self._update_all(index)
        self._mask_gradients(index)
        if due and self.method.skips_step:
            self._withhold(index)

    def _after_step(self, index: int) -> None:
        step = self._steps[index]
        for layer, table in self._steering[index].after(step):
            self._select(step, layer, table)
        self._apply_masks(index)

    def _select(self, step: int, layer: Layer, table: Tensor) -> None:
        """Other present units, of a layer whose absent weights live on."""
        lost, gained = moved_between(layer.table, table)
        if lost or gained:
            layer.storage.select(table)
            self._note(step, layer, lost, gained)

    def _note(self, step: int, layer: Layer, dropped: int, grown: int) -> None:
        """Dropped and grown units go into the list of changes, if there are any."""
        if dropped or grown:
            moved = dropped * layer.unit_size, grown * layer.unit_size
            self.changes.append(Change(step, layer.name, *moved))

    def _mask_gradients(self, index: int) -> None:
        if self._keeps_absent:
            return
        for layer in self._layers_of(index):
            layer.storage.mask_gradient()

    @torch.no_grad()
    def _update_all(self, index: int) -> None:
        layers, moved = self._layers_of(index), False
        for layer in layers:
            wish = self._wish(layer, self._steps[index])
            if wish is None:
                continue
            if self._keeps_absent and isinstance(wish, Tensor):
                self._select(self._steps[index], layer, as_table(layer, wish))
                continue
            if not moved:  # all of them, so that the first to move has room
                for other in layers:
                    other.storage.release()
            moved = True
            exchange, lost, gained = exchange_of(layer, wish)
            if self._keeps_absent:
                layer.storage.select(units_after(layer, exchange))
            else:
                layer.storage.move(exchange, self._optimizers[index])
            layer.storage.release()
            self._note(self._steps[index], layer, lost, gained)

    def _wish(self, layer: Layer, step: int) -> Wish | None:
        """What the method wants; a layer without a gradient that it needs stays as it is, unless
        the method says otherwise."""
        layer.storage.check(layer.name)
        if self.method.needs_gradient and not layer.storage.has_gradient():
            return None if self._blind is None else self._blind.without_gradient(layer, step)
        return self.method.update(layer, step)

    def _draw(self, training: bool) -> None:
        """Before a forward of the model, for methods with random weights."""
        for steering, step in zip(self._steering, self._steps, strict=True):
            steering.draw(training, step)

    def _withhold(self, index: int) -> None:
        self._held.setdefault(index, []).extend(withhold(self._optimizers[index]))

    def _layers_of(self, index: int) -> list[Layer]:
        return [
            layer for layer, at in zip(self.layers, self._of_optimizer, strict=True) if at == index
        ]

    def _apply_masks(self, index: int | None = None) -> None:
        for layer in self.layers if index is None else self._layers_of(index):
            layer.storage.settle()


def _skipped_by_scaler(optimizer: Optimizer) -> bool:
    """Fused optimizers are called although a GradScaler found inf, and skip inside."""
    found = getattr(optimizer, "found_inf", None)
    return found is not None and bool(found.item())


def _plain(name: str) -> str:
    """A weight's name without what wrappers put before it."""
    while name.startswith(WRAPPERS):
        name = name.split(".", 1)[1]
    return name
