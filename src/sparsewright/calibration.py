"""Calibration: data that pruning looks at, and how a model is run on it.

A batch is what one step of a training loop has in hand: a tensor of inputs, a pair (inputs,
targets), or a mapping of keyword arguments as models of language take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from .core import Layer
from .errors import ConfigError

Loss = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a score may measure: a model, its layers, batches, and the loss on each.

    layers: those to be pruned. batches: any iterable, gone through anew for each pass (a generator
    lasts for one); None if no data was given. loss: a function (model, batch) -> scalar, or without
    data (model) -> scalar; None takes cross-entropy of model(inputs) to class numbers, and for a
    mapping the output's own `loss`.
    """

    model: nn.Module
    layers: Sequence[Layer]
    batches: Iterable[Any] | None = None
    loss: Loss | None = None

    def losses(self) -> Iterator[Tensor]:
        """The loss on each batch, one at a time; ConfigError if there is neither data nor loss."""
        if self.batches is None:
            if self.loss is None:
                raise ConfigError(
                    "this score measures a loss: give data (batches of inputs and targets), or "
                    "loss, a function model -> scalar"
                )
            yield self.loss(self.model)
            return
        for batch in self.batches:
            yield self.loss(self.model, batch) if self.loss else usual_loss(self.model, batch)

    def outputs(self) -> Iterator[Any]:
        """The model's output on each batch, one at a time; ConfigError without data."""
        if self.batches is None:
            raise ConfigError("this score measures activations: give data, batches of inputs")
        for batch in self.batches:
            yield run(self.model, batch)


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output on a batch; of a pair the first is the input.

    >>> import torch
    >>> run(nn.Identity(), (torch.ones(2), "label"))
    tensor([1., 1.])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    return model(batch[0] if isinstance(batch, list | tuple) else batch)


def usual_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy to class numbers, or the loss that a model of language has of its own."""
    if isinstance(batch, Mapping):
        found = getattr(model(**batch), "loss", None)
        if found is None:
            raise ConfigError(
                "the model's output has no loss: put labels into the batches, or give loss, a "
                "function (model, batch) -> scalar"
            )
        return found
    if not isinstance(batch, list | tuple) or len(batch) != 2:
        raise ConfigError(
            "a loss needs batches that are pairs (inputs, targets) or mappings with labels, or a "
            f"function (model, batch) -> scalar as loss; got a batch of type {type(batch).__name__}"
        )
    return F.cross_entropy(model(batch[0]), batch[1])
