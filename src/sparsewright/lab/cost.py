"""What a training step costs, layer by layer: the bytes of its state, and its milliseconds.

Steps are timed when a run is over, on real batches: whole ones, and in turn with them others with
hooks around every layer. Forward is the time inside a module; backward lasts from the gradient of
its output to the gradients of its parameters; what lies between layers (activations, the loss) is
"other".
"""

from __future__ import annotations

import itertools
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from ..core import Layer
from ..nn import PackedModule
from ..sparsifier import Sparsifier
from .data import Pair

STEPS, FEWEST, UNTIMED = 20, 3, 2
SECONDS = 4.0
"""Of timing: then it is enough after `FEWEST` steps of each kind."""
OPTIMIZER, OTHER = ("optimizer", ""), ("other", "")
Part = tuple[str, str]
"""(layer, "forward" or "backward"), or one of the two above."""
Times = dict[Part, float]


@dataclass(frozen=True)
class Bytes:
    """What training holds for a layer between two steps, in bytes.

    values: weights and biases. gradients, optimizer: of these. places: which weights are present,
    as places with all that kernels derive from them, or as masks.
    """

    values: int = 0
    gradients: int = 0
    optimizer: int = 0
    places: int = 0


@dataclass(frozen=True)
class LayerCost:
    """One module with parameters of its own. dense: bytes if no weight were absent."""

    name: str
    kind: str
    storage: str
    bytes: Bytes
    dense: Bytes
    forward_ms: float
    backward_ms: float


def step_cost(
    model: nn.Module, optimizer: Optimizer, sparse: Sparsifier | None, batches: Iterable[Pair]
) -> dict[str, Any]:
    """What cost.json says of a model: bytes and median milliseconds of steps that train it on.

    batches: `STEPS` of them are looked at; those that are smaller than the first are left out. The
    shares of layers are of steps with hooks, which last a little longer than whole ones. Steps in
    which a mask moves last longer too; medians do not show them where they are few.
    """
    first, *more = itertools.islice(batches, STEPS)
    pairs = [first, *(pair for pair in more if len(pair[1]) == len(first[1]))]
    watch = Stopwatch(first[0].device)
    model.train()
    whole, steps = _timed(model, optimizer, watch, pairs)
    milliseconds: Times = defaultdict(float)
    for part in set().union(*steps):
        milliseconds[part] = 1e3 * median(step.get(part, 0.0) for step in steps)
    whole.sort()
    return {
        "batch": len(first[1]),
        "threads": torch.get_num_threads(),
        "steps": len(whole),
        "step_ms": 1e3 * median(whole),
        "low_ms": 1e3 * whole[len(whole) // 10],
        "high_ms": 1e3 * whole[-1 - len(whole) // 10],
        "optimizer_ms": milliseconds[OPTIMIZER],
        "other_ms": milliseconds[OTHER],
        "layers": [asdict(row) for row in _rows(model, optimizer, sparse, milliseconds)],
    }


# --- time ---------------------------------------------------------------------------------------


class Stopwatch:
    """Seconds by part of a step: `mark` gives what passed since the last mark to one part."""

    def __init__(self, device: torch.device):
        self.seconds: Times = {}
        self._last = 0.0
        on_cpu = device.type == "cpu"
        self._wait = (lambda: None) if on_cpu else partial(torch.accelerator.synchronize, device)

    def start(self) -> None:
        self._wait()
        self.seconds, self._last = {}, time.perf_counter()

    def mark(self, part: Part) -> None:
        self._wait()
        now = time.perf_counter()
        self.seconds[part] = self.seconds.get(part, 0.0) + now - self._last
        self._last = now


def _step(
    model: nn.Module, optimizer: Optimizer, watch: Stopwatch, pair: Pair
) -> dict[Part, float]:
    """One optimizer step as the training loop takes it; seconds by part."""
    watch.start()
    optimizer.zero_grad()
    F.cross_entropy(model(pair[0]), pair[1]).backward()
    watch.mark(OTHER)
    optimizer.step()
    watch.mark(OPTIMIZER)
    return watch.seconds


def _timed(
    model: nn.Module, optimizer: Optimizer, watch: Stopwatch, pairs: Sequence[Pair]
) -> tuple[list[float], list[Times]]:
    """Seconds of whole steps, and by part of steps with hooks, in turn: noise hits both alike."""
    whole, by_part = [], []
    end = time.perf_counter() + SECONDS
    for number, pair in enumerate(itertools.islice(itertools.cycle(pairs), UNTIMED + STEPS)):
        if number >= UNTIMED + FEWEST and time.perf_counter() > end:
            break
        whole.append(sum(_step(model, optimizer, watch, pair).values()))
        with _watched(model, watch):
            by_part.append(_step(model, optimizer, watch, pair))
    return whole[UNTIMED:], by_part[UNTIMED:]


@contextmanager
def _watched(model: nn.Module, watch: Stopwatch) -> Iterator[None]:
    """Mark where layers begin and end, forward and backward.

    Autograd runs a layer's nodes one after the other, those that accumulate its gradients as soon
    as they can: the last of these ends the layer.
    """
    handles: list[Any] = []
    for name, module in _owners(model):
        handles += [
            module.register_forward_pre_hook(lambda *_: watch.mark(OTHER)),
            module.register_forward_hook(partial(_left, watch, name)),
        ]
        ends = partial(_marks, watch, (name, "backward"))
        handles += [
            parameter.register_post_accumulate_grad_hook(ends)
            for parameter in module.parameters(recurse=False)
            if parameter.requires_grad
        ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _left(watch: Stopwatch, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
    """A module's forward is over; its backward begins where its output's gradient is whole."""
    watch.mark((name, "forward"))
    if isinstance(output, Tensor) and output.requires_grad:
        output.register_hook(partial(_marks, watch, OTHER))


def _marks(watch: Stopwatch, part: Part, _: Tensor) -> None:
    watch.mark(part)


# --- bytes --------------------------------------------------------------------------------------


def _owners(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """(name, module) of all modules with parameters of their own."""
    found = model.named_modules()
    return [(name, m) for name, m in found if any(True for _ in m.parameters(recurse=False))]


def _rows(
    model: nn.Module,
    optimizer: Optimizer,
    sparse: Sparsifier | None,
    milliseconds: Times,
) -> Iterator[LayerCost]:
    layers = {id(layer.weight): layer for layer in (sparse.layers if sparse else ())}
    for name, module in _owners(model):
        held, dense = Bytes(), Bytes()
        storage = "packed" if isinstance(module, PackedModule) else "dense"
        for parameter in module.parameters(recurse=False):
            layer = layers.get(id(parameter))
            whole = layer.numel if layer else parameter.numel()
            held = _sum(held, _state_bytes(parameter, optimizer, parameter.numel()))
            dense = _sum(dense, _state_bytes(parameter, optimizer, whole))
            if layer and storage != "packed":
                storage = "dense" if layer.present == layer.numel else "masked"
                held = _sum(held, Bytes(places=mask_bytes(layer)))
        if isinstance(module, PackedModule):
            held = _sum(held, Bytes(places=module.topology.nbytes))
        spent = milliseconds[name, "forward"], milliseconds[name, "backward"]
        yield LayerCost(name, type(module).__name__, storage, held, dense, *spent)


def mask_bytes(layer: Layer) -> int:
    """Of a masked layer: one byte for every unit, and one for every weight."""
    return layer.groups * layer.units + layer.numel


def _state_bytes(parameter: nn.Parameter, optimizer: Optimizer, size: int) -> Bytes:
    """Values, gradient and optimizer state if the parameter had `size` entries."""
    each = parameter.element_size()
    slots = [s for s in optimizer.state.get(parameter, {}).values() if isinstance(s, Tensor)]
    return Bytes(
        values=size * each,
        gradients=0 if parameter.grad is None else size * each,
        optimizer=sum(
            s.element_size() * (size if s.shape == parameter.shape else s.numel()) for s in slots
        ),
    )


def _sum(a: Bytes, b: Bytes) -> Bytes:
    return Bytes(**{name: value + asdict(b)[name] for name, value in asdict(a).items()})
