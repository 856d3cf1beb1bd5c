"""What users give `prune`: data that are no batches, arguments that nothing looks at, and what is
left to train on by."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.solvers import SOLVERS
from sparsewright.solvers.wanda import WandaInOrder

X, Y = torch.randn(32, 8), torch.randint(4, (32,))


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 16), nn.Linear(16, 4))


@pytest.mark.parametrize("data", [X, (X, Y), {"input": X}])
@pytest.mark.parametrize("options", [{"score": "snip"}, {"score": "wanda"}, {"solver": "obc"}])
def test_one_batch_is_no_data(data: Any, options: dict[str, Any]) -> None:
    with pytest.raises(sw.ConfigError, match=r"data must be batches.*give \[batch\]"):
        sw.prune(mlp(), 0.5, data=data, **options)


@pytest.mark.parametrize("targets", [torch.randn(32, 4), torch.randn(32, 1), 3])
def test_targets_that_are_no_classes_take_a_loss(targets: Any) -> None:
    """Cross-entropy would take numbers as probabilities: of one output every score would be 0."""
    with pytest.raises(sw.ConfigError, match=r"class numbers.*Give loss"):
        sw.prune(mlp(), 0.5, score="snip", data=[(X, targets)])
    if isinstance(targets, torch.Tensor):
        squares = lambda model, batch: F.mse_loss(model(batch[0]), batch[1].expand(32, 4))  # noqa: E731
        assert sw.prune(mlp(), 0.5, score="snip", data=[(X, targets)], loss=squares).sparsity == 0.5


def test_classes_may_come_last_as_models_of_language_give_them() -> None:
    inputs, targets = torch.randn(6, 5, 8), torch.randint(4, (6, 5))
    flat = lambda model, batch: F.cross_entropy(model(batch[0]).flatten(0, 1), batch[1].flatten())  # noqa: E731
    masks = []
    for loss in ({}, {"loss": flat}):
        torch.manual_seed(0)
        summary = sw.prune(model := mlp(), 0.5, score="snip", data=[(inputs, targets)], **loss)
        assert summary.sparsity == 0.5
        masks.append([p != 0 for p in model.parameters() if p.dim() == 2])
    assert all(map(torch.equal, *masks))


def test_classes_that_may_be_either_dimension_are_refused() -> None:
    inputs, targets = torch.randn(6, 4, 8), torch.randint(4, (6, 4))
    with pytest.raises(sw.ConfigError, match=r"\(6, 4, 4\).*give loss"):
        sw.prune(mlp(), 0.5, score="snip", data=[(inputs, targets)])


@pytest.mark.parametrize("score", ["wanda", "synflow"])
def test_a_loss_that_nothing_asks_for_is_refused(score: str) -> None:
    model = mlp()
    before = [p.detach().clone() for p in model.parameters()]
    with pytest.raises(sw.ConfigError, match="measures no loss; leave loss out"):
        sw.prune(model, 0.5, score=score, data=[X], loss=lambda m, b: m(b).sum())
    assert all(map(torch.equal, before, model.parameters()))


def test_whole_rows_are_not_compared_within_rows() -> None:
    """Places within a row add up to the same in every row: the first rows would win, in silence."""
    for options in ({"score": "wanda"}, {"solver": "wanda"}):
        with pytest.raises(sw.MisfitError, match=r"layer '0'.*take per='layer'"):
            sw.prune(mlp(), 0.5, "channel", allocate="uniform_all", data=[X], **options)
    model = mlp()
    with torch.no_grad():
        model[0].weight[:8] *= 0.01
    by_layer = WandaInOrder("layer")
    sw.prune(model, 0.5, "channel", solver=by_layer, data=[X], allocate="uniform_all")
    assert not model[0].weight[:8].any()
    assert model[0].weight[8:].all()


@pytest.mark.parametrize("allocate", ["owl", "sensitivity"])
def test_solvers_take_allocations_that_measure(allocate: str) -> None:
    model = mlp()
    done = sw.prune(model, 0.5, solver="sparsegpt", allocate=allocate, data=iter([(X, Y)]))
    assert done.sparsity == 0.5
    with pytest.raises(sw.ConfigError, match="give data"):
        sw.prune(mlp(), 0.5, solver="sparsegpt", allocate=allocate)


class Restless(nn.Module):
    """It draws and counts in every forward, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.fc(x + 0.1 * torch.randn_like(x))


@pytest.mark.parametrize("solver", SOLVERS.names())
def test_solvers_leave_buffers_and_the_random_state(solver: str) -> None:
    model, state = Restless(), torch.get_rng_state()
    sw.prune(model, 0.5, solver=solver, data=[torch.ones(32, 8)] * 2, allocate="uniform_all")
    assert torch.equal(torch.get_rng_state(), state)
    assert model.calls == 0


def test_masks_of_what_was_pruned_hold_in_training() -> None:
    """Whatever the allocation: Static by magnitude would need the same one again."""
    model = mlp()
    sw.prune(model, 0.6, score="snip", allocate="global", data=[(X, Y)])
    zeros = {w.name: w.parameter == 0 for w in sw.find_weights(model)}
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sw.attach(model, optimizer, method="static", masks=sw.masks_of(model))
    for _ in range(3):
        F.cross_entropy(model(X), Y).backward()
        optimizer.step()
    assert all(torch.equal(w.parameter == 0, zeros[w.name]) for w in sw.find_weights(model))
    assert sw.masks_of(mlp()) == {}


class Conv1D(nn.Module):
    """A linear layer of a kind of its own, as some models of language have it."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(8, 8)), nn.Parameter(torch.zeros(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x @ self.weight + self.bias


def test_weights_of_unknown_kinds_are_counted_as_dense() -> None:
    model = nn.Sequential(Conv1D(), nn.LayerNorm([2, 8]), nn.Linear(8, 8), nn.LSTM(8, 2))
    done = sw.prune(model, 0.5, allocate="uniform_all")
    left = {one.name: one.total for one in done.left_dense}
    assert left == {"0.weight": 64, "3.weight_ih_l0": 64, "3.weight_hh_l0": 16}
    assert done.sparsity == 0.5
    assert done.sparsity_of_all == 32 / 208
    assert "not known" in str(done)
