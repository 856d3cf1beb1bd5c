"""Solving: a model layer by layer, convolutions as what they multiply, and what fails midway."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from layer_inputs import activations
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.capture import walk
from sparsewright.errors import ConfigError, MisfitError, StateError
from sparsewright.patterns import as_pattern
from sparsewright.scores import as_score
from sparsewright.selection import select_layers
from sparsewright.solvers import SOLVERS, Problem, Solution
from sparsewright.solvers._grid import Grid, grid_of
from sparsewright.solvers.obc import OBC
from sparsewright.solvers.sparsegpt import SparseGPT
from sparsewright.solving import solve, solve_layers
from sparsewright.summary import Summary
from sparsewright.weights import find_weights

CONVS = [
    nn.Conv2d(8, 6, 3, stride=2, padding=1, dilation=1),
    nn.Conv2d(8, 8, (1, 3), padding=(0, 2), groups=2, dilation=2),
    nn.Conv1d(8, 8, 5, padding=2, groups=8),
]


@pytest.mark.parametrize("name", SOLVERS.names())
@pytest.mark.parametrize("conv", CONVS, ids=["plain", "groups", "depthwise"])
def test_a_convolution_is_a_linear_on_its_patches(name: str, conv: Any) -> None:
    """Each group by itself, with the budget of the whole where there is one group."""
    model = nn.Sequential(nn.Identity(), _copied(conv))
    x = torch.randn(8, 8, 9, 9) if isinstance(conv, nn.Conv2d) else torch.randn(24, 8, 12)
    pattern = "fan_in"
    solve(model, 0.5, pattern, name, data=[x], allocate="uniform_all")
    sparse, dense = model[1].weight.detach(), conv.weight.detach()
    each, inputs = dense.shape[0] // conv.groups, dense[0].numel()
    for g, part in enumerate(x.chunk(conv.groups, dim=1)):
        rows = _unfolded(conv, part)
        linear = nn.Linear(inputs, each, bias=False)
        linear.weight.data.copy_(dense[g * each : (g + 1) * each].flatten(1))
        keep = round(int((sparse != 0).sum()) / conv.out_channels) / inputs
        solve(linear, 1 - keep, pattern, name, data=[rows], allocate="uniform_all")
        torch.testing.assert_close(
            sparse[g * each : (g + 1) * each].flatten(1),
            linear.weight.detach(),
            rtol=1e-4,
            atol=1e-5,
        )


def _copied(conv: Any) -> Any:
    other = type(conv)(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding,
        conv.dilation, conv.groups,
    )  # fmt: skip
    other.load_state_dict(conv.state_dict())
    return other


def _unfolded(conv: Any, x: Tensor) -> Tensor:
    """torch's own unfold; a row of a 1d convolution is an image of one line."""
    if x.dim() == 3:
        sizes = [(1, *conv.kernel_size), (1, *conv.dilation), (0, *conv.padding), (1, *conv.stride)]
        return F.unfold(x[:, :, None], *sizes).transpose(1, 2).reshape(-1, conv.weight[0].numel())
    found = F.unfold(x, conv.kernel_size, conv.dilation, conv.padding, conv.stride)
    return found.transpose(1, 2).reshape(-1, conv.weight[0].numel())


@pytest.mark.parametrize("name", SOLVERS.names())
@pytest.mark.parametrize("pattern", ["2:4", "3:8", "unstructured"])
def test_convolutions_hold_the_pattern(name: str, pattern: str) -> None:
    model = nn.Sequential(nn.Conv2d(16, 8, 3, groups=2), nn.ReLU(), nn.Conv2d(8, 8, 2))
    found = solve(
        model, 0.5 if pattern != "3:8" else None, pattern, name, data=[torch.randn(8, 16, 8, 8)],
        allocate="uniform_all",
    )  # fmt: skip
    assert (
        int(sum((m.weight != 0).sum() for m in model if isinstance(m, nn.Conv2d))) == found.present
    )
    kind = as_pattern(pattern)
    for weight in (model[0].weight, model[2].weight):
        if kind.sparsity is not None:
            assert (kind.fold((weight != 0).long()).sum(dim=1) == int(pattern[0])).all()


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)
    )


def correlated(count: int = 4) -> list[tuple[Tensor, Tensor]]:
    x = activations(16, 64 * count).float().T
    return [(part, torch.zeros(64)) for part in x.chunk(count)]


def test_outputs_of_a_model_change_less_than_by_magnitude() -> None:
    data = correlated(16)
    x, dense = torch.cat([inputs for inputs, _ in data]), mlp()
    errors = {}
    for name in ("magnitude", "wanda", "sparsegpt", "obc"):
        model = mlp()
        if name == "magnitude":
            found: Summary = sw.prune(model, 0.6)
        else:
            found = solve(model, 0.6, solver=name, data=data)
        assert found.sparsity == pytest.approx(0.6, abs=1e-3)
        assert sum(int((m.weight != 0).sum()) for m in (model[2], model[4])) == found.present
        errors[name] = float((model(x) - dense(x)).detach().square().mean())
    assert errors["obc"] < errors["sparsegpt"] < errors["wanda"] < errors["magnitude"]


def test_later_layers_are_solved_on_inputs_of_the_pruned_model() -> None:
    data, model = correlated(), mlp()
    solve(model, 0.6, data=data, allocate="uniform_all")
    pruned = mlp()
    solve(pruned, 0.6, data=data, allocate="uniform_all")
    pruned[4] = mlp()[4]  # its last layer anew, alone
    last = [w for w in find_weights(pruned) if w.name == "4"]
    (group,) = walk(pruned, last, data)
    layers, _ = select_layers(
        pruned, sparsity=0.6, pattern="unstructured", allocate="uniform_all",
        score=as_score("magnitude"),
        generator=torch.Generator(), skip=["0", "2"],
    )  # fmt: skip
    second = group["4"].second
    assert second is not None
    given = Problem(
        "4", pruned[4].weight.detach().double()[None], second, group["4"].count,
        layers[0].pattern, layers[0].shape, int((model[4].weight != 0).sum()),
    )  # fmt: skip
    wanted = SparseGPT().solve(given).weight[0].float()
    torch.testing.assert_close(model[4].weight.detach(), wanted)


class Breaks(SparseGPT):
    """Fails, or breaks the budget, at the second layer."""

    def solve(self, given: Problem) -> Solution:
        found = super().solve(given)
        if given.shape == (32, 32):
            if self.block == 1:
                raise RuntimeError("midway")
            scale = torch.nan if self.block == 3 else 1.0
            mask = torch.ones_like(found.mask) if self.block == 2 else found.mask
            return Solution(found.weight * scale, mask)
        return found


@pytest.mark.parametrize(
    ("solver", "error", "message"),
    [
        (Breaks(block=1), RuntimeError, "midway"),
        (Breaks(block=2), StateError, r"layer '2': Breaks must keep 512 whole units"),
        (Breaks(block=3), StateError, "layer '2': Breaks found weights that are not finite"),
    ],
)
def test_what_fails_midway_leaves_the_model_as_it_was(
    solver: Any, error: Any, message: str
) -> None:
    model = mlp()
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(error, match=message):
        solve(model, 0.5, solver=solver, data=correlated(), allocate="uniform_all")
    assert all(map(torch.equal, model.parameters(), before))
    assert model.training
    assert not any(m._forward_pre_hooks for m in model.modules())


def test_errors_come_before_any_data_is_run() -> None:
    def data() -> Any:
        raise AssertionError("no batch is to be asked for")
        yield

    for solver, pattern, message in [
        ("sparsegpt", "block:4x4", "layer '2': sparsegpt removes single weights"),
        ("obs", "channel", "layer '2': obs removes single weights"),
    ]:
        with pytest.raises(MisfitError, match=message):
            solve(mlp(), 0.5, pattern, solver, data=data())
    with pytest.raises(sw.UnknownNameError, match="no solver is called 'sparsegtp'; did you mean"):
        solve(mlp(), 0.5, solver="sparsegtp", data=data())
    with pytest.raises(ConfigError, match="SparseGPT measures activations: give data"):
        solve(mlp(), 0.5, data=None)
    model = mlp()
    model[2].weight.data[0, 0] = torch.nan
    with pytest.raises(StateError, match="layer '2': a weight is not finite"):
        solve(model, 0.5, data=correlated(), allocate="uniform_all")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float32, torch.float64])
def test_types_of_weights_and_of_sums(dtype: torch.dtype, kind: torch.dtype) -> None:
    model = mlp().to(kind)
    found = solve(model, 0.5, data=[x.to(kind) for x, _ in correlated()], dtype=dtype)
    assert model[2].weight.dtype == kind
    assert found.sparsity == 0.5


def test_a_layer_that_keeps_all_is_not_touched() -> None:
    model = mlp()
    before = model[2].weight.detach().clone()
    found = solve(
        model, 0.5, data=correlated(), allocate="uniform_all", overrides={"2": {"sparsity": 0.0}}
    )
    assert torch.equal(model[2].weight, before)
    assert [row.sparsity for row in found.rows] == [0.5, 0.0, 0.5]
    assert solve_layers(model, [], SparseGPT(), correlated()) is None


def test_grids() -> None:
    found = grid_of(as_pattern("block:2x4"), (4, 8, 1, 3))
    assert isinstance(found, Grid)
    assert (found.rows, found.columns, found.run, found.shared) == (2, 4, 6, True)
    assert found.order[:8].tolist() == [0, 3, 6, 9, 12, 15, 18, 21]
    for example in ("unstructured", "fan_in"):
        found = grid_of(as_pattern(example), (4, 6))
        assert isinstance(found, Grid)
        assert (found.single, found.is_whole) == (True, True)
        assert found.shared == (example == "unstructured")


def test_prune_takes_a_solver() -> None:
    data = correlated()
    for solver in ("obc", OBC()):
        first, second = mlp(), mlp()
        done = sw.prune(first, 0.5, "2:4", solver=solver, data=data)
        assert done.to_dict() == solve(second, 0.5, "2:4", "obc", data=data).to_dict()
        assert all(map(torch.equal, first.parameters(), second.parameters()))
    with pytest.raises(ConfigError, match="solver 'obc' chooses by outputs on data; leave sco"):
        sw.prune(mlp(), 0.5, score="random", solver="obc", data=data)
    with pytest.raises(ConfigError, match="SparseGPT measures activations: give data"):
        sw.prune(mlp(), 0.5, solver="sparsegpt")
