"""Every packed layout goes into an artifact and comes out of it, whichever operation it serves and
however its values are stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import sparsewright as sw
from sparsewright.kernels import KERNELS
from sparsewright.layouts import LAYOUTS, VALUES

pytestmark = pytest.mark.filterwarnings("ignore:sparsewright runs without its compiled kernels")

SAVED = [
    name
    for name, kernel in KERNELS.items()
    if kernel.layout in LAYOUTS
    and kernel.refuses() is None
    and isinstance(kernel.op, torch._ops.OpOverload)
]
PATTERNS = {"nm": (None, "4:16"), "block": (0.9, "block:4x4")}
"""What a layout is for, where that is not any weight."""


def model_of(operation: str) -> tuple[nn.Module, torch.Tensor]:
    torch.manual_seed(0)
    if operation == "linear":
        model: nn.Module = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32))
        return model, torch.randn(3, 64)
    model = nn.Sequential(nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU(), nn.Conv2d(16, 16, 1))
    return model, torch.randn(2, 8, 9, 9)


@pytest.mark.parametrize("values", VALUES.names())
@pytest.mark.parametrize("name", SAVED)
def test_a_saved_layer_is_the_same_layer(name: str, values: str, tmp_path: Path) -> None:
    model, x = model_of(KERNELS[name].operation)
    sparsity, pattern = PATTERNS.get(KERNELS[name].layout, (0.9, "unstructured"))
    sw.prune(model, sparsity, pattern, allocate="uniform_all")
    fast = sw.deploy(model, x, kernels=[name], seconds=0, values=values)
    assert {(row.kernel, row.values) for row in fast.plan.layers} == {(name, values)}
    path = tmp_path / "model.safetensors"
    sw.save(fast, path)
    again = sw.load(path)
    assert torch.equal(again(x), fast(x))
    assert torch.equal(again(x[:1]), fast(x[:1]))
    assert again.plan == fast.plan
    assert again.source is not None
    held = {t.dtype for n, t in again.source[1].items() if n.endswith("values")}
    assert held == {VALUES[values].dtype}
