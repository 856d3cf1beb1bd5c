"""Latent weights: what methods that keep the values of absent weights share.

Until the cut nothing is absent: learned thresholds or gates put weights to zero softly. At the cut
every group keeps its best `layer.keep` units, the weights take the values that the model computed
with, and from then on they train plainly under that mask.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Self

import torch
from torch import Tensor

from ..core import Layer
from ..errors import ConfigError, StateError
from ..kernels.best import best_table
from ..kernels.masking import zero_
from ..scores import check_numbers
from ._learned import recall
from ._timing import check_within, end_of

CUT = "cut"


def gradient_of(layer: Layer) -> Tensor:
    """The weight's gradient, to be changed in place; StateError if it is a sparse tensor."""
    gradient = layer.weight.grad
    assert gradient is not None, "before_step is called where there is a gradient"
    if gradient.layout != torch.strided:
        raise StateError(
            f"layer {layer.name!r}: latent weights need dense gradients; got a sparse one (build "
            "the Embedding with sparse=False)"
        )
    return gradient


def fold(layer: Layer, weights: Tensor) -> Tensor:
    """(weight shape) -> (groups, units) sums, float32 or wider."""
    return layer.pattern.fold(weights.to(torch.promote_types(weights.dtype, torch.float32)))


def best_of(layer: Layer, importance: Tensor, keep: int) -> Tensor:
    """(groups, units) -> bool table of the best `keep` of every group; StateError for NaN."""
    try:
        return best_table(importance, keep)
    except ValueError:
        check_numbers(layer.name, "importance", importance)
        raise


def by_size(layer: Layer) -> Tensor:
    """(groups, units) sums of the latent weights' |w|."""
    return fold(layer, layer.weight.detach().abs())


def full_table(layer: Layer) -> Tensor:
    """(groups, units) bool: all present."""
    size = (layer.groups, layer.units)
    return torch.ones(size, dtype=torch.bool, device=layer.weight.device)


def end_within(name: str, end: int | None, steps: int | None) -> int:
    """`end_of`, or ConfigError if the run is over before: its sparsity would be missed."""
    found = end_of(name, 0, end, steps)
    check_within(name, "the budget must be met", found, steps)
    return found


def check_not_below(method: str, least: float, **options: float | None) -> None:
    """Raise ConfigError unless every option that is not None is `least` or more."""
    for name, value in options.items():
        if value is not None and not value >= least:
            raise ConfigError(f"method {method}: {name} must be {least:g} or more; got {value}")


@dataclass(frozen=True)
class UntilCut:
    """A method that learns what is absent until step `end`, and cuts to the budget there.

    A method made of this one says what it learns (`prepare`), how the model's weights are formed
    (`form`), what a gradient of these is to what is learned (`chain`), and which units are best
    (`importance`).
    """

    end: int | None = None
    needs_gradient: ClassVar[bool] = False
    skips_step: ClassVar[bool] = False
    keeps_absent: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_not_below(type(self).__name__, 0, end=self.end)

    def bind(self, steps: int | None) -> Self:
        """Raises ConfigError if the run ends before the cut."""
        return replace(self, end=end_within(type(self).__name__, self.end, steps))

    def begin(self, layer: Layer) -> Tensor:
        layer.memory[CUT] = torch.zeros((), dtype=torch.bool)
        self.prepare(layer)
        return full_table(layer)

    def due(self, step: int) -> bool:
        return self.end is not None and step <= self.end

    def update(self, layer: Layer, step: int) -> Tensor | None:
        if step != self.end or is_cut(layer):
            return None
        table = best_of(layer, self.importance(layer), layer.keep)
        self.form(layer, step)
        _rest(layer, ~layer.pattern.unfold(table, layer.shape))
        layer.memory[CUT] = torch.ones_like(layer.memory[CUT])
        return table

    def before_step(self, layer: Layer, step: int) -> None:
        if is_cut(layer):
            _rest(layer, layer.absent)
        else:
            self.chain(layer, step)

    def after_step(self, layer: Layer, step: int) -> None:
        if not is_cut(layer):
            self.form(layer, step + 1)

    def reads_absent(self, layer: Layer, step: int) -> int:
        """All until the cut, none after it."""
        return 0 if is_cut(layer) else layer.numel - layer.present

    def prepare(self, layer: Layer) -> None:
        """Put what is learned into the layer's memory."""
        raise NotImplementedError

    def form(self, layer: Layer, step: int) -> None:
        """`layer.weight`, which holds the latent weights, to what the model computes with."""
        raise NotImplementedError

    def chain(self, layer: Layer, step: int) -> None:
        """`layer.weight.grad`, of what the model computed with, to that of the latent weights; and
        step what else is learned."""
        raise NotImplementedError

    def importance(self, layer: Layer) -> Tensor:
        """(groups, units), of the latent weights that `layer.weight` holds; higher is better."""
        raise NotImplementedError


def is_cut(layer: Layer) -> bool:
    """Whether the layer's mask is final."""
    return bool(recall(layer, CUT))


def _rest(layer: Layer, absent: Tensor) -> None:
    """Absent weights have neither value nor gradient: optimizers that mix weights see none."""
    zero_(layer.weight, absent)
    if layer.weight.grad is not None:
        zero_(gradient_of(layer), absent)
