"""FLOPs are those of RigL's counting rules, of layers worked by hand and of published formulas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import sparsewright as sw
from sparsewright.errors import StateError
from sparsewright.measure.flops import (
    Forward,
    Products,
    TrainingFlops,
    forward_flops,
    step_flops,
)


def test_linear_and_convolutions_by_hand() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),  # 4x4 places of 8 * 27 weights
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=4, bias=False),  # 8 * 2 * 9 weights
        nn.Flatten(2),
        nn.Conv1d(8, 4, 2),  # 15 places of 4 * 8 * 2 weights
        nn.Flatten(),
        nn.Linear(60, 5),
    )
    cost = forward_flops(model, torch.zeros(1, 3, 8, 8))
    assert cost.layers == {
        "0": 2 * 16 * 8 * 27,
        "3": 2 * 16 * 8 * 2 * 9,
        "5": 2 * 15 * 4 * 8 * 2,
        "7": 2 * 60 * 5,
    }
    assert cost.other == 0
    assert cost.sparse({"7": 0}) == cost.dense - 600
    assert cost.sparse({"0": 27}) == cost.dense - 2 * 16 * 7 * 27  # one filter of eight


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    forward_flops(model, torch.zeros(1, 4))
    assert [module.training for module in model] == [True, False, True]
    assert int(model[1].num_batches_tracked) == 0


class Attends(nn.Module):
    """An embedding, one head of attention over 5 tokens, and an output tied to the embedding."""

    def __init__(self, fused: bool):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 12, bias=False)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embed.weight
        self.fused = fused

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.mix(self.embed(tokens)).chunk(3, dim=-1)
        if self.fused:
            y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        else:
            y = (q @ k.transpose(1, 2)).softmax(-1) @ v
        return self.out(y)


@pytest.mark.parametrize("fused", [False, True])
def test_attention_is_counted_and_lookups_are_free(fused: bool) -> None:
    cost = forward_flops(Attends(fused), torch.zeros(1, 5, dtype=torch.long))
    assert cost.layers == {"embed": 2 * 5 * 4 * 7, "mix": 2 * 5 * 4 * 12}
    assert cost.other == 2 * (2 * 5 * 5 * 4)


def test_projections_inside_attention_modules() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    cost = forward_flops(layer, torch.zeros(1, 3, 8))
    assert cost.layers["self_attn.in_proj_weight"] == 2 * 3 * 8 * 24
    assert cost.layers["self_attn.out_proj"] == 2 * 3 * 8 * 8
    assert cost.other == 2 * (2 * 3 * 3 * 8)


def test_packed_layers_are_refused() -> None:
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    sw.prune(model, 0.9, allocate="uniform_all")
    with pytest.raises(StateError, match="counted before packing; layer '0'"):
        forward_flops(sw.pack(model), torch.zeros(1, 64))


@dataclass(frozen=True)
class Reads:
    """A method that moves nothing and takes dense gradients every so many steps."""

    every: int
    needs_gradient: ClassVar[bool] = True
    skips_step: ClassVar[bool] = False

    def bind(self, steps: int | None) -> Reads:
        return self

    def begin(self, layer: sw.core.Layer) -> Tensor:
        return sw.Static().begin(layer)

    def due(self, step: int) -> bool:
        return (step + 1) % self.every == 0

    def update(self, layer: sw.core.Layer, step: int) -> None:
        return None


def fraction(method: sw.core.Method | str, f_s: float, steps: int) -> float:
    """Training FLOPs over those of a dense run, of a network with so large a forward."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.0)
    sparse = sw.attach(
        model, optimizer, method=method, sparsity=1 - f_s, allocate="uniform_all", steps=steps
    )
    count = TrainingFlops(forward_flops(model, torch.zeros(1, 100)))
    for _ in range(steps):
        count.step(2, sparse)
        model(torch.ones(2, 100)).sum().backward()
        optimizer.step()
    return count.total / (steps * 2 * 3 * count.forward.dense)


@pytest.mark.parametrize(
    ("f_s", "published"), [(0.23, 0.2325), (0.42, 0.4219), (0.10, 0.103), (0.24, 0.2425)]
)
def test_rigl_by_its_own_formula(f_s: float, published: float) -> None:
    """(3 f_S DeltaT + 2 f_S + f_D) / (DeltaT + 1): one dense gradient in every 101 steps."""
    assert fraction(Reads(101), f_s, 101) == pytest.approx(published, abs=1e-4)


@pytest.mark.parametrize(("f_s", "published"), [(0.42, 0.613), (0.24, 0.493)])
def test_snfs_takes_dense_gradients_at_every_step(f_s: float, published: float) -> None:
    assert fraction(Reads(1), f_s, 3) == pytest.approx(published, abs=5e-4)


def test_static_costs_three_sparse_forwards() -> None:
    assert fraction("static", 0.1, 3) == pytest.approx(0.1)
    assert fraction(sw.SET(every=1), 0.1, 3) == pytest.approx(0.1)


def test_pruning_costs_the_mean_of_its_densities() -> None:
    """E_t[3 f_D (1 - s_t)]: the masks are counted as they are at each step."""
    method = sw.Gradual(every=2, start=0, end=8)
    bound = method.bind(12)
    kept = []  # an update before the step leaves its mask for the next forward
    for step in range(12):
        last = max(t for t in range(0, max(1, step), 2) if t <= 8)
        kept.append(bound.kept(10_000, 1000, last) / 10_000)
    assert fraction(method, 0.1, 12) == pytest.approx(sum(kept) / 12)


def test_a_method_may_read_fewer_gradients_than_it_could() -> None:
    """A step in four reads 1000 of the 9000 absent weights: 3 * .1 and a quarter of .1 more."""

    class Some(Reads):
        def reads_absent(self, layer: sw.core.Layer, step: int) -> int:
            return 1000 if step % 4 == 3 else 0

    assert fraction(Some(1), 0.1, 8) == pytest.approx(0.1 + 0.1 / 4 / 3)


def test_methods_that_say_what_they_read() -> None:
    """By their own definitions: GSE's sample, Top-KAST's B, nothing after a cut."""
    assert fraction(sw.GSE(every=4, end=100), 0.1, 8) == pytest.approx(0.1 + 0.1 / 4 / 3)
    assert fraction("top_kast", 0.1, 3) == pytest.approx((2 * 0.1 + 0.2) / 3)
    assert fraction("iht", 0.1, 8) == pytest.approx(iht_by_hand(8))


def iht_by_hand(steps: int) -> float:
    """Dense at the first step, then masked; gradients are dense to the end of the run."""
    return (3 + (steps - 1) * (2 * 0.1 + 1)) / steps / 3


def test_learned_thresholds_are_dense_until_their_cut() -> None:
    """The cut is before step 6 of 8, whose own forward is still dense."""
    assert fraction("str", 0.1, 8) == pytest.approx((7 + 0.1) / 8)


def test_dense_steps_and_what_else_was_executed() -> None:
    model = nn.Sequential(nn.Linear(6, 5, bias=False), nn.Linear(5, 4, bias=False))
    count = TrainingFlops(forward_flops(model, torch.zeros(1, 6)))
    count.step(10)
    assert count.total == 10 * 3 * 2 * (30 + 20)
    x = torch.zeros(3, 6)
    with count.executed():
        model(x).sum().backward()
    # The gradient of the first layer's inputs is not wanted, so it is not made.
    assert count.total == 3000 + 3 * (2 * 2 * 50 + 2 * 20)


def test_products_of_a_plain_forward() -> None:
    with Products() as products:
        torch.ones(2, 3) @ torch.ones(3, 4)
    assert products.total == 2 * 2 * 3 * 4
    assert step_flops(1.0, 10.0) == 12.0
    assert Forward({}, {}, 3.0).sparse({}) == 3.0
