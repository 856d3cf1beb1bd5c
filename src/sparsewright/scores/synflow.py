"""SynFlow: a weight's share in the flow through the network when all its weights are positive,
without data (Tanaka, Kunin, Yamins, Ganguli 2020)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase

from ..calibration import Calibration, evaluating, output_tensor
from ..errors import ConfigError
from ..facts import Facts
from . import SCORES
from ._measured import Found, ToMeasure, check_reached, refuse_packed

ITSELF_SCALED = (nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, _NormBase)
"""Norms; those that divide by what passes through them would stop the flow."""


@dataclass(frozen=True)
class SynFlow(ToMeasure):
    """w * dR/dw, where R is the sum of the network's outputs on an input of ones with |w| in place
    of every weight. As published: allocate="global", in many rounds, before training.

    rounds: prune in so many steps, with a density of density^(k / rounds) after step k. example: a
    batch, of which only the shape counts (integers are taken as they are); None takes the first of
    the data. Biases and running means are 0 in R, norms in evaluation mode scale by |gamma| alone,
    and all is float64: R is a product over all layers. Every layer's scores then add up to R, which
    is why no layer is emptied before the others.

    >>> from sparsewright import prune
    >>> model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    >>> score = SynFlow(example=torch.ones(1, 4))
    >>> prune(model, 0.9, score=score, allocate="global").present
    5
    """

    rounds: int = 100  # type: ignore[misc]
    example: Any = field(default=None, repr=False, compare=False)
    facts: ClassVar[Facts] = Facts(
        source="Tanaka, Kunin, Yamins, Ganguli: Pruning neural networks without any data by "
        "iteratively conserving synaptic flow. NeurIPS 2020.",
        when="To choose a very sparse network (95 % and more) before it is trained, where scores "
        "that rank once empty whole layers.",
        memory="A float64 copy of all parameters and their gradients while it measures.",
        flops="One forward and backward of a single example (3 f_D, in float64) for every round; "
        "training and inference then cost as static sparse ones (3 f_S, f_S).",
        published="none verified",
        departs="Biases and running means are 0 in R, as the paper's R has none; the public code "
        "takes their absolute values. LayerNorm and its like, which the paper has not, scale by "
        "|gamma| alone. `rounds` is 100, the paper's as far as we know, which was not checked; the "
        "public code prunes in one round unless told otherwise, and lets all go that tie with the "
        "threshold, where here the count is exact.",
    )

    def __post_init__(self) -> None:
        if self.rounds < 1:
            raise ConfigError(f"score SynFlow: rounds must be 1 or more; got {self.rounds}")

    def measured(self, calibration: Calibration) -> Found:
        """ConfigError without an example or data; StateError for a layer that nothing flows by."""
        refuse_packed(calibration, self)
        model, layers = calibration.model, calibration.layers
        tensors = positive(model)
        owner = {id(p): name for name, p in model.named_parameters()}
        weights = [tensors[owner[id(layer.weight)]] for layer in layers]
        for weight in weights:
            weight.requires_grad_(True)
        with evaluating(model), flowing_norms(model):
            args, kwargs = ones_like(self._example(calibration))
            output = output_tensor(functional_call(model, tensors, args, kwargs, tie_weights=True))
        found = torch.autograd.grad(output.sum(), weights, allow_unused=True)
        names = [layer.name for layer in layers]
        check_reached({n: g is not None for n, g in zip(names, found, strict=True)}, self)
        return Found(
            {
                name: (weight.detach() * slope).abs()
                for name, weight, slope in zip(names, weights, found, strict=True)
                if slope is not None
            }
        )

    def _example(self, calibration: Calibration) -> Any:
        found = calibration.first_batch() if self.example is None else self.example
        if found is None:
            raise ConfigError(
                "score SynFlow needs the shape of an input: give data, or "
                "score=SynFlow(example=a batch)"
            )
        return found


def positive(model: nn.Module) -> dict[str, Tensor]:
    """Name -> the parameter or buffer as R has it: |weight|, no biases, all of it float64."""
    out: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        value = parameter.detach().double()
        out[name] = torch.zeros_like(value) if name.endswith("bias") else value.abs()
    for name, buffer in model.named_buffers():
        out[name] = buffer.double() if buffer.is_floating_point() else buffer
    return out


def ones_like(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """One example of ones, as arguments of the model; integers and masks as they are."""

    def one(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.dim():
            return value
        first = value.detach()[:1]
        return torch.ones_like(first, dtype=torch.float64) if first.is_floating_point() else first

    if isinstance(batch, Mapping):
        return (), {k: one(v) for k, v in batch.items() if k != "labels"}
    return (one(batch[0] if isinstance(batch, list | tuple) else batch),), {}


@contextmanager
def flowing_norms(model: nn.Module) -> Iterator[None]:
    """Norms scale by what they have learned, or by running variances, and by nothing else."""

    def scale(module: Any, inputs: tuple[Any, ...], output: Tensor) -> Tensor:
        x: Tensor = inputs[0]
        shape = [1, -1, *[1] * (x.dim() - 2)] if not isinstance(module, LAST) else [-1]
        gamma, variance = module.weight, getattr(module, "running_var", None)
        x = x if gamma is None else x * gamma.reshape(shape if gamma.dim() == 1 else gamma.shape)
        return x if variance is None else x / (variance + module.eps).sqrt().reshape(shape)

    norms = [module for module in model.modules() if isinstance(module, ITSELF_SCALED)]
    hooks = [module.register_forward_hook(scale) for module in norms]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


LAST = (nn.LayerNorm, nn.RMSNorm)
"""Norms over the last dimensions; the others have their channels in the second."""

SCORES.register("synflow")(SynFlow())
