"""Wanda: by hand, as a score and as a solver."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sparsewright as sw
from sparsewright.calibration import Calibration
from sparsewright.core import View
from sparsewright.errors import ConfigError, StateError
from sparsewright.scores import as_score
from sparsewright.scores.wanda import Wanda, in_row
from sparsewright.selection import select_layers
from sparsewright.solving import solve


def view(weight: Tensor, name: str = "fc") -> View:
    return View(name, weight, torch.ones_like(weight, dtype=torch.bool), torch.Generator())


class Named(nn.Module):
    def __init__(self, weight: Tensor):
        super().__init__()
        self.fc = nn.Linear(weight.shape[1], weight.shape[0])
        self.fc.weight.data.copy_(weight)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def wanda(model: nn.Module, data: Any, **options: Any) -> Any:
    layers, _ = select_layers(
        model, sparsity=0.5, pattern="unstructured", allocate="uniform_all",
        score=as_score("magnitude"), generator=torch.Generator(),
    )  # fmt: skip
    return Wanda(**options).measured(Calibration(model, layers, data))


def test_wanda_by_hand() -> None:
    """Columns of norm 5, 1, 2: over two batches, of which targets are not looked at."""
    weight = torch.tensor([[1.0, -4.0, 2.0], [-1.0, 6.0, 0.5]])
    data = [(torch.tensor([[3.0, 1.0, 0.0]]), 0), (torch.tensor([[-4.0, 0.0, 2.0]]), 0)]
    model = Named(weight)
    plain = wanda(model, data, per="layer")(view(weight))
    torch.testing.assert_close(plain, torch.tensor([[5.0, 4.0, 4.0], [5.0, 6.0, 1.0]]))
    rows = wanda(model, data)(view(weight))
    torch.testing.assert_close(rows, torch.tensor([[3.0, 2.0, 1.0], [2.0, 3.0, 1.0]]) / 3)
    assert not model.fc._forward_pre_hooks


def test_wanda_with_equal_norms_is_magnitude_row_by_row() -> None:
    weight = torch.randn(6, 8)
    model = Named(weight)
    scores = wanda(model, [torch.eye(8) * 3])(view(weight))
    assert torch.equal(in_row(weight.abs()), scores)
    assert torch.equal(sw.keep_best(scores, 3), sw.keep_best(weight.abs(), 3))
    kept = sw.keep_best(scores.view(1, -1), 20).view(6, 8)  # three a row, and two to share out
    assert kept.sum(dim=1).tolist() == [4, 4, 3, 3, 3, 3]


def test_wanda_solves_as_it_scores() -> None:
    model, data = Named(torch.randn(6, 8)), [torch.randn(16, 8)]
    scores = wanda(model, data)(view(model.fc.weight.detach()))
    before = model.fc.weight.detach().clone()
    solve(model, 0.5, solver="wanda", data=data, allocate="uniform_all")
    kept = sw.keep_best(scores.view(1, -1), 24).view(6, 8)
    assert torch.equal(model.fc.weight, before * kept)


def test_wanda_needs_data() -> None:
    with pytest.raises(StateError, match=r"let sw\.prune"):
        Wanda()(view(torch.ones(2, 2)))
    with pytest.raises(ConfigError, match="score 'wanda' measures activations: give data"):
        wanda(nn.Sequential(nn.Linear(2, 2)), None)
    with pytest.raises(StateError, match="layer 'other': its inputs were not measured"):
        wanda(Named(torch.ones(2, 2)), [torch.ones(1, 2)])(view(torch.ones(2, 2), "other"))
