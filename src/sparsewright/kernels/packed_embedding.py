"""Looking up rows of a packed weight, and the gradient of its present weights, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

from ..topology import Topology
from .packed_ops import Product, define


def embedding(topology: Topology, ids: Tensor, values: Tensor) -> Tensor:
    """ids (...) -> (..., columns), the rows with their zeros; memory goes with the output.

    >>> w = Topology.from_places(torch.tensor([1, 2]), (2, 2))  # W = [[0, 5], [7, 0]]
    >>> embedding(w, torch.tensor([1, 0]), torch.tensor([5.0, 7.0]))
    tensor([[7., 0.],
            [0., 5.]])
    """
    places, entries = _occurrences(topology, ids.reshape(-1))
    y = values.new_zeros(ids.numel() * topology.shape[1])
    y[places] = values[entries]
    return y.view(*ids.shape, topology.shape[1])


def embedding_weight_gradient(topology: Topology, dy: Tensor, ids: Tensor) -> Tensor:
    """dy (n, columns), ids (n) -> (nnz), summed over the occurrences of every row.

    >>> w = Topology.from_places(torch.tensor([1, 2]), (2, 2))
    >>> embedding_weight_gradient(w, torch.ones(3, 2), torch.tensor([1, 0, 1]))
    tensor([1., 2.])
    """
    places, entries = _occurrences(topology, ids)
    return dy.new_zeros(topology.nnz).index_add_(0, entries, dy.reshape(-1)[places])


def counted(dy: Tensor, ids: Tensor, padding: int, by_frequency: bool) -> tuple[Tensor, Tensor]:
    """dy (n, columns) and ids (n) as they count for the weight: none of row `padding` (-1: all do),
    and by_frequency each divided by how often its row occurs, as F.embedding has both."""
    flat, dy = ids.reshape(-1), dy.reshape(-1, dy.shape[-1])
    if padding >= 0:
        kept = flat != padding
        flat, dy = flat[kept], dy[kept]
    if by_frequency:
        _, which, counts = flat.unique(return_inverse=True, return_counts=True)
        dy = dy / counts[which][:, None]
    return dy, flat


def _occurrences(topology: Topology, ids: Tensor) -> tuple[Tensor, Tensor]:
    """For every present weight of every looked-up row: its flat place in the output, its number."""
    begins = topology.starts[ids]
    counts = topology.starts[ids + 1] - begins
    of = torch.repeat_interleave(torch.arange(len(ids), device=ids.device), counts)
    firsts = counts.cumsum(0) - counts
    entries = torch.arange(len(of), device=ids.device) - firsts[of] + begins[of]
    return of * topology.shape[1] + topology.columns.long()[entries], entries


def _misfit(found: Topology, ids: Tensor, padding: int, by_frequency: bool) -> str | None:
    if ids.dtype not in (torch.int64, torch.int32):
        return f"needs ids of int64 or int32; got {ids.dtype}"
    if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < found.shape[0]):
        return f"needs ids in [0, {found.shape[0]}); got {int(ids.min())} to {int(ids.max())}"
    return None


lookup = define(
    Product(
        name="packed_embedding",
        numbers=", int padding, bool by_frequency",
        shape=lambda ids, width, padding, by_frequency: (*ids.shape, width),
        outputs=-1,
        misfit=_misfit,
        takes_ids=True,
        forward=lambda found, ids, values, bias, padding, by_frequency: embedding(
            found, ids.long(), values
        ),
        input_gradient=None,
        weight_gradient=lambda found, dy, ids, padding, by_frequency: embedding_weight_gradient(
            found, *counted(dy, ids.long(), padding, by_frequency)
        ),
    )
)
"""packed_embedding(ids, values, None, topology, width, padding, by_frequency) -> (..., width)."""
