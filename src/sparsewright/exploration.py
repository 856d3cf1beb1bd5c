"""Exploration: the part of all weights that was present at any time of a run.

R_s of Liu, Yin, Mocanu, Pechenizkiy 2021 (in-time over-parameterisation), which explains how well
dynamic sparse training ends.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from .arguments import told
from .errors import ConfigError
from .sparsifier import Sparsifier


class Exploration:
    """What was ever present of a Sparsifier's layers; call `look` after every optimizer step.

    ever: layer name -> flat units, ascending. A look costs nothing where no mask has moved.

    >>> import sparsewright as sw
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))
    >>> optimizer = torch.optim.SGD(model.parameters(), 0.1)
    >>> sparse = sw.attach(model, optimizer, method=sw.SET(every=3), sparsity=0.75, steps=9)
    >>> Exploration(sparse).rate()
    0.25
    """

    def __init__(self, sparse: Sparsifier):
        if not isinstance(sparse, Sparsifier):
            raise ConfigError(f"Exploration looks at what attach returned; got {told(sparse)}")
        self.sparse = sparse
        self.ever: dict[str, Tensor] = {layer.name: layer.present_units for layer in sparse.layers}
        self._seen = len(sparse.changes)

    def look(self) -> None:
        """Add what grew since the last look."""
        moved = {change.layer for change in self.sparse.changes[self._seen :] if change.grown}
        self._seen = len(self.sparse.changes)
        for layer in self.sparse.layers:
            if layer.name in moved:
                both = torch.cat(
                    [self.ever[layer.name].to(layer.weight.device), layer.present_units]
                )
                self.ever[layer.name] = both.unique()

    def rates(self) -> dict[str, float]:
        """Layer name -> the part of its weights that was ever present, in [0, 1]."""
        return {
            layer.name: len(self.ever[layer.name]) / max(1, layer.groups * layer.units)
            for layer in self.sparse.layers
        }

    def rate(self) -> float:
        """R_s: the part of the weights of all layers that was ever present, in [0, 1]."""
        layers = self.sparse.layers
        tried = sum(len(self.ever[layer.name]) * layer.unit_size for layer in layers)
        return tried / max(1, sum(layer.numel for layer in layers))

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold for the count to go on."""
        return dict(self.ever)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Go on from `state_dict()`."""
        for layer in self.sparse.layers:
            self.ever[layer.name] = state[layer.name].to(layer.weight.device)
        self._seen = len(self.sparse.changes)
