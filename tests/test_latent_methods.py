"""Latent weights, learned thresholds and scores: vectors worked out by hand, and plain autograd
beside every chain rule that is done by hand."""

from __future__ import annotations

import itertools

import pytest
import torch
from latent import Reference, agree, attached, best, near, one_layer
from training import assert_masked, train_step

from sparsewright.methods.autosparse import AutoSparse
from sparsewright.methods.movement import Movement
from sparsewright.methods.soft_movement import SoftMovement
from sparsewright.methods.soft_threshold import STR
from sparsewright.methods.sr_ste import SRSTE
from sparsewright.methods.top_kast import TopKAST

# SR-STE


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, weight, penalty):
        mask = best(weight.abs(), weight.numel() // 2)
        ctx.save_for_backward(weight, mask)
        ctx.penalty = penalty
        return weight * mask

    @staticmethod
    def backward(ctx, gradient):
        weight, mask = ctx.saved_tensors
        return gradient + ctx.penalty * ~mask * weight, None


@pytest.mark.parametrize("penalty", [0.0, 0.5])
def test_sr_ste_is_straight_through_autograd_with_decay(penalty):
    model, optimizers, sparse = attached(SRSTE(penalty, start=0))
    reference = Reference(lambda self, weight, index: StraightThrough.apply(weight, penalty))
    for number in range(5):
        train_step(model, optimizers, number)
        reference.step(number)
        for layer, weight in zip(sparse.layers, reference.weights(), strict=True):
            assert torch.equal(layer.mask, best(weight.abs(), weight.numel() // 2))
    agree(sparse, reference)


def test_the_momentum_sees_the_decay_of_sr_ste():
    # 1:2 keeps 3. No loss: the absent 1 has gradients 0.1 * 1 and 0.1 * 0.9, and the velocity is
    # 0.1, then 0.9 * 0.1 + 0.09 = 0.18.
    method = SRSTE(0.1, start=0)
    step, layer = one_layer([3.0, 1.0], method, None, "1:2", momentum=0.9)
    assert step([0.0, 0.0]) == [3.0, 0.0]
    assert layer.memory["latent"][0].tolist() == near(3.0, 0.9)
    assert step([0.0, 0.0]) == [3.0, 0.0]
    assert layer.memory["latent"][0].tolist() == near(3.0, 0.72)


def test_absent_weights_of_sr_ste_return_once_they_are_larger():
    step, layer = one_layer([3.0, 2.0], SRSTE(0.0, start=0), None, "1:2")
    assert step([0.0, -0.75]) == [3.0, 0.0]  # the absent 2 becomes 2.75
    assert step([0.0, -0.75]) == [0.0, 3.5]
    assert layer.memory["latent"].tolist() == [[3.0, 3.5]]


def test_the_first_steps_of_sr_ste_may_have_all_weights():
    step, layer = one_layer([3.0, 2.0], SRSTE(0.0, start=1), None, "1:2")
    assert layer.is_full
    assert step([0.0, 0.0]) == [3.0, 0.0]
    assert not layer.is_full


# Top-KAST


def test_top_kast_by_hand():
    # A = {4}, B = {4, 3}; D = 1/4. The gradient of 3 passes, that of 2 and 1 does not; the penalty
    # 0.01 adds 0.01 * 4 to the first, 0.01 * 3 * 4 to the second.
    method = TopKAST(every=1, extra=1.0, penalty=0.01)
    step, layer = one_layer([4.0, 3.0, 2.0, 1.0], method, 0.75)
    assert step([0.5, 0.5, 0.5, 0.5]) == near(3.46, 0.0, 0.0, 0.0)
    assert layer.memory["latent"][0].tolist() == near(3.46, 2.38, 2.0, 1.0)
    # Now 2.38 grows by 2 and becomes A; 3.46 is left in B.
    assert step([0.0, -2.0, -9.0, -9.0]) == near(0.0, 2.38 + 2 - 0.0952, 0.0, 0.0)
    assert layer.memory["latent"][0].tolist() == near(3.4254, 4.2848, 2.0, 1.0)


def test_weights_outside_of_b_rest_whatever_momentum_would_do():
    method = TopKAST(every=1, extra=1.0, penalty=0.0)
    step, layer = one_layer([4.0, 3.0, 2.0], method, 2 / 3, momentum=0.9)
    step([0.0, 2.0, 0.0])  # 3 falls to 1, and 2 takes its place in B
    assert layer.memory["latent"][0].tolist() == [4.0, 1.0, 2.0]
    step([0.0, 5.0, 0.5])
    assert layer.memory["latent"][0].tolist() == [4.0, 1.0, 1.5]


def test_momentum_learns_nothing_of_weights_outside_of_b():
    """Neither gradient nor penalty: when 2 takes the place of 3 in B, its first step is of its own.

    D = 1/3. First: 4 by 0.1 * 4 to 3.6, 3 by 2 + 0.1 * 3 * 3 = 2.9 to 0.1. Then: 3.6 by 0.9 * 0.4 +
    0.36 to 2.88, 2 by 0.5 + 0.1 * 2 * 3 = 1.1 to 0.9; 0.1 rests.
    """
    method = TopKAST(every=1, extra=1.0, penalty=0.1)
    step, layer = one_layer([4.0, 3.0, 2.0], method, 2 / 3, momentum=0.9)
    step([0.0, 2.0, 7.0])
    assert layer.memory["latent"][0].tolist() == near(3.6, 0.1, 2.0)
    step([0.0, 0.0, 0.5])
    assert layer.memory["latent"][0].tolist() == near(2.88, 0.1, 0.9)


def test_top_kast_holds_its_sets_between_renewals():
    model, optimizers, sparse = attached(TopKAST(every=3), optimizer="Adam")
    tables = []
    for number in range(7):
        train_step(model, optimizers, number)
        assert_masked(sparse)
        tables.append(sparse.layers[0].table)
        inside = sparse.layers[0].memory["trained"]
        assert (inside | ~tables[-1]).all(), "B holds A"
    same = [torch.equal(a, b) for a, b in itertools.pairwise(tables)]
    assert same == [True, False, True, True, False, True]
    assert [t for t in range(8) if sparse.method.due(t)] == [0, 3, 6]


# STR and AutoSparse


def softly(self, weight, index):
    return weight.sign() * (weight.abs() - self.learned[index].sigmoid()).relu()


def test_str_is_autograd_of_the_soft_threshold():
    method = STR(initial=-3.0, decay=0.05, momentum=0.5, rate=2.0)
    model, optimizers, sparse = attached(method, steps=50)
    price = lambda self: 0.025 * sum(s.square() for s in self.learned)  # noqa: E731
    start = [torch.tensor(-3.0)] * 2
    reference = Reference(softly, start, price, rate=0.1, momentum=0.5)  # twice the weights' 0.05
    for number in range(5):
        train_step(model, optimizers, number)
        reference.step(number)
    agree(sparse, reference, "threshold")
    for index, layer in enumerate(sparse.layers):
        assert abs(float(layer.memory["threshold"]) + 3) > 1e-3
        expected = softly(reference, reference.weights()[index], index).detach()
        torch.testing.assert_close(layer.weight.detach(), expected, rtol=1e-4, atol=1e-6)
        assert 0.1 < (layer.weight == 0).float().mean() < 0.9
        assert layer.is_full


def test_where_the_threshold_of_str_is_0_decay_alone_moves_it():
    # sigmoid(-3200) is 0 in float32, and so is its slope: s = -3200 * (1 - lr * decay), the weights
    # step as plain ones do.
    method = STR(momentum=0.0)
    step, layer = one_layer([3.0, -2.0], method, lr=0.5)
    assert step([1.0, 1.0]) == [2.5, -2.5]
    assert float(layer.memory["threshold"]) == pytest.approx(-3200 * (1 - 0.5 * 2.2517578e-5))
    frozen, other = one_layer([3.0, -2.0], STR(decay=0.0))
    frozen([1.0, 1.0])
    assert float(other.memory["threshold"]) == -3200


def test_autosparse_is_autograd_with_a_leak():
    method = AutoSparse(end=8, initial=-2.5, alpha=0.6, momentum=0.5)
    model, optimizers, sparse = attached(method, steps=9)
    leak = {}

    def leaky(self, weight, index):
        over = weight.abs() - self.learned[index].sigmoid()
        below = over.clamp(max=0) * leak["now"]
        return weight.sign() * (over.relu() + below - below.detach())

    reference = Reference(leaky, [torch.tensor(-2.5)] * 2, rate=0.05, momentum=0.5)
    for number in range(5):
        leak["now"] = sparse.method.leak(number)
        train_step(model, optimizers, number)
        reference.step(number)
    agree(sparse, reference, "threshold")


def test_the_leak_of_autosparse_falls_to_0():
    method = AutoSparse(alpha=0.5).bind(steps=80)
    found = [method.leak(t) for t in range(61)]
    assert found[0] == 0.5
    assert found[60] == 0.0
    assert found == sorted(found, reverse=True)


# Movement


def test_scores_rise_where_weights_move_away_from_zero():
    # dL/dS = g * w: the loss falls as 1 grows and as 2 shrinks; -3 and -4 the same way.
    method = Movement(start=0, end=1, rate=0.5)
    step, layer = one_layer([1.0, 2.0, -3.0, -4.0], method, lr=0.0)
    step([-1.0, 1.0, 1.0, -1.0])
    assert layer.memory["scores"].tolist() == [[0.5, -1.0, 1.5, -2.0]]
    assert step([0.0] * 4) == [1.0, 0.0, -3.0, 0.0]
    # absent weights score on, and return: 2 would help if it were there
    assert step([0.0, -4.0, 0.0, 0.0]) == [0.0, 2.0, -3.0, 0.0]
    assert layer.memory["scores"].tolist() == [[0.5, 3.0, 1.5, -2.0]]


def moving(self, weight, index):
    """W * M, straight through to the scores."""
    scores = self.learned[index]
    mask = best(scores, self.keep(index, scores.numel())).float()
    return weight * (mask + scores - scores.detach())


def test_movement_is_straight_through_autograd():
    method = Movement(start=1, end=4, rate=0.3)
    model, optimizers, sparse = attached(method, steps=7)
    zeros = [torch.zeros_like(layer.weight) for layer in sparse.layers]
    reference = Reference(moving, zeros, rate=0.3)
    for number in range(7):
        # the mask of a forward is that of the step before it, by scores that know its gradient
        last = number - 1
        reference.keep = lambda index, units, last=last: (
            units if last < 0 else sparse.method.kept(units, units // 2, last)
        )
        reference.step(number)
        train_step(model, optimizers, number)
        assert_masked(sparse)
    agree(sparse, reference, "scores")
    for layer in sparse.layers:
        assert torch.equal(layer.mask, best(layer.memory["scores"].view(layer.shape), layer.keep))


def test_movement_ramps_from_its_start():
    method = Movement().bind(steps=100)
    assert (method.start, method.end) == (10, 75)
    kept = [method.kept(1000, 100, t) for t in range(100)]
    assert kept[:11] == [1000] * 11
    assert kept[75:] == [100] * 25
    assert kept == sorted(kept, reverse=True)
    assert kept[42] == 218  # 32 of 65 steps are over: 100 + 900 * (33 / 65)^3 = 217.8


def test_soft_movement_is_straight_through_autograd():
    method = SoftMovement(start=0, end=9, threshold=0.4995, penalty=1.0, rate=30.0, by="sgd")
    model, optimizers, sparse = attached(method, steps=10)
    now = {}

    def open_ones(self, weight, index):
        scores = self.learned[index]
        mask = (scores.sigmoid() > now["threshold"]).float()
        return weight * (mask + scores - scores.detach())

    def price(self):
        scale = now["threshold"] / 0.4995
        return scale * sum(scores.sigmoid().mean() for scores in self.learned)

    zeros = [torch.zeros_like(layer.weight) for layer in sparse.layers]
    reference = Reference(open_ones, zeros, price, rate=30.0)
    for number in range(9):
        now["threshold"] = sparse.method.threshold_at(number)
        reference.step(number)
        train_step(model, optimizers, number)
    agree(sparse, reference, "scores")
    assert all(0.1 < (layer.weight == 0).float().mean() < 0.9 for layer in sparse.layers)


def test_soft_movement_leaves_half_a_percent():
    method = SoftMovement(start=0, end=50)
    _, layer = one_layer([0.0] * 600, method)
    layer.memory["scores"] = torch.linspace(-9, -8, 600).view(1, -1)
    layer.weight.data[:] = 1.0
    with torch.no_grad():
        method.form(layer, 50)
    assert layer.weight[0].nonzero().squeeze(1).tolist() == [597, 598, 599]


def test_a_score_at_the_threshold_is_closed():
    method = SoftMovement(start=0, end=50, threshold=0.5)
    _, layer = one_layer([4.0, 3.0, 2.0, 1.0], method)
    layer.memory["scores"] = torch.tensor([[0.0, 1e-3, 0.0, -1e-3]])  # sigmoid(0) is 0.5
    with torch.no_grad():
        method.form(layer, 50)
    assert layer.weight[0].tolist() == [0.0, 3.0, 0.0, 0.0]
