"""Capture: the moments of a model's layers on data, a few layers at a time, in the order in which
the model runs them, so that each may be changed before the next is measured.

Where the model has a chain of blocks, only what enters the current block is kept, on the CPU; else
the model is run anew for each group of layers, and stopped right after the group's last call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .calibration import check_batches, run
from .chains import Chain, Feed, Stop, advance, enter, find_chains, holds, until_stop, version
from .errors import ConfigError, StateError, UnknownNameError
from .moments import MEASURED, Moments, way
from .weights import Weight, is_packed

Together = Literal["layer", "block"]
TOGETHER: tuple[Together, ...] = ("layer", "block")


def walk(
    model: nn.Module,
    weights: Sequence[Weight],
    batches: Iterable[Any],
    *,
    together: Together = "layer",
    dtype: torch.dtype = torch.float64,
) -> Iterator[dict[str, Moments]]:
    """Groups of layers in the order in which the model runs them: name -> Moments.

    What is done to the weights of a group before the next one is asked for is seen by all that
    follow. together: "layer" measures layer by layer, only such together as have one input (the
    projections of an attention); "block" all layers of a block of a chain, in fewer passes.
    dtype: of the sums.

    batches: as `calibration.run` takes them; read once and kept. They are run without gradients, in
    eval mode, and models that keep a cache of attention go without; all that comes back at the end
    (close the iterator if you do not exhaust it). Memory beside them: the moments of one group, and
    one copy of what enters the current block, for each level of chains within chains. A layer
    called several times sums over all of its calls.

    Raises ConfigError for a layer whose inputs are not to be had, or that is never called.

    >>> from sparsewright.weights import find_weights
    >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1))
    >>> for group in walk(model, find_weights(model), [torch.randn(8, 2)]):
    ...     print({name: tuple(moments.second.shape) for name, moments in group.items()})
    {'0': (1, 2, 2)}
    {'2': (1, 3, 3)}
    """
    if together not in TOGETHER:
        raise UnknownNameError("way to measure together", together, TOGETHER)
    check_layers(model, weights)
    feeds = feeds_of(model, batches)
    with at_rest(model):
        traced = _trace(feeds, weights)
        chains, _ = find_chains(model, feeds[0], [weight.module for weight in weights])
        yield from _Walk(traced, together, dtype).through(feeds, traced.order, chains)


@torch.no_grad()
def input_squares(
    model: nn.Module, weights: Sequence[Weight], batches: Iterable[Any]
) -> dict[str, Tensor]:
    """Layer name -> (groups, in) squared norms of its inputs over all data, in one pass.

    The model is left as it was. Raises as `walk` does.
    """
    check_layers(model, weights)
    found = {weight.name: Moments(weight.module, second=False) for weight in weights}
    hooks = [_on_input(w.module, found[w.name].add) for w in weights]
    try:
        with at_rest(model):
            for feed in feeds_of(model, batches):
                feed()
    finally:
        for hook in hooks:
            hook.remove()
    _check_called({name: moments.count for name, moments in found.items()})
    for name, moments in found.items():
        moments.check(name)
    return {name: moments.squares for name, moments in found.items()}


def feeds_of(model: nn.Module, batches: Iterable[Any]) -> list[Feed]:
    """One run of the model for each batch; ConfigError if there is none, or no list of them."""
    check_batches(batches)
    feeds: list[Feed] = [partial(run, model, batch) for batch in batches]
    if not feeds:
        raise ConfigError("data holds no batch; a generator lasts for one pass, a list for many")
    return feeds


def check_layers(model: nn.Module, weights: Sequence[Weight]) -> None:
    """ConfigError for the first layer whose inputs cannot be measured."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module._parameters.values():
            if parameter is not None:
                owners.setdefault(id(parameter), []).append(name)
    for weight in weights:
        name, kind = weight.name, type(weight.module).__name__
        if is_packed(weight.module):
            raise ConfigError(f"layer {name!r} is packed: what is measured is dense (sw.unpack)")
        if not isinstance(weight.module, MEASURED):
            all_such = [w.name for w in weights if not isinstance(w.module, MEASURED)]
            raise ConfigError(
                f"layer {name!r}: the inputs of {kind} are not measured, only those of Linear and "
                f"convolutions; leave such layers out (skip={all_such})"
            )
        tied = owners.get(id(weight.parameter), [])
        if len(tied) > 1:
            raise ConfigError(
                f"layer {name!r}: its weight is tied, {' and '.join(map(repr, tied))} share it, "
                f"and each has inputs of its own; leave it out (skip=[{name!r}])"
            )


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode, and no cache of attention kept; all as before afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    configs = {id(c): c for m in model.modules() if (c := getattr(m, "config", None)) is not None}
    caching = [c for c in configs.values() if getattr(c, "use_cache", None) is True]
    try:
        model.eval()
        for config in caching:
            config.use_cache = False
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        for config in caching:
            config.use_cache = True


@dataclass(frozen=True)
class _Traced:
    """What a first pass over the data saw.

    order: the layers, by the place of their first call. calls: of every batch, layer name -> how
    often. joined: layer name -> the layer called right before, always on the same input.
    """

    order: tuple[Weight, ...]
    calls: tuple[Counter[str], ...]
    joined: dict[str, str | None]


@torch.no_grad()
def _trace(feeds: Sequence[Feed], weights: Sequence[Weight]) -> _Traced:
    places = {weight.name: 0 for weight in weights}
    partners: dict[str, set[str | None]] = {weight.name: set() for weight in weights}
    calls: list[Counter[str]] = []
    last: list[tuple[str, Tensor, int]] = []

    def look(name: str, x: Tensor) -> None:
        seen = calls[-1]
        same = bool(last) and last[0][1] is x and last[0][2] == version(x) >= 0
        partners[name].add(last[0][0] if same else None)
        if not seen[name]:
            places[name] = max(places[name], len(seen))
        seen[name] += 1
        last[:] = [(name, x, version(x))]

    hooks = [_on_input(weight.module, partial(look, weight.name)) for weight in weights]
    try:
        for feed in feeds:
            calls.append(Counter())
            feed()
            last.clear()
    finally:
        for hook in hooks:
            hook.remove()
    _check_called({w.name: sum(seen[w.name] for seen in calls) for w in weights})
    joined = {name: _partner(name, found, calls) for name, found in partners.items()}
    order = sorted(weights, key=lambda weight: places[weight.name])
    return _Traced(tuple(order), tuple(calls), joined)


def _partner(name: str, found: set[str | None], calls: Sequence[Counter[str]]) -> str | None:
    """The one layer that was always called before on the same input, and as often."""
    one = next(iter(found)) if len(found) == 1 else None
    if one is None or one == name or any(seen[one] != seen[name] for seen in calls):
        return None
    return one


def _check_called(counts: dict[str, int]) -> None:
    never = [name for name, count in counts.items() if not count]
    if never:
        raise ConfigError(
            f"layer {never[0]!r} is never called on the data, so its inputs are not known (some "
            "modules use a part's weight without calling it, as MultiheadAttention does); leave "
            f"it out (skip={never})"
        )


class _Walk:
    """Groups of layers, from the model down into the blocks of its chains."""

    def __init__(self, traced: _Traced, together: Together, dtype: torch.dtype):
        self.traced, self.together, self.dtype = traced, together, dtype

    def through(
        self,
        feeds: Sequence[Feed | None],
        layers: Sequence[Weight],
        chains: Sequence[Chain],
        in_block: bool = False,
    ) -> Iterator[dict[str, Moments]]:
        """layers: in order, all called within the feeds. chains: those within, outer ones first."""
        left = list(layers)
        while left:
            chain = next((c for c in chains if c.block_of(left[0].module) is not None), None)
            if chain is None:
                group = self._group(left, chains, in_block)
                yield self._measure(feeds, group)
            else:
                group = [w for w in left if chain.block_of(w.module) is not None]
                chains = [c for c in chains if c is not chain]
                entries = enter(chain, [feed or _nothing for feed in feeds])
                if not self._true(chain, feeds, entries, group):
                    continue  # no chain: its layers are measured as all others are
                yield from self._down(chain, entries, group, chains)
            names = {weight.name for weight in group}
            left = [weight for weight in left if weight.name not in names]

    def _down(
        self, chain: Chain, entries: Any, layers: list[Weight], chains: Sequence[Chain]
    ) -> Iterator[dict[str, Moments]]:
        last = max(chain.block_of(weight.module) or 0 for weight in layers)
        for i, block in enumerate(chain.blocks[: last + 1]):
            mine = [weight for weight in layers if chain.block_of(weight.module) == i]
            if mine:
                within = [c for c in chains if c.within(block)]
                if self.together == "block":
                    within = [c for c in within if not c.of_layers]
                feeds = [None if e is None else partial(e.call, block) for e in entries]
                yield from self.through(feeds, mine, within, in_block=True)
                del feeds
            if i < last:
                advance(chain, i, entries)

    def _true(
        self, chain: Chain, feeds: Sequence[Feed | None], entries: Any, layers: list[Weight]
    ) -> bool:
        """Whether the first batch passes the chain, block by block, as it passes the model, and
        calls the layers there alone."""
        batch = next((i for i, feed in enumerate(feeds) if feed is not None), 0)
        feed, seen = feeds[batch], Counter[str]()

        def count(name: str, x: Tensor) -> None:
            seen[name] += 1

        hooks = [_on_input(weight.module, partial(count, weight.name)) for weight in layers]
        try:
            same = feed is not None and holds(chain, feed, entries[batch])
        finally:
            for hook in hooks:
                hook.remove()
        counts = self.traced.calls[batch]  # once in the model, once in the chain
        return same and all(seen[w.name] == 2 * counts[w.name] for w in layers)

    def _group(
        self, left: Sequence[Weight], chains: Sequence[Chain], in_block: bool
    ) -> list[Weight]:
        """The first layers of those left that are measured together."""
        inner = {w.name for w in left if any(c.block_of(w.module) is not None for c in chains)}
        alone = [weight for weight in left if weight.name not in inner]
        if self.together == "block" and in_block:
            return alone
        group = [left[0]]
        for weight in left[1:]:
            if self.traced.joined[weight.name] != group[-1].name or weight.name in inner:
                break
            group.append(weight)
        return group

    @torch.no_grad()
    def _measure(self, feeds: Sequence[Feed | None], group: list[Weight]) -> dict[str, Moments]:
        """The moments of a group; layers of one input and one way share theirs."""
        leaders: dict[str, Weight] = {}
        for weight in group:
            before = leaders.get(self.traced.joined[weight.name] or "")
            same = before is not None and way(before.module) == way(weight.module)
            leaders[weight.name] = before if same and before is not None else weight
        moments = {n: Moments(w.module, self.dtype) for n, w in leaders.items() if w.name == n}
        left = 0

        def take(name: str, x: Tensor) -> None:
            nonlocal left
            if name in moments:
                moments[name].add(x)
            left -= 1
            if left == 0:
                raise Stop

        hooks = [_on_input(weight.module, partial(take, weight.name)) for weight in group]
        try:
            for feed, seen in zip(feeds, self.traced.calls, strict=True):
                if feed is not None:
                    left = sum(seen[weight.name] for weight in group)
                    until_stop(feed)
        finally:
            for hook in hooks:
                hook.remove()
        for name, found in moments.items():
            if not found.count:
                raise StateError(
                    f"layer {name!r}: no data reaches it any more once the layers before it are "
                    f"changed; leave it out (skip=[{name!r}])"
                )
            found.check(name)
        return {name: moments[leader.name] for name, leader in leaders.items()}


def _nothing() -> None:
    """The run of a batch that does not come here."""


def _on_input(module: nn.Module, take: Callable[[Tensor], None]) -> Any:
    """A hook that shows the module's input at every call."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        take(args[0] if args else kwargs["input"])

    return module.register_forward_pre_hook(hook, with_kwargs=True)
