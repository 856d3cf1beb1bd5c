"""Percolation: a neuron without inputs or without outputs passes nothing on, so what is left of its
links goes too, and that may leave others without (Zhang et al., ICLR 2024).

Which neurons lie between two weights is known where an `nn.Sequential` runs them one after another.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, dropout, pooling

from ..core import Layer
from ..errors import ConfigError, UnknownNameError
from ..weights import NORMS

Chains = tuple[tuple[str, ...], ...]
Pair = tuple[Layer, Layer]
PASSING = (nn.Identity, nn.Flatten, *NORMS)
"""Modules that hand every neuron on by itself, beside those of PASSING_FILES."""
PASSING_FILES = {kind.__name__ for kind in (activation, dropout, pooling)}


def chains_of(model: nn.Module, layers: Sequence[Layer]) -> Chains:
    """Names of layers that feed one another, in order, two or more of each chain.

    Two do if an `nn.Sequential`, or several within one another, runs them with nothing between but
    activations, norms, pooling, dropout and Flatten. A weight that is used twice feeds none, nor
    does an Embedding or a convolution in groups.
    """
    known = {layer.name: layer for layer in layers if not (layer.is_lookup or layer.aliases)}
    names = {id(module): name for name, module in model.named_modules()}
    inner = {id(m) for one in model.modules() if _runs(one) for m in one.children() if _runs(m)}
    found: list[list[str]] = []
    for outer in model.modules():
        if not _runs(outer) or id(outer) in inner:
            continue
        parts = list(_parts(outer))
        run: list[str] = []
        for part in parts:
            layer = known.get(names[id(part)])
            if layer is None or getattr(part, "groups", 1) != 1 or parts.count(part) > 1:
                if not _passes(part):
                    run = []
                continue
            if not run or not _fit(known[run[-1]], layer):
                run = []
                found.append(run)
            run.append(layer.name)
    return tuple(tuple(run) for run in found if len(run) > 1)


def check_chains(method: str, chains: Chains, layers: Sequence[Layer]) -> None:
    """UnknownNameError or ConfigError unless chains name sparse layers whose sizes follow, each
    with one layer before it and one behind it at most: a neuron is judged by all of its links.
    """
    known = {layer.name: layer for layer in layers}
    for name in itertools.chain(*chains):
        if name not in known:
            raise UnknownNameError("sparse layer", name, list(known))
    joints = [joint for chain in chains for joint in itertools.pairwise(chain)]
    for side in zip(*joints, strict=True):
        if twice := [name for name in side if side.count(name) > 1]:
            raise ConfigError(
                f"method {method}: in chains a layer may have one layer before it and one behind "
                f"it; got two beside {twice[0]!r}"
            )
    for a, b in joints:
        if known[a].is_lookup or known[b].is_lookup or not _fit(known[a], known[b]):
            raise ConfigError(
                f"method {method}: in chains the inputs of a layer must be the outputs of the one "
                f"before it, or a whole number of each; got {a!r} of shape {known[a].shape} before "
                f"{b!r} of shape {known[b].shape}"
            )


def pairs_among(layers: Sequence[Layer], chains: Chains) -> list[Pair]:
    """The layers that follow one another in some chain, of those that are given."""
    known = {layer.name: layer for layer in layers}
    return [
        (known[a], known[b])
        for chain in chains
        for a, b in itertools.pairwise(chain)
        if a in known and b in known
    ]


def percolated(
    pairs: Sequence[Pair], tables: Mapping[str, Tensor], fixed: Collection[str] = ()
) -> dict[str, Tensor]:
    """Layer name -> its (groups, units) bool table less what joins inactive neurons alone.

    A unit of several weights goes once all of them do. fixed: layers that lose nothing.
    """
    left = dict(tables)
    while True:
        before = {name: int(table.sum()) for name, table in left.items()}
        for a, b in [*pairs, *reversed(pairs)]:
            inputs, outputs = _links(a, left[a.name]), _links(b, left[b.name])
            each = b.shape[1] // a.shape[0]
            active = inputs.any(dim=1) & outputs.any(dim=0).view(-1, each).any(dim=1)
            ends = active.repeat_interleave(each)
            for layer, alive in ((a, active[:, None]), (b, ends[None, :])):
                if layer.name not in fixed:
                    left[layer.name] = left[layer.name] & _units(layer, alive)
        if before == {name: int(table.sum()) for name, table in left.items()}:
            return left


def _runs(module: nn.Module) -> bool:
    """Whether it calls its children one after another and does nothing else."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _parts(module: nn.Module) -> Iterator[nn.Module]:
    for part in module.children():
        yield from _parts(part) if _runs(part) else (part,)


def _passes(module: nn.Module) -> bool:
    own = not isinstance(module, nn.MultiheadAttention)
    return own and (isinstance(module, PASSING) or type(module).__module__ in PASSING_FILES)


def _fit(a: Layer, b: Layer) -> bool:
    """Whether the outputs of one can be the inputs of the next, each perhaps several times (a
    flattened image)."""
    if len(a.shape) < 2 or len(b.shape) < 2 or not a.shape[0]:
        return False
    return b.shape[1] >= a.shape[0] and b.shape[1] % a.shape[0] == 0


def _links(layer: Layer, table: Tensor) -> Tensor:
    """(outputs, inputs) bool."""
    mask = layer.pattern.unfold(table, layer.shape)
    return mask.flatten(2).any(dim=2) if mask.dim() > 2 else mask


def _units(layer: Layer, alive: Tensor) -> Tensor:
    """(groups, units) bool: those with a weight where `alive`, (outputs or 1, inputs or 1), is."""
    shape = (*alive.shape, *[1] * (len(layer.shape) - 2))
    return layer.pattern.fold(alive.view(shape).expand(layer.shape).to(torch.float32)) > 0
