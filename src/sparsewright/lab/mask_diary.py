"""What a run's masks did in each epoch: how much moved, how far they are from the first ones.

`ever` is the fraction of weights that was present at any time, R_s of Liu et al. 2021 (ITOP).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..connectivity import dead_outputs
from ..core import Layer
from ..sparsifier import Sparsifier


class MaskDiary:
    """Watches the masks of a Sparsifier; call `look` after every optimizer step."""

    def __init__(self, sparse: Sparsifier):
        self.sparse = sparse
        self.first = {layer.name: layer.mask.clone() for layer in sparse.layers}
        self.ever = {name: mask.clone() for name, mask in self.first.items()}
        self._seen = self._reported = len(sparse.changes)

    def look(self) -> None:
        """Add to `ever` what grew since the last look."""
        if len(self.sparse.changes) == self._seen:
            return
        self._seen = len(self.sparse.changes)
        for layer in self.sparse.layers:
            self.ever[layer.name] |= layer.mask

    def page(self, epoch: int) -> dict[str, Any]:
        """The line of masks.jsonl for an epoch; what moved counts since the last page."""
        moved = self.sparse.changes[self._reported :]
        self._reported = len(self.sparse.changes)
        layers = {}
        for layer in self.sparse.layers:
            changes = [change for change in moved if change.layer == layer.name]
            layers[layer.name] = {
                **self._state(layer),
                "dropped": sum(change.dropped for change in changes),
                "grown": sum(change.grown for change in changes),
            }
        counts = inputs_used(self.sparse.layers[0].mask) if self.sparse.layers else []
        return {
            "epoch": epoch,
            "step": self.sparse.step,
            "layers": layers,
            "input_counts": counts,
        }

    def _state(self, layer: Layer) -> dict[str, Any]:
        return {
            "present": layer.present,
            "total": layer.weight.numel(),
            "sparsity": layer.sparsity,
            "dead_outputs": dead_outputs(layer),
            "overlap_first": overlap(self.first[layer.name], layer.mask),
            "ever": self.ever[layer.name].float().mean().item(),
        }

    def state_dict(self) -> dict[str, dict[str, Tensor]]:
        return {"first": dict(self.first), "ever": dict(self.ever)}

    def load_state_dict(self, state: dict[str, dict[str, Tensor]]) -> None:
        for name, mask in self.first.items():
            mask.copy_(state["first"][name])
            self.ever[name].copy_(state["ever"][name])
        self._seen = self._reported = len(self.sparse.changes)


def overlap(a: Tensor, b: Tensor) -> float:
    """Jaccard index of two masks: weights present in both over weights present in either.

    >>> import torch
    >>> overlap(torch.tensor([True, True, False]), torch.tensor([False, True, True]))
    0.3333333333333333
    """
    either = int((a | b).sum())
    return int((a & b).sum()) / either if either else 1.0


def inputs_used(mask: Tensor) -> list[int]:
    """Present weights of every input: (out, in, *kernel) bool -> one count per input.

    >>> import torch
    >>> inputs_used(torch.tensor([[True, False], [True, True]]))
    [2, 1]
    """
    return mask.transpose(0, 1).flatten(1).sum(dim=1).tolist()
