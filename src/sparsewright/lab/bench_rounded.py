"""What rounded weights must give, in float64: where a cell keeps values in fewer bytes, rows of
sparsewright's are held against this, so that an error is a kernel's and a loss is the rounding's.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from ..deployed import Deployed
from ..fold import NORMS, fold_norms
from ..layouts import FP32, rounded
from ..measure.dense import relative_error
from ..measure.peers import Case


def rounded_output(case: Case, layers: Iterable[str]) -> Tensor | None:
    """The case's output with the weights of these layers rounded to its values, in float64.

    None where nothing is rounded. layers: names in the case's model; "" is the model itself.

    >>> case = Case(nn.Linear(2, 2, bias=False), torch.eye(2), values="int8")
    >>> bool((rounded_output(case, [""]) == rounded(case.model.weight, "int8").T).all())
    True
    """
    return _output(copy.deepcopy(case.model), case, layers)


def deployed_output(case: Case, fast: Deployed) -> Tensor | None:
    """The same for what `deploy` made of `nn.Sequential(case.model)`: norms are folded where it
    folded them, since a weight is rounded after that, and what it left dense is not rounded."""
    model = nn.Sequential(copy.deepcopy(case.model))
    layers = [row.layer for row in fast.plan.layers if row.values != FP32]
    if layers and _norms(fast) < _norms(model):
        fold_norms(model, (case.example,))
    return _output(model, case, layers)


def _norms(model: nn.Module) -> int:
    return sum(type(module) in NORMS for module in model.modules())


@torch.no_grad()
def _output(model: nn.Module, case: Case, layers: Iterable[str]) -> Tensor | None:
    chosen = [] if case.values == FP32 else list(layers)
    for name in chosen:
        weight = model.get_submodule(name).weight
        assert isinstance(weight, Tensor)
        weight.copy_(rounded(weight.flatten(1), case.values).view_as(weight))
    return model.double()(case.example.double()) if chosen else None


def loss(case: Case, near: Tensor | None) -> str:
    """For a row's note: what rounding did to the outputs; "" where nothing was rounded."""
    if near is None:
        return ""
    far = relative_error(near, case.expected)
    return f"values in {case.values}, lossy: outputs off by {far:.2g} of the largest"
