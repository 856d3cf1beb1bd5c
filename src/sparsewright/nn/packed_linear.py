"""A Linear that trains with its present weights only."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..core import Pattern
from ..kernels import packed, packed_ops
from ..topology import Topology
from .packed import PackedModule


class PackedLinear(PackedModule):
    """y = x W^T + bias; of W only the present values and their places are stored. It trains.

    sparsity: fraction of weights absent, in [0, 1); None takes what the pattern fixes (N:M).
    pattern: object or short name. places: flat places of the present weights (int64, ascending) in
    place of a draw. generator: CPU random source of places and values; torch's own if None. The
    layer is never dense: time and memory go with the weights present. Raises MisfitError,
    BudgetError or LayoutError. forward: x (..., in) -> (..., out); KernelError if it does not fit.

    >>> layer = PackedLinear(1_000_000, 1_000_000, sparsity=1 - 1e-9)
    >>> layer.nnz, layer.shape
    (1000, (1000000, 1000000))
    """

    kind = nn.Linear

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        *,
        sparsity: float | None = None,
        pattern: str | Pattern = "unstructured",
        places: Tensor | None = None,
        generator: torch.Generator | None = None,
        device: Any = None,
        dtype: torch.dtype | None = None,
    ):
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        self._begin(
            nn.Linear(in_features, out_features, bias, device="meta"),
            sparsity=sparsity,
            pattern=pattern,
            places=places,
            generator=generator,
            device=device,
            dtype=dtype,
        )

    def forward(self, x: Tensor) -> Tensor:
        number = self.topology.number
        return packed_ops.linear(x, self.weight, self.bias, number, self.out_features)

    @classmethod
    def _like(cls, module: Any, **options: Any) -> PackedLinear:
        return cls(module.in_features, module.out_features, module.bias is not None, **options)

    def _dense(self, **options: Any) -> nn.Module:
        return nn.Linear(self.in_features, self.out_features, self.bias is not None, **options)

    def _dense_gradient(self, x: Tensor, dy: Tensor, begin: int, end: int) -> Tensor:
        x, dy = x.reshape(-1, x.shape[-1]), dy.reshape(-1, dy.shape[-1])
        return dy[:, begin:end].t() @ x

    def _gradient_at(self, chosen: Topology, x: Tensor, dy: Tensor) -> Tensor:
        return packed.linear_gradient_at(chosen, dy, x)

    def extra_repr(self) -> str:
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, {super().extra_repr()}"
