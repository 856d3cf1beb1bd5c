"""Chains: blocks of a model that are called one after another, each on what the last one gave.

A model with such a chain need not be run whole to reach its deep layers: what enters the current
block is kept, and moves on block by block.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from .errors import StateError

Feed = Callable[[], Any]
"""Runs a model, or a block, on one batch."""
PLAIN = (Tensor, bool, int, float, complex, str, torch.dtype, torch.device, type(None))


class Stop(BaseException):
    """Ends a forward that has shown what was wanted; no model's `except Exception` catches it."""


@dataclass(frozen=True, eq=False)
class Chain:
    """The children of one ModuleList or Sequential.

    slot: the argument, by place or by name, that takes the hidden states. first: whether a block's
    output is a tuple, of which the first entry is the next block's hidden states.
    """

    name: str
    blocks: tuple[nn.Module, ...]
    slot: int | str
    first: bool

    def block_of(self, module: nn.Module) -> int | None:
        """The number of the block that a module lies in."""
        inside = (i for i, b in enumerate(self.blocks) if any(m is module for m in b.modules()))
        return next(inside, None)

    def within(self, module: nn.Module) -> bool:
        """Whether all blocks lie in a module."""
        return any(m is self.blocks[0] for m in module.modules())

    @property
    def of_layers(self) -> bool:
        """Whether its blocks are single layers, as in a small Sequential inside of a block."""
        return not any(list(block.children()) for block in self.blocks)

    def hidden(self, output: Any) -> Any:
        return output[0] if self.first else output


@dataclass(frozen=True)
class _Kept:
    """A tensor on the CPU, and where it is from."""

    tensor: Tensor
    device: torch.device


@dataclass(eq=False)
class Entry:
    """The arguments of one call of a block, tensors kept on the CPU."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    @classmethod
    def of(cls, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Entry:
        return cls(*tree_map(_keep, (args, kwargs)))

    def call(self, block: nn.Module) -> Any:
        """The block's output; what it may do to its arguments in place is done to copies."""
        args, kwargs = tree_map(_fresh, (self.args, self.kwargs))
        return block(*args, **kwargs)

    def replace(self, slot: int | str, hidden: Tensor) -> None:
        kept = _keep(hidden)
        if isinstance(slot, str):
            self.kwargs[slot] = kept
        else:
            self.args = (*self.args[:slot], kept, *self.args[slot + 1 :])


def _keep(value: Any) -> Any:
    return _Kept(value.detach().cpu(), value.device) if isinstance(value, Tensor) else value


def _fresh(value: Any) -> Any:
    return value.tensor.to(value.device, copy=True) if isinstance(value, _Kept) else value


@torch.no_grad()
def find_chains(
    model: nn.Module, feed: Feed, wanted: Sequence[nn.Module]
) -> tuple[list[Chain], dict[str, str]]:
    """The chains that hold wanted modules, outer ones first, and why others are none.

    The model is run once. A block must be called once, in order, on what the block before gave,
    with all other arguments the same as the first block's.
    """
    watches = [
        _Watch(name, tuple(module.children()))
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len(list(module.children())) > 1
    ]
    watches = [w for w in watches if any(m is one for one in wanted for m in w.modules())]
    hooks = [hook for watch in watches for hook in watch.hooks()]
    try:
        feed()
    finally:
        for hook in hooks:
            hook.remove()
    chains, reasons = [], {}
    for watch in watches:
        found = watch.found(wanted)
        if isinstance(found, Chain):
            chains.append(found)
        else:
            reasons[watch.name] = found
    return chains, reasons


class _Watch:
    """Looks on while the children of one container are called."""

    def __init__(self, name: str, blocks: tuple[nn.Module, ...]):
        self.name, self.blocks = name, blocks
        self.next, self.reason = 0, ""
        self.slot: int | str | None = None
        self.first = False
        self._entry: tuple[tuple[Any, ...], dict[str, Any]] = ((), {})
        self._out: Any = None
        self._version = 0

    def modules(self) -> Iterator[nn.Module]:
        return (module for block in self.blocks for module in block.modules())

    def hooks(self) -> list[Any]:
        out: list[Any] = []
        for i, block in enumerate(self.blocks):
            enter, leave = self._enter(i), self._leave(i)
            out.append(block.register_forward_pre_hook(enter, with_kwargs=True))
            out.append(block.register_forward_hook(leave))
        return out

    def found(self, wanted: Sequence[nn.Module]) -> Chain | str:
        if not self.reason and (self.next < len(self.blocks) or self.slot is None):
            self.reason = "not all of its blocks are called"
        for module in wanted:
            if sum(any(m is module for m in block.modules()) for block in self.blocks) > 1:
                self.reason = "its blocks share layers"
        if self.reason or self.slot is None:
            return self.reason
        return Chain(self.name, self.blocks, self.slot, self.first)

    def _enter(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self.reason:
                return
            if index != self.next:
                self._fail("its blocks are not called once each, in order")
            elif index == 0:
                odd = [v for v in tree_leaves((args, kwargs)) if not isinstance(v, PLAIN)]
                if odd:
                    self._fail(f"its blocks are given a {type(odd[0]).__name__}")
                self._entry = (args, kwargs)
            else:
                self._compare(args, kwargs)

        return hook

    def _leave(self, index: int) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            if self.reason:
                return
            first = isinstance(output, tuple | list)
            hidden = output[0] if first and len(output) else output
            if not isinstance(hidden, Tensor) or (index and first != self.first):
                self._fail("its blocks do not give a tensor, or a tuple that begins with one")
                return
            self.first, self._out, self._version = first, hidden, version(hidden)
            self.next = index + 1
            if self.next == len(self.blocks):
                self._release()

        return hook

    def _compare(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        before, keywords = self._entry
        if len(args) != len(before) or kwargs.keys() != keywords.keys():
            self._fail("its blocks are given different arguments")
            return
        given = _by_slot(args, kwargs)
        slots = [slot for slot, value in given.items() if value is self._out]
        if len(slots) != 1 or self.slot not in (None, slots[0]):
            self._fail("its blocks do not take what the block before gave, as one argument")
            return
        self.slot = slots[0]
        if version(self._out) != self._version:
            self._fail("what passes between its blocks is changed in place")
            return
        old = _by_slot(before, keywords)
        if not all(_same(given[slot], old[slot]) for slot in given if slot != self.slot):
            self._fail("its blocks are given different arguments")

    def _fail(self, reason: str) -> None:
        self.reason = reason
        self._release()

    def _release(self) -> None:
        self._entry, self._out = ((), {}), None


def _by_slot(args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[int | str, Any]:
    slots: dict[int | str, Any] = dict(enumerate(args))
    slots.update(kwargs)
    return slots


def _same(a: Any, b: Any) -> bool:
    """The same objects, in the same containers, or equal plain values."""
    if a is b:
        return True
    if isinstance(a, Tensor) or type(a) is not type(b):
        return False
    if isinstance(a, tuple | list):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[key], b[key]) for key in a)
    return bool(a == b)


def version(x: Tensor) -> int:
    """How often a tensor was changed in place; of one that does not count, never the same."""
    return -1 if x.is_inference() else x._version


@torch.no_grad()
def enter(chain: Chain, feeds: Sequence[Feed]) -> list[Entry | None]:
    """What enters the first block on each batch; None for a batch that does not reach it."""
    found: list[Entry | None] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> NoReturn:
        found[-1] = Entry.of(args, kwargs)
        raise Stop

    handle = chain.blocks[0].register_forward_pre_hook(hook, with_kwargs=True)
    try:
        for feed in feeds:
            found.append(None)
            until_stop(feed)
    finally:
        handle.remove()
    return found


@torch.no_grad()
def advance(chain: Chain, index: int, entries: Sequence[Entry | None]) -> None:
    """Let every batch pass one block, in place."""
    for entry in entries:
        if entry is not None:
            hidden = chain.hidden(entry.call(chain.blocks[index]))
            if not isinstance(hidden, Tensor):
                raise StateError(f"block {chain.name}.{index} gave no tensor on some batch")
            entry.replace(chain.slot, hidden)


@torch.no_grad()
def holds(chain: Chain, feed: Feed, entry: Entry | None) -> bool:
    """Whether a batch comes out of the chain, block by block, as it does of the whole model."""
    if entry is None:
        return False
    true: list[Tensor] = []

    def hook(module: nn.Module, args: Any, output: Any) -> NoReturn:
        true.append(chain.hidden(output))
        raise Stop

    handle = chain.blocks[-1].register_forward_hook(hook)
    try:
        until_stop(feed)
    finally:
        handle.remove()
    alone = Entry(entry.args, dict(entry.kwargs))
    for i in range(len(chain.blocks)):
        advance(chain, i, [alone])
    kept = alone.kwargs[chain.slot] if isinstance(chain.slot, str) else alone.args[chain.slot]
    if not true or true[0].shape != kept.tensor.shape:
        return False
    known = true[0].detach().cpu()
    # The same operations in the same order: only rounding of another kernel may differ.
    near = 1e-3 * float(known.double().std(correction=0).nan_to_num(0.0))
    return torch.allclose(known, kept.tensor, rtol=1e-3, atol=near, equal_nan=True)


def until_stop(feed: Feed) -> None:
    """Run until a hook has seen enough, or to the end."""
    with suppress(Stop):
        feed()
