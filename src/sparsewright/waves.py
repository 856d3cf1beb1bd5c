"""Calls of convolutions on images side by side, several in a row as one call (csrc/wave.h)."""

from __future__ import annotations

import itertools
import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import fx

LEAST_BYTES = 16 << 20
"""Of what a wave writes for one group of images, at its largest: less is still in cache when the
next convolution reads it, and the order that suits one convolution is the better one."""
MOST_WEIGHTS = 4 << 20
"""Bytes of weights in a wave (their code, where they are run as code), all of which every few rows
read. Of ResNet-50 at 90 % zeros on
AMD Zen 4 the first stage (output 51 MB, code 0.3 MB) gains much by a wave, the second (26 MB, 2 MB)
a little, and the third (13 MB, 7.5 MB) loses."""

FEW_WEIGHTS = 512 << 10
"""The same where images of several sizes go in one wave. Of MobileNetV1 at 90 % zeros on AMD Zen 4
the layers down to 28 times 28 places (0.2 MB) gain a little on four threads, nothing on one."""


def merge_into_waves(graph: fx.Graph) -> None:
    """Make calls of `beside_chain` that follow one another, with nothing between them, one call of
    `beside_wave`: threads need not wait for each other after each, and a row is read again soon
    after it was written.

    Of images of one size, which nodes tell (meta["extent"], height and width), or of several where
    weights are few; and where it pays: meta["bytes"], of the largest output of a call. Not for
    patches of images.
    """
    for run in list(_runs(graph)):
        sizes = itertools.groupby(run, lambda node: node.meta["extent"])
        for wave in _joined([list(chains) for _, chains in sizes]):
            large = max(node.meta["bytes"] for node in wave) >= LEAST_BYTES
            if len(wave) > 1 and large and _weights(wave) <= MOST_WEIGHTS:
                _merge(graph, wave)


def _joined(waves: list[list[fx.Node]]) -> list[list[fx.Node]]:
    """Those that follow one another as one, while their weights are few."""
    joined: list[list[fx.Node]] = []
    for wave in waves:
        if joined and _weights(joined[-1] + wave) <= FEW_WEIGHTS:
            joined[-1] += wave
        else:
            joined.append(list(wave))
    return joined


def _weights(chains: list[fx.Node]) -> int:
    numbers = [call.number for node in chains for call in node.meta["held"]]
    return int(torch.ops.sparsewright.weight_bytes(numbers))


def _runs(graph: fx.Graph) -> Iterator[list[fx.Node]]:
    chain = torch.ops.sparsewright.beside_chain.default
    found: list[fx.Node] = []
    for node in graph.nodes:
        if node.target is chain:
            found.append(node)
        elif node.op == "get_attr" or (node.target is operator.getitem and node.args[0] in found):
            continue  # computes nothing
        else:
            yield found
            found = []
    yield found


def _merge(graph: fx.Graph, chains: list[fx.Node]) -> None:
    """One call in place of these, at the last one's; `links` tells the op how they hang together
    (csrc/ops_beside_wave.cpp)."""
    outputs = [_outputs(chain) for chain in chains]
    made = [part for parts in outputs for part in parts if part is not None]
    needed = [node for chain in chains for node in chain.all_input_nodes]
    inputs = list(dict.fromkeys(node for node in needed if node not in made))
    numbers: dict[fx.Node | None, int] = {node: i for i, node in enumerate(inputs)}
    links: list[int] = []
    values = len(inputs)
    for chain, parts in zip(chains, outputs, strict=True):
        args: Any = chain.args
        x, residuals, convs, *bits = args
        added = [numbers[node] for node in residuals]
        links += [len(convs), *convs, len(added), *added, numbers[x], *bits]
        for i, part in enumerate(parts):
            numbers[part] = values + i
        values += len(parts)
    wanted = [part for part in made if any(user not in chains for user in part.users)]
    with graph.inserting_after(chains[-1]):
        wave = graph.call_function(
            torch.ops.sparsewright.beside_wave.default,
            (inputs, links, [numbers[part] for part in wanted]),
        )
    wave.meta["held"] = [call for chain in chains for call in chain.meta["held"]]
    after = wave
    for i, part in enumerate(wanted):
        with graph.inserting_after(after):
            after = graph.call_function(operator.getitem, (wave, i))
        part.replace_all_uses_with(after, delete_user_cb=lambda user: user not in chains)
    for chain in reversed(chains):
        for part in list(chain.users):
            graph.erase_node(part)
        graph.erase_node(chain)


def _outputs(chain: fx.Node) -> list[fx.Node | None]:
    """The nodes that stand for what a call gives, in order; None for what nobody takes."""
    kept: Any = chain.args[4]
    parts: list[fx.Node | None] = [None] * int(kept).bit_count()
    for user in chain.users:
        place: Any = user.args[1]
        parts[place] = user
    return parts
