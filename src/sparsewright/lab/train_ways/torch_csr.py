"""Sparse training with what torch itself has: its csr tensors, joined by hand to one layer.

torch's autograd gives a csr Parameter no sparse gradient that an optimizer takes, so the values are
the Parameter. Forward is torch's csr product, the inputs' gradient that of the transposed csr, and
the weights' gradient `torch.sparse.sampled_addmm`, which computes it at the present places alone.
Activations go from layer to layer with the batch along the rows, as these products want them.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..bench_cell import PEER
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, replace_linears, trainer


class Csr:
    """int32 places of a mask (out, in), and those of its transpose. order: which weight of the
    first is each of the second."""

    def __init__(self, mask: Tensor):
        self.shape = tuple(mask.shape)
        rows, columns = mask.nonzero(as_tuple=True)
        self.order = columns.argsort(stable=True)
        self.own = self._places(rows, columns, self.shape[0])
        self.turned = self._places(columns[self.order], rows[self.order], self.shape[1])

    @staticmethod
    def _places(rows: Tensor, columns: Tensor, size: int) -> tuple[Tensor, Tensor]:
        starts = torch.zeros(size + 1, dtype=torch.int64)
        torch.cumsum(torch.bincount(rows, minlength=size), 0, out=starts[1:])
        return starts.int(), columns.int()

    def matrix(self, values: Tensor) -> Tensor:
        """The weight as torch's csr tensor."""
        return _tensor(self.own, values, self.shape)

    def transposed(self, values: Tensor) -> Tensor:
        """The weight's transpose."""
        return _tensor(self.turned, values[self.order], self.shape[::-1])


def _tensor(places: tuple[Tensor, Tensor], values: Tensor, size: tuple[int, ...]) -> Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # "Sparse CSR tensor support is in beta"
        return torch.sparse_csr_tensor(*places, values, size=size, check_invariants=False)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, values: Tensor, csr: Csr) -> Tensor:
        ctx.save_for_backward(x, values)
        ctx.csr = csr
        return (csr.matrix(values) @ x.t()).t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor, None]:
        (dy,) = gradients
        x, values = ctx.saved_tensors
        dx = (ctx.csr.transposed(values) @ dy.t()).t() if ctx.needs_input_grad[0] else None
        places = ctx.csr.matrix(torch.zeros_like(values))
        dw = torch.sparse.sampled_addmm(places, dy.t(), x, beta=0)
        return dx, dw.values(), None


class CsrLinear(nn.Module):
    """y = x W^T + bias; weight: Parameter (nnz), the values of W row by row."""

    def __init__(self, linear: nn.Linear, mask: Tensor):
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach()[mask])
        self.bias = linear.bias
        self.csr = Csr(mask)

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self.weight, self.csr)
        return y if self.bias is None else y + self.bias


def _build(task: Task) -> Trainer | str:
    model = replace_linears(task, CsrLinear)
    return model if isinstance(model, str) else trainer(task, model, adamw(model))


TRAIN_WAYS.register("torch CSR")(Way("csr products and sampled_addmm, by hand", PEER, _build))
