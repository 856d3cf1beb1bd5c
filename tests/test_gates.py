"""Random gates and learned noise: published vectors, and plain autograd beside the chain rules that
are done by hand."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from latent import Reference, agree, attached, near, one_layer
from torch import nn
from training import batch, train_step

import sparsewright as sw
from sparsewright.methods import METHODS
from sparsewright.methods import l0 as gates
from sparsewright.methods import variational_dropout as vd
from sparsewright.methods.l0 import L0
from sparsewright.methods.variational_dropout import VariationalDropout

# L0


def test_hard_concrete_vectors():
    log_alpha = torch.tensor([0.0, -2.0, -3.0, 2.0])
    assert pytest.approx(-1.5986, abs=1e-4) == gates.SHIFT
    assert gates.chance(log_alpha).tolist() == pytest.approx(
        [0.8318, 0.4010, 0.1976, 0.9734], abs=1e-4
    )
    gate, _ = gates.resting_gate(log_alpha)
    assert gate.tolist() == pytest.approx([0.5, 0.0430, 0.0, 0.9570], abs=1e-4)
    middle, _ = gates.drawn_gate(log_alpha, torch.full((4,), 0.5))  # log u - log(1 - u) is 0
    assert middle[0] == pytest.approx(0.5)


def test_gates_are_0_as_often_as_their_chance_says():
    log_alpha = torch.linspace(-3, 3, 5).repeat_interleave(20_000)
    uniform = torch.rand(len(log_alpha)).clamp(1e-6, 1 - 1e-6)
    open_ones = (gates.drawn_gate(log_alpha, uniform)[0] > 0).float().view(5, -1).mean(dim=1)
    # 20,000 draws: a standard deviation of 0.0035 at most, and five of them
    torch.testing.assert_close(
        open_ones, gates.chance(torch.linspace(-3, 3, 5)), rtol=0, atol=0.018
    )


def hard_concrete(log_alpha, uniform):
    share = torch.sigmoid((torch.log(uniform) - torch.log(1 - uniform) + log_alpha) / (2 / 3))
    return (share * 1.2 - 0.1).clamp(0, 1)


@pytest.mark.parametrize("of", ["unit", "input"])
def test_l0_is_autograd_through_its_gates(of):
    penalty = 1e-3
    model, optimizers, sparse = attached(L0(of=of, penalty=penalty, rate=0.5, by="sgd"), steps=50)
    chance = torch.Generator().manual_seed(0)
    shapes = [(1, 2048)] * 2 if of == "unit" else [(32,), (64,)]
    start = [torch.randn(shape, generator=chance) * 0.01 for shape in shapes]
    draws = {}

    def gated(self, weight, index):
        gate = hard_concrete(self.learned[index], draws[index])
        return weight * (gate.view(weight.shape) if of == "unit" else gate)

    def price(self):
        shift = 2 / 3 * torch.log(torch.tensor(0.1 / 1.1))
        each = [2048 / one.numel() for one in self.learned]
        sums = [torch.sigmoid(one - shift).sum() for one in self.learned]
        return penalty * sum(n * share for n, share in zip(each, sums, strict=True))

    reference = Reference(gated, start, price, rate=0.5)
    for number in range(5):
        for index, shape in enumerate(shapes):
            draws[index] = torch.rand(shape, generator=chance)
        reference.step(number)
        train_step(model, optimizers, number)
    agree(sparse, reference, "log_alpha")
    for layer, one in zip(sparse.layers, reference.learned, strict=True):
        gate = (torch.sigmoid(one) * 1.2 - 0.1).clamp(0, 1).detach()
        shown = layer.memory["latent"] * (gate.view(layer.shape) if of == "unit" else gate)
        torch.testing.assert_close(layer.weight.detach(), shown, rtol=1e-4, atol=1e-6)


def test_gates_begin_at_the_droprate():
    """log alpha is N(log((1 - d) / d), 0.01): at d = 0.2 about log 4, of 10,000 gates."""
    _, layer = one_layer([1.0] * 10_000, L0(droprate=0.2))
    found = layer.memory["log_alpha"]
    # five standard deviations of a mean and of a deviation of 10,000 draws
    assert float(found.mean()) == pytest.approx(math.log(4.0), abs=5e-4)
    assert float(found.std()) == pytest.approx(0.01, rel=0.04)
    assert L0().droprate == 0.5


def test_log_alpha_is_held_within_its_limits():
    """Held within [log 1e-2, log 1e2]: a gate may not open or close for good."""
    step, layer = one_layer([3.0, -3.0] * 32, L0(rate=1e4, by="sgd", penalty=0.0), lr=0.0)
    step([1.0] * 64)
    found = layer.memory["log_alpha"][0]
    moved = found.abs() > 1  # those whose gate was drawn between 0 and 1
    assert 8 < int(moved.sum()) < 64
    down, up = found[::2][moved[::2]], found[1::2][moved[1::2]]
    assert down.tolist() == pytest.approx([math.log(1e-2)] * len(down))
    assert up.tolist() == pytest.approx([math.log(1e2)] * len(up))


def test_gates_of_channels_open_and_close_whole_rows():
    model, _, sparse = attached(L0(droprate=0.8), pattern="channel")
    model(batch(0)[0])
    for layer in sparse.layers:
        ratio = layer.weight / layer.memory["latent"]
        torch.testing.assert_close(ratio, layer.memory["gate"].view(-1, 1).expand(layer.shape))
        assert layer.memory["gate"].shape == (1, layer.shape[0])
        assert (layer.weight == 0).all(dim=1).any()


# Variational dropout


def test_the_divergence_is_the_papers_formula():
    a = torch.linspace(-7.9, 7.9, 50, requires_grad=True)
    share = torch.sigmoid(1.87320 + 1.48695 * a)
    expected = -(0.63576 * share - 0.5 * torch.log(1 + 1 / a.exp()) - 0.63576)
    torch.testing.assert_close(vd.divergence(a), expected)
    expected.sum().backward()
    torch.testing.assert_close(vd.slope_of_divergence(a.detach()), a.grad, rtol=1e-4, atol=1e-6)
    assert float(vd.divergence(torch.tensor(30.0))) == pytest.approx(0, abs=1e-6)


def test_variational_dropout_is_autograd_through_its_noise():
    penalty = 2e-4
    method = VariationalDropout(penalty=penalty, warmup=2, initial=-5.0, rate=3.0, by="sgd")
    model, optimizers, sparse = attached(method, steps=50)
    chance = torch.Generator().manual_seed(0)
    draws, now = {}, {}

    def noisy(self, weight, index):
        return weight + (self.learned[index] / 2).exp() * draws[index]

    def price(self):
        total = 0.0
        for weight, log_variance in zip(self.weights(), self.learned, strict=True):
            a = (log_variance - torch.log(weight**2 + 1e-8)).clamp(-8, 8)
            total = total + vd.divergence(a).sum()
        return penalty * now["warm"] * total

    start = [torch.full(layer.shape, -5.0) for layer in sparse.layers]
    reference = Reference(noisy, start, price, rate=3.0)
    for number in range(4):
        now["warm"] = min(1.0, number / 2)
        for index, layer in enumerate(sparse.layers):
            draws[index] = torch.randn(layer.shape, generator=chance)
        reference.step(number)
        train_step(model, optimizers, number)
    agree(sparse, reference, "log_variance")
    assert sparse.layers[0].memory["log_variance"].std() > 1e-3


def test_weights_that_are_all_noise_are_0_in_evaluation():
    # log alpha = log variance - log w^2: at -2 and weights 1, 0.2, 0.05 it is -2, 1.2, 4.
    step, layer = one_layer([1.0, 0.2, 0.05], VariationalDropout(initial=-2.0), lr=0.0)
    assert layer.weight.detach()[0].tolist() == near(1.0, 0.2, 0.0)
    assert step([0.0] * 3) == near(1.0, 0.2, 0.0)


# what the gated ones share


@pytest.mark.parametrize("name", ["l0", "variational_dropout"])
def test_noise_is_for_training_alone_and_one_draw_serves_a_step(name):
    model, optimizers, _ = attached(METHODS[name]())
    x, y = batch(0)
    model.eval()
    resting = model(x)
    model.train()
    first = model(x)
    assert not torch.equal(first, resting)
    assert torch.equal(model(x), first), "accumulated gradients are of one draw"
    model.eval()
    assert torch.equal(model(x), resting)
    model.train()
    ((model(x) - y) ** 2).mean().backward()
    optimizers[0].step()
    assert not torch.equal(model(x), first)


@pytest.mark.parametrize("name", ["l0", "variational_dropout"])
def test_a_look_in_between_does_not_change_what_a_step_learns(name):
    found = []
    for looks in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
        optimizer = torch.optim.SGD(model.parameters(), 0.1)
        method = METHODS[name]()
        sparse = sw.attach(model, optimizer, method=method, sparsity=0.5, steps=40)
        x = torch.randn(4, 8)
        model(x).square().mean().backward()
        if looks:
            model.eval()(x)
            model.train()
        optimizer.step()
        found.append(sparse.layers[0].memory)
    assert all(torch.equal(found[0][key], found[1][key]) for key in found[0])


@pytest.mark.parametrize("name", ["l0", "variational_dropout", "deep_r"])
def test_a_look_between_micro_batches_draws_nothing_anew(name):
    """Two backwards, one step: whoever evaluates in between, both see the same weights."""
    found = []
    for looks in (0, 2):
        model, optimizers, sparse = attached(METHODS[name](), steps=40)
        for number in range(3):
            for part in range(2):
                x, y = batch(2 * number + part)
                ((model(x) - y) ** 2).mean().backward()
                for _ in range(looks):
                    with torch.no_grad():
                        model.eval()(x)
                model.train()
            optimizers[0].step()
            optimizers[0].zero_grad()
        kept = [{"weight": y.weight.detach(), **y.memory} for y in sparse.layers]
        found.append((kept, sparse.generator.get_state()))
    for plain, looked in zip(found[0][0], found[1][0], strict=True):
        assert all(torch.equal(plain[key], looked[key]) for key in plain)
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("name", ["l0", "variational_dropout"])
def test_a_draw_is_forgotten_where_a_checkpoint_is_loaded(name):
    """A run that goes back, from the middle of a step, ends as the first time."""
    model, optimizers, sparse = attached(METHODS[name](), steps=40)
    train_step(model, optimizers, 0)
    saved = [copy.deepcopy(part.state_dict()) for part in (model, optimizers[0], sparse)]
    ends = []
    for _ in range(2):
        train_step(model, optimizers, 1)
        ends.append([layer.weight.detach().clone() for layer in sparse.layers])
        model(batch(2)[0])  # and the step is given up
        for part, state in zip((model, optimizers[0], sparse), saved, strict=True):
            part.load_state_dict(copy.deepcopy(state))
    assert all(torch.equal(a, b) for a, b in zip(*ends, strict=True))
