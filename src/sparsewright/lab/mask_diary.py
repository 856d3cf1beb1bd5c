"""What a run's masks did in each epoch: how much moved, how far they are from the first ones.

`ever` is the fraction of weights that was present at any time, R_s of Liu et al. 2021 (ITOP).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..connectivity import dead_outputs
from ..core import Layer
from ..exploration import Exploration
from ..sampling import is_in
from ..sparsifier import Sparsifier


class MaskDiary:
    """Watches the masks of a Sparsifier; call `look` after every optimizer step."""

    def __init__(self, sparse: Sparsifier):
        self.sparse = sparse
        self.first = {layer.name: layer.present_units for layer in sparse.layers}
        self.explored = Exploration(sparse)
        self._reported = len(sparse.changes)

    def look(self) -> None:
        """Take note of what grew since the last look."""
        self.explored.look()

    def page(self, epoch: int) -> dict[str, Any]:
        """The line of masks.jsonl for an epoch; what moved counts since the last page."""
        moved = self.sparse.changes[self._reported :]
        self._reported = len(self.sparse.changes)
        layers, ever = {}, self.explored.rates()
        for layer in self.sparse.layers:
            changes = [change for change in moved if change.layer == layer.name]
            layers[layer.name] = {
                **self._state(layer),
                "ever": ever[layer.name],
                "dropped": sum(change.dropped for change in changes),
                "grown": sum(change.grown for change in changes),
            }
        counts = inputs_used(self.sparse.layers[0]) if self.sparse.layers else []
        return {
            "epoch": epoch,
            "step": self.sparse.step,
            "layers": layers,
            "input_counts": counts,
        }

    def _state(self, layer: Layer) -> dict[str, Any]:
        return {
            "present": layer.present,
            "total": layer.numel,
            "sparsity": layer.sparsity,
            "dead_outputs": dead_outputs(layer),
            "overlap_first": overlap(self.first[layer.name], layer.present_units),
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"first": dict(self.first), "ever": self.explored.state_dict()}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, units in self.first.items():
            self.first[name] = state["first"][name].to(units.device)
        self.explored.load_state_dict(state["ever"])
        self._reported = len(self.sparse.changes)


def overlap(a: Tensor, b: Tensor) -> float:
    """Jaccard index of two sets of ascending numbers: those in both over those in either.

    >>> import torch
    >>> overlap(torch.tensor([0, 1]), torch.tensor([1, 2]))
    0.3333333333333333
    """
    both = int(is_in(a, b).sum())
    either = len(a) + len(b) - both
    return both / either if either else 1.0


def inputs_used(layer: Layer) -> list[int]:
    """The number of present weights of every input."""
    return layer.storage.input_counts().tolist()
