"""Dense training with the three products of every Linear by numpy's OpenBLAS.

On some processors it multiplies faster than the library inside torch, and the best dense way is
what sparse training has to beat.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...measure.dense import set_blas_threads
from ..bench_cell import DENSE
from . import TRAIN_WAYS, Task, Trainer, Way, adamw, replace_linears, trainer


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.from_numpy(x.numpy() @ weight.numpy().T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor]:
        x, weight = (saved.detach().numpy() for saved in ctx.saved_tensors)
        dy = gradients[0].numpy()
        dx = torch.from_numpy(dy @ weight) if ctx.needs_input_grad[0] else None
        return dx, torch.from_numpy(dy.T @ x)


class _Linear(nn.Module):
    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.weight, self.bias = linear.weight, linear.bias

    def forward(self, x: Tensor) -> Tensor:
        y = _Product.apply(x, self.weight)
        return y if self.bias is None else y.add_(self.bias)


def _build(task: Task) -> Trainer | str:
    refusal = set_blas_threads(torch.get_num_threads())
    if refusal:
        return refusal
    model = replace_linears(task, lambda linear, mask: _Linear(linear))
    return model if isinstance(model, str) else trainer(task, model, adamw(model))


about = "dense weights, products of Linear layers by numpy's BLAS"
TRAIN_WAYS.register("dense OpenBLAS (numpy)")(Way(about, DENSE, _build))
