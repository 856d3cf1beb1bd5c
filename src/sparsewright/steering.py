"""Steering: what the Sparsifier does at every step for a method that shapes or gates weights.

Between steps the parameters hold what the model computes with. For a method that keeps absent
weights the optimizer steps others, the latent weights: they take the parameters' place from the end
of the backward to the end of the optimizer's step, and rest in `layer.memory` else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .abilities import Gates, Rebudgets, Shapes
from .core import Layer, Method, as_table
from .errors import StateError

LATENT = "latent"


def keeps_absent(method: Method) -> bool:
    """Whether absent weights live on under a method."""
    return isinstance(method, Shapes) and method.keeps_absent


def masked_only(method: Method) -> str | None:
    """Why a method cannot train packed weights, or None; its own `masked_only` may say."""
    if keeps_absent(method) or isinstance(method, Gates):
        return "needs the values of absent weights"
    return getattr(method, "masked_only", None)


def check_storage(method: Method, layers: Sequence[Layer]) -> None:
    """StateError if what the method needs is not stored of packed weights."""
    reason = masked_only(method)
    packed = [layer.name for layer in layers if not layer.storage.holds_absent]
    if packed and reason:
        raise StateError(
            f"layer {packed[0]!r} is packed, and method {type(method).__name__} {reason}: take "
            "masked storage (sw.unpack, or --storage masked)"
        )


class Steering:
    """What a method does to the layers of one optimizer at every step; for most, nothing."""

    def __init__(self, method: Method, layers: Sequence[Layer], optimizer: Optimizer):
        self.method, self.layers, self.optimizer = method, list(layers), optimizer
        # What it can do is asked once: a look at a protocol costs as much as masking a weight.
        self._shapes = method if isinstance(method, Shapes) else None
        self._gates = method if isinstance(method, Gates) else None
        self._rebudgets = method if isinstance(method, Rebudgets) else None
        self.keeps_absent = keeps_absent(method)
        self.rest()

    def rest(self) -> None:
        """As between two steps: the parameters hold what the model computes with."""
        self._bare = False  # the parameters hold the latent weights
        self._drawn = False  # or a draw of this step
        self._aside: list[Tensor] = []  # that draw, while evaluation has their place
        self._stepping = False  # a step was prepared, and is not over

    def begin(self) -> None:
        """The first weights that the model computes with; call it once they have their values."""
        self._bare = self._stepping = True
        for layer, table in self.after(-1):
            layer.storage.select(table)

    @torch.no_grad()
    def before(self, step: int) -> None:
        """After a backward: gradients and latent weights as the optimizer is to see them."""
        rates = rates_of(self.optimizer)
        for layer in self.layers:
            layer.rate = rates.get(id(layer.weight), 0.0)
        if self._shapes is None:
            return
        self._stepping = True
        unscale(self.optimizer)
        for layer in self.layers:
            if self.keeps_absent and not self._bare:
                layer.weight.copy_(layer.memory[LATENT])
        self._bare = self.keeps_absent
        for layer in self.layers:
            if layer.weight.grad is not None:
                self._shapes.before_step(layer, step)

    @torch.no_grad()
    def budget(self, step: int) -> None:
        """Let the method share the budget out anew."""
        if self._rebudgets is not None:
            self._rebudgets.rebudget(self.layers, step)

    @torch.no_grad()
    def after(self, step: int) -> list[tuple[Layer, Tensor]]:
        """After the optimizer's step: what the model computes with takes the parameters' place.

        Returns the layers whose present units the method names, and those as (groups, units) bool.
        """
        if self._shapes is None or not self._stepping:  # no step was taken
            return []
        wishes = []
        for layer in self.layers:
            if self.keeps_absent:
                layer.memory[LATENT] = layer.weight.detach().clone()
            wish = self._shapes.after_step(layer, step)
            if self.keeps_absent and wish is not None:
                wishes.append((layer, as_table(layer, wish)))
        self.rest()
        return wishes

    @torch.no_grad()
    def draw(self, training: bool, step: int) -> None:
        """Before a forward: the step's random weights, or in evaluation those without chance.

        One draw serves all forwards of a step, also those that follow an evaluation.
        """
        if self._gates is None or training == self._drawn:
            return
        self._drawn = training
        if training and self._aside:
            for layer, drawn in zip(self.layers, self._aside, strict=True):
                layer.weight.copy_(drawn)
            self._aside = []
        elif training:
            for layer in self.layers:
                self._gates.before_forward(layer, step)
        else:
            self._aside = [layer.weight.detach().clone() for layer in self.layers]
            self._show_resting(step)

    def _show_resting(self, step: int) -> None:
        """The weights without chance into the parameters; what a draw left in memory stays."""
        assert self._shapes is not None
        for layer in self.layers:
            layer.weight.copy_(layer.memory[LATENT])
            drawn = dict(layer.memory)  # a backward of this step may still wait for its step
            self._shapes.after_step(layer, step)
            layer.memory = drawn
            layer.storage.settle()


def rates_of(optimizer: Optimizer) -> dict[int, float]:
    """id of a parameter -> the learning rate of its group."""
    return {
        id(parameter): float(group.get("lr", 0.0))
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def unscale(optimizer: Optimizer) -> None:
    """Gradients as large as the loss's own: a GradScaler leaves that to fused optimizers."""
    scale = getattr(optimizer, "grad_scale", None)
    if scale is None:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None:
                parameter.grad.div_(scale.to(parameter.grad.device))
    optimizer.grad_scale = None  # type: ignore[attr-defined]


def hook_draws(model: nn.Module, method: Method, draw: Any) -> list[Any]:
    """The hook that calls `draw(training)` before every forward of the model, if it is wanted."""
    if not isinstance(method, Gates):
        return []
    return [model.register_forward_pre_hook(_Draw(draw))]


class _Draw:
    """The hook itself. A copy of the model, or one from a file, has its hook do nothing: what is
    drawn belongs to the weights that are trained."""

    def __init__(self, draw: Any = None):
        self.draw = draw

    def __call__(self, module: nn.Module, args: Any) -> None:
        if self.draw is not None:
            self.draw(module.training)

    def __reduce__(self) -> tuple[type[_Draw], tuple[()]]:
        return _Draw, ()
