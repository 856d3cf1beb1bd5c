"""Freed weights are shared out among layers: to each its share, to none more than it has room for.

What a full layer cannot take goes to the others by their shares (Mostafa, Wang 2019; Dettmers,
Zettlemoyer 2019).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..budget import share_again
from ..core import Layer


def shared_out(
    freed: float, shares: Mapping[str, float], room: Mapping[str, float]
) -> dict[str, float]:
    """Layer name -> weights that it gets, real numbers that sum to `freed` if there is room.

    >>> shared_out(12.0, {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 9.0, "c": 9.0})
    {'a': 3.0, 'b': 4.5, 'c': 4.5}
    """
    got = dict.fromkeys(shares, 0.0)
    open_ = [name for name in shares if room[name] > 0]
    left = freed
    while open_ and left > 1e-9:
        # Without any share to go by, all are alike.
        weights = {name: shares[name] for name in open_}
        if sum(weights.values()) <= 0:
            weights = dict.fromkeys(open_, 1.0)
        unit = left / sum(weights.values())
        full = [name for name in open_ if got[name] + unit * weights[name] >= room[name]]
        if not full:
            for name in open_:
                got[name] += unit * weights[name]
            break
        for name in full:
            left -= room[name] - got[name]
            got[name] = float(room[name])
        open_ = [name for name in open_ if name not in full]
    return got


def redistribute(
    layers: Sequence[Layer], kept: Mapping[str, int], shares: Mapping[str, float]
) -> None:
    """Set `layer.keep` of every layer to the weights that it kept and its share of those freed.

    kept: layer name -> weights left of it. A layer whose pattern holds one count alone (N:M), or
    that has a sparsity of its own, takes no part. The total stays what it was.
    """
    free = [layer for layer in layers if layer.may_share]
    freed = sum(_budget(layer) - kept[layer.name] for layer in free)
    got = shared_out(
        freed,
        {layer.name: shares[layer.name] for layer in free},
        {layer.name: layer.numel - kept[layer.name] for layer in free},
    )
    share_again(free, {layer.name: kept[layer.name] + got[layer.name] for layer in free})


def _budget(layer: Layer) -> int:
    return layer.keep * layer.groups * layer.unit_size
