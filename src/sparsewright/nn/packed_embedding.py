"""An Embedding that trains with its present weights only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Pattern
from ..errors import KernelError
from ..kernels.packed_embedding import counted, embedding_weight_gradient, lookup
from ..topology import Topology
from .packed import PackedModule


class PackedEmbedding(PackedModule):
    """F.embedding of whose weight only the present values and their places are stored. It trains.

    The first arguments are those of nn.Embedding; max_norm, which changes weights while they are
    looked up, and sparse, which makes gradients of another kind, are refused with KernelError. The
    others are those of PackedLinear. Values begin as N(0, 1), those of row padding_idx as 0.
    forward: ids (...) int64 or int32 -> (..., embedding_dim); KernelError if an id has no row.

    >>> table = PackedEmbedding(10, 4, sparsity=0.5)
    >>> table(torch.tensor([[1, 2, 3]])).shape, table.nnz
    (torch.Size([1, 3, 4]), 20)
    """

    kind = nn.Embedding
    is_lookup = True

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        *,
        sparsity: float | None = None,
        pattern: str | Pattern = "unstructured",
        places: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        for name, value in (("max_norm", max_norm), ("sparse", sparse or None)):
            if value is not None:
                raise KernelError(f"PackedEmbedding: {name}={value} stays dense: no kernel has it")
        like = nn.Embedding(num_embeddings, embedding_dim, padding_idx, device="meta")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx, self.scale_grad_by_freq = like.padding_idx, scale_grad_by_freq
        self._begin(
            like,
            sparsity=sparsity,
            pattern=pattern,
            places=places,
            generator=generator,
            device=device,
            dtype=dtype,
        )

    def forward(self, ids: Tensor) -> Tensor:
        own = self.topology.number, self.embedding_dim, *self._numbers
        return lookup(ids, self.weight, None, *own)

    def reset_parameters(self, generator: torch.Generator | None = None) -> None:
        normal = torch.randn(self.nnz, generator=generator, device="cpu")
        if self.padding_idx is not None:
            begin, end = self.topology.starts[self.padding_idx :][:2].tolist()
            normal[begin:end] = 0.0
        with torch.no_grad():
            self.weight.copy_(normal)

    @property
    def _numbers(self) -> tuple[int, bool]:
        return -1 if self.padding_idx is None else self.padding_idx, self.scale_grad_by_freq

    @classmethod
    def _like(cls, module: Any, **options: Any) -> PackedEmbedding:
        m = module
        own = (m.num_embeddings, m.embedding_dim, m.padding_idx, m.max_norm, m.norm_type)
        return cls(*own, m.scale_grad_by_freq, m.sparse, **options)

    def _dense(self, **options: Any) -> nn.Module:
        own = (self.num_embeddings, self.embedding_dim, self.padding_idx)
        return nn.Embedding(*own, scale_grad_by_freq=self.scale_grad_by_freq, **options)

    def _dense_gradient(self, x: Tensor, dy: Tensor, begin: int, end: int) -> Tensor:
        dy, ids = counted(dy, x.long(), *self._numbers)
        here = (ids >= begin) & (ids < end)
        out = dy.new_zeros(end - begin, self.embedding_dim)
        return out.index_add_(0, ids[here] - begin, dy[here])

    def _gradient_at(self, chosen: Topology, x: Tensor, dy: Tensor) -> Tensor:
        return embedding_weight_gradient(chosen, *counted(dy, x.long(), *self._numbers))

    def extra_repr(self) -> str:
        padding = "" if self.padding_idx is None else f", padding_idx={self.padding_idx}"
        own = f"nnz={self.nnz}, sparsity={self.sparsity:.10g}"
        return f"{self.num_embeddings}, {self.embedding_dim}{padding}, {own}"
