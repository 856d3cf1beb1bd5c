"""Cannistraci-Hebb scores: how likely a missing link of a bipartite network is, by its paths of
length three alone.

A link from output u to input v is judged by the paths u - z2 - z1 - v over inputs z2 of u and
outputs z1 of v. A node z on such a path has internal links, to other nodes of these paths, and
external ones, to neither these nor u or v. (Muscoloni, Michieli, Zhang, Cannistraci 2022, on CH3-L3
and CH2-L3; Zhang et al., ICLR 2024 and NeurIPS 2025, in sparse training.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def by_nodes(links: Tensor) -> Tensor:
    """(outputs, inputs) 0 and 1 -> CH2-L3n of every pair: over the nodes of its paths the sum of
    (1 + internal links) / (1 + external links).

    Two products of matrices, O(outputs * inputs * (outputs + inputs)). That of a link that is there
    has no meaning.

    >>> by_nodes(torch.tensor([[1., 0.], [1., 1.]]))[0, 1]
    tensor(4.)
    """
    inputs, outputs = links.T @ links, links @ links.T  # neighbours in common
    of_input = _ratio(inputs, links.sum(dim=0))  # [z2, v]
    of_output = _ratio(outputs, links.sum(dim=1)).T  # [u, z1]
    return links @ of_input + of_output @ links


def by_paths(links: Tensor) -> Tensor:
    """(outputs, inputs) 0 and 1 -> CH3-L3p of every pair: the sum over its paths of
    1 / sqrt((1 + external of z1) * (1 + external of z2)).

    O(outputs * inputs * present links), one output at a time.

    >>> by_paths(torch.tensor([[1., 0.], [1., 1.]]))[0, 1]
    tensor(1.)
    """
    inputs, outputs = links.T @ links, links @ links.T
    of_input = _external(inputs, links.sum(dim=0)).rsqrt()  # [z2, v]
    of_output = _external(outputs, links.sum(dim=1)).rsqrt().T  # [u, z1]
    found = torch.empty_like(links)
    for u in range(len(links)):
        own = links[u].nonzero().squeeze(1)  # the inputs z2 of u
        paths = links[:, own] @ of_input[own]  # [z1, v]
        found[u] = of_output[u] @ (paths * links)
    return found


def _external(common: Tensor, degree: Tensor) -> Tensor:
    """[z, seed] 1 + external links of z: its links less the internal ones (neighbours that it has
    in common with the seed on its side) and the one to the other seed, which is not counted."""
    return (degree[:, None] - common).clamp(min=1.0)


def _ratio(common: Tensor, degree: Tensor) -> Tensor:
    """[z, seed] (1 + internal) / (1 + external) where z has an internal link, else 0."""
    return torch.where(common > 0, (1.0 + common) / _external(common, degree), 0.0)


LINKS: dict[str, Callable[[Tensor], Tensor]] = {"CH2-L3n": by_nodes, "CH3-L3p": by_paths}
