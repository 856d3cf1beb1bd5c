"""Floating-point operations of a model and of its training, counted by present weights.

The rule is that of Evci, Gale, Menick, Castro, Elsen (RigL, ICML 2020, appendix): a multiply and an
add count as two, in matrix products and convolutions alone. Lookups, biases, norms, activations,
the loss, the optimizer and the choice of what to drop count nothing. A weight that is absent
counts nothing where a kernel can leave it out: forward, and in the gradient of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from ..abilities import ReadsSome
from ..core import Layer, Method
from ..errors import StateError
from ..sparsifier import Sparsifier
from ..steering import keeps_absent
from ..weights import find_weights, is_packed


@dataclass(frozen=True)
class Forward:
    """What one forward on one example costs.

    layers: name of a weight -> FLOPs of its products with all of its weights present. sizes: its
    number of weights. other: products of activations with each other, as in attention.
    """

    layers: Mapping[str, float]
    sizes: Mapping[str, int]
    other: float

    @property
    def dense(self) -> float:
        """With all weights present: f_D."""
        return sum(self.layers.values()) + self.other

    def sparse(self, present: Mapping[str, int]) -> float:
        """With so many weights present: f_S; a weight that is not named has all of them."""
        parts = (
            cost * present.get(name, self.sizes[name]) / max(1, self.sizes[name])
            for name, cost in self.layers.items()
        )
        return sum(parts) + self.other


@torch.no_grad()
def forward_flops(model: nn.Module, example: Any) -> Forward:
    """Count one forward of a dense or masked model; example: its input, a batch of one.

    The model is run in evaluation mode and left as it was. StateError if a weight is packed: count
    before packing, for the number of weights is all that matters.

    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> cost = forward_flops(model, torch.zeros(1, 8))
    >>> cost.dense, cost.sparse({"0": 16})
    (80.0, 48.0)
    """
    weights = find_weights(model)
    packed = [weight.name for weight in weights if is_packed(weight.module)]
    if packed:
        raise StateError(f"FLOPs are counted before packing; layer {packed[0]!r} is packed")
    products = Products({weight.parameter.data_ptr(): weight.name for weight in weights})
    training = [(module, module.training) for module in model.modules()]
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        model.eval()
        with products, sdpa_kernel(SDPBackend.MATH):
            model(example)
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, was in training:
            module.training = was
    sizes = {weight.name: weight.parameter.numel() for weight in weights}
    return Forward(products.of_weights, sizes, products.other)


class Products(TorchDispatchMode):
    """While it is entered, adds up the FLOPs of matrix products and convolutions as they run.

    of_weights: those in which a weight takes part, by its name; other: all the rest. Where a
    weight's gradient is made none takes part. weights: address of a weight's memory -> its name.
    """

    def __init__(self, weights: Mapping[int, str] | None = None):
        super().__init__()
        self._weights = dict(weights or {})
        self.of_weights: dict[str, float] = dict.fromkeys(self._weights.values(), 0.0)
        self.other = 0.0

    @property
    def total(self) -> float:
        return sum(self.of_weights.values()) + self.other

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            flops = float(count(*args, **(kwargs or {}), out_val=out))
            owner = next((name for name in map(self._owner, args) if name is not None), None)
            if owner is None:
                self.other += flops
            else:
                self.of_weights[owner] += flops
        return out

    def _owner(self, argument: Any) -> str | None:
        """The weight that an argument is, is turned from, or is a part of."""
        if not isinstance(argument, torch.Tensor) or not self._weights:
            return None
        base = argument if argument._base is None else argument._base
        return self._weights.get(base.data_ptr())


def step_flops(sparse: float, gradient: float) -> float:
    """A training step of one example whose forward costs f_S.

    Forward and the gradient of the inputs cost f_S each; gradient: that of the weights, f_S where
    only present ones have one, f_D where all have, as at RigL's updates.

    >>> step_flops(10.0, 10.0), step_flops(10.0, 100.0)
    (30.0, 120.0)
    """
    return 2 * sparse + gradient


def reads_absent(method: Method, layer: Layer, step: int) -> int:
    """Absent weights of a layer whose gradients a method takes at a step.

    All of them where absent weights live on, and where it is due and needs gradients; none else. A
    method that takes fewer says so itself (abilities.ReadsSome).
    """
    return _reader(method)(layer, step)


def _reader(method: Method) -> Callable[[Layer, int], int]:
    """The same of one method, whose abilities are asked for once."""
    if isinstance(method, ReadsSome):
        return method.reads_absent
    always = keeps_absent(method)

    def reads(layer: Layer, step: int) -> int:
        takes = always or (method.needs_gradient and method.due(step))
        return layer.numel - layer.present if takes else 0

    return reads


class TrainingFlops:
    """Adds up the FLOPs of a run, from the masks as they are at every step.

    forward: of the model. total: of all steps so far, and of whatever else was spent.
    """

    def __init__(self, forward: Forward):
        self.forward = forward
        self.total = 0.0
        self._seen: tuple[Sparsifier | None, int] = (None, -1)
        self._present: dict[str, int] = {}
        self._reads: Callable[[Layer, int], int] = lambda layer, step: 0
        self._sparse = forward.dense

    def step(self, examples: int, sparse: Sparsifier | None = None) -> None:
        """Before the backward of a step on so many examples; sparse: what holds the masks."""
        if sparse is None:
            self.total += examples * step_flops(self.forward.dense, self.forward.dense)
            return
        seen = sparse, len(sparse.changes)
        if sparse is not self._seen[0]:
            self._reads = _reader(sparse.method)
        if seen != self._seen:  # counting present weights takes time; masks seldom move
            self._present = {layer.name: layer.present for layer in sparse.layers}
            self._sparse, self._seen = self.forward.sparse(self._present), seen
        read = {layer.name: self._reads(layer, sparse.step) for layer in sparse.layers}
        gradient = self._sparse
        if any(read.values()):
            gradient = self.forward.sparse({n: c + read[n] for n, c in self._present.items()})
        self.total += examples * step_flops(self._sparse, gradient)

    @contextmanager
    def executed(self) -> Iterator[None]:
        """Add what runs inside as it is executed: dense, forward and backward alike."""
        products = Products()
        with products:
            yield
        self.total += products.total
