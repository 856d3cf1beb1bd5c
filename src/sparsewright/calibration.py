"""Calibration: data that pruning looks at, and how a model is run on it.

A batch is what one step of a training loop has in hand: a tensor of inputs, a pair (inputs,
targets), or a mapping of keyword arguments as models of language take it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .arguments import told
from .core import Layer
from .errors import ConfigError
from .weights import find_weights

Loss = Callable[..., Tensor]


@dataclass(frozen=True, eq=False)
class Calibration:
    """What a score may measure: a model, its layers, batches, and the loss on each.

    layers: those to be pruned. batches: any iterable, gone through anew for each pass (a generator
    lasts for one); None if no data was given. loss: a function (model, batch) -> scalar, or without
    data (model) -> scalar; None takes cross-entropy of model(inputs) to class numbers, and for a
    mapping the output's own `loss`. The model is measured in the mode, training or evaluation, that
    it is in.
    """

    model: nn.Module
    layers: Sequence[Layer]
    batches: Iterable[Any] | None = None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        check_batches(self.batches)

    def losses(self, model: nn.Module | None = None) -> Iterator[Tensor]:
        """The loss on each batch, one at a time; ConfigError if there is neither data nor loss.

        model: another in the model's place (one that wraps it).
        """
        chosen = self.model if model is None else model
        if self.batches is None:
            if self.loss is None:
                raise ConfigError(
                    "this score measures a loss: give data (batches of inputs and targets), or "
                    "loss, a function model -> scalar"
                )
            yield self.loss(chosen)
            return
        for batch in self._all_batches():
            yield self.loss_on(batch, chosen)

    def losses_of_examples(self) -> Iterator[Tensor]:
        """The loss on each example by itself: every batch is cut along its first dimension.

        Without data the one loss that there is.
        """
        if self.batches is None:
            yield from self.losses()
            return
        for batch in self._all_batches():
            for example in examples_of(batch):
                yield self.loss_on(example)

    def mean_loss(self) -> float:
        """Of all batches, each counting the same, without a graph."""
        with torch.no_grad():
            found = [float(check_scalar(loss).double()) for loss in self.losses()]
        return sum(found) / len(found)

    def loss_on(self, batch: Any, model: nn.Module | None = None) -> Tensor:
        """The loss on one batch."""
        chosen = self.model if model is None else model
        return self.loss(chosen, batch) if self.loss else usual_loss(chosen, batch)

    def outputs(self) -> Iterator[Any]:
        """The model's output on each batch, one at a time; ConfigError without data."""
        if self.batches is None:
            raise ConfigError("this score measures activations: give data, batches of inputs")
        for batch in self._all_batches():
            yield run(self.model, batch)

    def first_batch(self) -> Any:
        """None without data; ConfigError for a generator, of which it would be lost."""
        if self.batches is None:
            return None
        if iter(self.batches) is self.batches:
            raise ConfigError(
                "this score looks at the first batch before it goes through all: data must be "
                "a list or a DataLoader; got an iterator, which lasts for one pass"
            )
        return next(self._all_batches())

    def modules(self) -> dict[str, nn.Module]:
        """Layer name -> the module that holds its weight."""
        found = {weight.name: weight.module for weight in find_weights(self.model)}
        return {layer.name: found[layer.name] for layer in self.layers}

    def _all_batches(self) -> Iterator[Any]:
        """The batches; ConfigError if there is none, as in the second pass over a generator."""
        empty = True
        for batch in self.batches or ():
            empty = False
            yield batch
        if empty:
            raise ConfigError(
                "data gave no batch: it is empty, or it is a generator, which lasts for one pass "
                "while this takes more; give a list or a DataLoader"
            )


def check_batches(data: Any) -> None:
    """ConfigError for one batch where several are expected: its rows are no batches.

    >>> check_batches([torch.ones(2, 3)])
    >>> check_batches(torch.ones(2, 3))
    Traceback (most recent call last):
    ...
    sparsewright.errors.ConfigError: data must be batches, such as a list ...
    """
    if data is None:
        return
    is_array = hasattr(data, "__array__") and not isinstance(data, Tensor)
    if is_array or isinstance(data, nn.Module | type | str) or not _goes_through(data):
        raise ConfigError(
            "data must be batches of tensors, such as a list or a DataLoader; got " + told(data)
        )
    several = isinstance(data, tuple | list) and len(data) == 2
    pair = several and all(isinstance(x, Tensor) for x in data)
    inputs_and_targets = pair and (data[0].dim(), data[0].dtype) != (data[1].dim(), data[1].dtype)
    if isinstance(data, Tensor | Mapping) or inputs_and_targets:
        raise ConfigError(
            "data must be batches, such as a list or a DataLoader; got one batch, a "
            f"{type(data).__name__}: give [batch]"
        )


def check_scalar(loss: Any) -> Tensor:
    """The loss; ConfigError unless it is a tensor of one number."""
    if not (isinstance(loss, Tensor) and loss.numel() == 1):
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else told(loss)
        raise ConfigError(f"a loss must be a scalar tensor; got {found}")
    return loss


def check_loss(loss: Any) -> Tensor:
    """The loss; ConfigError if it has no gradient, or is no scalar."""
    if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.requires_grad):
        found = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ConfigError(
            "a loss must be a scalar tensor with a gradient (no detach, no no_grad, and some layer "
            f"in it); got {found}"
        )
    return loss


def _goes_through(data: Any) -> bool:
    """Whether a for loop takes it: a Dataset has no __iter__."""
    return hasattr(data, "__iter__") or hasattr(data, "__getitem__")


def run(model: nn.Module, batch: Any) -> Any:
    """The model's output on a batch; of a pair the first is the input. ConfigError for inputs that
    are no tensors but numbers, texts or arrays.

    >>> run(nn.Identity(), (torch.ones(2), "label"))
    tensor([1., 1.])
    """
    if isinstance(batch, Mapping):
        return model(**batch)
    inputs = batch[0] if isinstance(batch, list | tuple) and batch else batch
    is_array = hasattr(inputs, "__array__") and not isinstance(inputs, Tensor)
    if inputs is None or isinstance(inputs, int | float | str) or is_array:
        raise ConfigError(f"the inputs of a batch must be a tensor; got {told(inputs)}")
    return model(inputs)


def output_tensor(output: Any) -> Tensor:
    """The tensor in a model's output: itself, its `logits`, or the first of several; ConfigError.

    >>> output_tensor((torch.ones(2), None))
    tensor([1., 1.])
    """
    found = getattr(output, "logits", output)
    if isinstance(found, Mapping):
        found = next(iter(found.values()), None)
    if isinstance(found, list | tuple):
        found = found[0] if found else None
    if not isinstance(found, Tensor):
        raise ConfigError(
            "the model's output must be a tensor, have logits, or begin with a tensor; got "
            f"{type(output).__name__}"
        )
    return found


def usual_loss(model: nn.Module, batch: Any) -> Tensor:
    """Cross-entropy to class numbers, or the loss that a model of language has of its own.

    Targets (n, ...) with outputs (n, classes, ...), as torch has it, or (n, ..., classes), as
    models of language give them. ConfigError for batches that have neither; targets that are no
    whole numbers, as those of a regression, take a loss of their own.

    >>> outputs, targets = torch.zeros(2, 3, 8), torch.zeros(2, 3, dtype=torch.long)
    >>> round(usual_loss(nn.Identity(), (outputs, targets)).exp().item(), 3)  # of 8 alike
    8.0
    """
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
    targets = batch[1]
    if not isinstance(targets, Tensor) or targets.is_floating_point() or targets.is_complex():
        found = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise ConfigError(
            "without a loss the targets of a batch are class numbers, a tensor of integers; got "
            f"{found}. Give loss, a function (model, batch) -> scalar (and for a Dataset, which "
            "gives single examples, a DataLoader)"
        )
    output = output_tensor(model(batch[0]))
    return F.cross_entropy(_classes_second(output, targets), targets)


def _classes_second(output: Tensor, targets: Tensor) -> Tensor:
    """(n, ..., classes) -> (n, classes, ...) where the targets say that the classes come last.

    ConfigError where they may be either dimension.
    """
    if output.dim() < 3 or output.shape[:-1] != targets.shape:
        return output
    if (output.shape[0], *output.shape[2:]) == tuple(targets.shape):
        raise ConfigError(
            f"outputs of shape {tuple(output.shape)} may have their classes in dimension 1 or in "
            "the last one: give loss, a function (model, batch) -> scalar"
        )
    return output.movedim(-1, 1)


def examples_of(batch: Any) -> Iterator[Any]:
    """A batch cut into batches of one, along the first dimension of its tensors.

    >>> list(examples_of((torch.tensor([[1.], [2.]]), torch.tensor([0, 1]))))
    [(tensor([[1.]]), tensor([0])), (tensor([[2.]]), tensor([1]))]
    """
    first = _tensors(batch)
    for i in range(len(first[0]) if first and first[0].dim() else 0):
        yield _example(batch, i)


def _tensors(batch: Any) -> list[Tensor]:
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    return [part for part in parts if isinstance(part, Tensor)]


def _example(batch: Any, i: int) -> Any:
    """The same batch with every tensor cut to one row."""

    def cut(value: Any) -> Any:
        return value[i : i + 1] if isinstance(value, Tensor) and value.dim() else value

    if isinstance(batch, Mapping):
        return {key: cut(value) for key, value in batch.items()}
    return cut(batch) if isinstance(batch, Tensor) else tuple(cut(part) for part in batch)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Evaluation mode; every module's own comes back."""
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextmanager
def left_as_it_was(model: nn.Module, layers: Sequence[Layer], seed: int = 0) -> Iterator[None]:
    """Measure inside: gradients, buffers (a norm's statistics), modes and torch's random state
    come back whatever happens. Weights of frozen layers have gradients in it.

    seed: of torch's random numbers inside, so that a measurement can be repeated.
    """
    parameters = list(model.parameters())
    gradients = [parameter.grad for parameter in parameters]
    frozen = [layer.weight for layer in layers if not layer.weight.requires_grad]
    modes = [(module, module.training) for module in model.modules()]
    buffers = [
        (module, name, buffer, buffer.detach().clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    devices = sorted({p.device.index for p in parameters if p.device.type == "cuda"})
    try:
        with (
            torch.random.fork_rng(devices=devices),
            torch.inference_mode(False),
            torch.enable_grad(),
        ):
            torch.default_generator.manual_seed(seed)
            for device in devices:
                torch.cuda.default_generators[device].manual_seed(seed)
            for weight in frozen:
                weight.requires_grad_(True)
            yield
    finally:
        for weight in frozen:
            weight.requires_grad_(False)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for module, name, buffer, value in buffers:
                buffer.copy_(value)
                module._buffers[name] = buffer
