"""Methods that are dense first: steps worked out on paper, published schedules, and their traps."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn
from training import assert_masked, small_model, train_step

import sparsewright as sw
from sparsewright.methods._share import share_by_rank
from sparsewright.methods._units import unit_norms
from sparsewright.methods.acdc import ACDC
from sparsewright.methods.admm import ADMM
from sparsewright.methods.dsd import DSD
from sparsewright.methods.group_lasso import GroupLasso
from sparsewright.methods.iht import IHT
from sparsewright.methods.l1 import L1
from sparsewright.methods.slimming import Slimming
from sparsewright.methods.soft_l1 import SoftL1


def linear(rows):
    """A Linear without bias that has these weights."""
    weight = torch.tensor(rows)
    model = nn.Sequential(nn.Linear(weight.shape[1], weight.shape[0], bias=False))
    with torch.no_grad():
        model[0].weight.copy_(weight)
    return model


def attached(model, method, *, lr=0.5, steps=100, sparsity=0.5, pattern="unstructured", **options):
    optimizer = torch.optim.SGD(model.parameters(), lr, **options)
    kinds = {"sparsity": sparsity, "pattern": pattern, "allocate": "uniform_all"}
    return optimizer, sw.attach(model, optimizer, method=method, steps=steps, **kinds)


def step_along(model, optimizer, gradient):
    """One step along a gradient that is given."""
    optimizer.zero_grad()
    (model[0].weight * torch.as_tensor(gradient)).sum().backward()
    optimizer.step()


# soft_l1 and l1


def test_soft_threshold_by_hand():
    # rate 0.5 * strength 2: everything comes nearer to 0 by 1, and stops there
    model = linear([[3.0, -0.5, 1.0, -2.0]])
    optimizer, _ = attached(model, SoftL1(2.0))
    step_along(model, optimizer, 0.0)
    assert model[0].weight.tolist() == [[2.0, 0.0, 0.0, -1.0]]
    step_along(model, optimizer, -4.0)  # first the gradient's step, +2, then the threshold
    assert model[0].weight.tolist() == [[3.0, 1.0, 1.0, 0.0]]


def test_the_threshold_follows_the_learning_rate():
    model = linear([[3.0, -3.0]])
    optimizer, _ = attached(model, SoftL1(1.0))
    for rate in (1.0, 0.25):
        optimizer.param_groups[0]["lr"] = rate
        step_along(model, optimizer, 0.0)
    assert model[0].weight.tolist() == [[1.75, -1.75]]


def test_soft_l1_is_ista_on_least_squares():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(20, 12, generator=generator), torch.randn(20, 1, generator=generator)
    model = linear([[0.1] * 12])
    rate, strength = 0.01, 3.0
    optimizer, _ = attached(model, SoftL1(strength), lr=rate, steps=400)
    x = model[0].weight.detach().clone()
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * (model(a) - b).square().sum()).backward()
        optimizer.step()
        x = x - rate * (a @ x.T - b).T @ a
        x = x.sign() * (x.abs() - rate * strength).clamp(min=0)
    # 200 steps of sums in another order
    torch.testing.assert_close(model[0].weight, x, atol=1e-5, rtol=1e-4)
    zeros = int((x == 0).sum())
    assert 0 < zeros < 12
    assert int((model[0].weight == 0).sum()) == zeros


def test_l1_adds_its_subgradient_and_rests_at_zero():
    model = linear([[3.0, -0.5, 0.0, -2.0]])
    optimizer, _ = attached(model, L1(2.0))
    step_along(model, optimizer, 1.0)  # 0.5 * (1 + 2 * sign)
    assert model[0].weight.tolist() == [[1.5, 0.0, -0.5, -1.5]]


@pytest.mark.parametrize("kind", [SoftL1, L1, GroupLasso])
def test_after_the_cut_there_is_no_penalty(kind):
    model = linear([[4.0, -3.0, 2.0, 1.0]])
    optimizer, sparse = attached(model, kind(0.1, end=2))
    for _ in range(2):
        step_along(model, optimizer, 0.0)
    assert sparse.layers[0].is_full
    before = model[0].weight.detach().clone()
    for _ in range(3):
        step_along(model, optimizer, 0.0)
    assert torch.equal(model[0].weight, before * torch.tensor([[1.0, 1.0, 0.0, 0.0]]))


def test_penalties_do_not_reach_sparse_gradients_in_silence():
    model = nn.Sequential(nn.Embedding(8, 4, sparse=True))
    optimizer = torch.optim.SparseAdam(model.parameters(), 0.1)
    sw.attach(model, optimizer, method=L1(), sparsity=0.5, steps=10)
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(sw.StateError, match="layer '0': a penalty reaches every weight"):
        optimizer.step()


# group_lasso


def test_group_shrinkage_by_hand():
    # Rows of length 5 and 1; each is to be shorter by rate 0.5 * strength sqrt(2) * sqrt(2) = 1.
    model = linear([[3.0, 4.0], [0.6, -0.8]])
    optimizer, _ = attached(model, GroupLasso(math.sqrt(2.0)), pattern="channel")
    step_along(model, optimizer, 0.0)
    wanted = torch.tensor([[2.4, 3.2], [0.0, 0.0]])
    torch.testing.assert_close(model[0].weight.detach(), wanted, atol=1e-6, rtol=0.0)


def test_group_subgradient_by_hand():
    # slope 0.5 * 10 * w / |row|, without the weight sqrt(2): (0.6, 0.8) * 5 off the first row
    model = linear([[3.0, 4.0], [0.0, 0.0]])
    method = GroupLasso(10.0, step="subgradient", weighted=False)
    optimizer, _ = attached(model, method, pattern="channel")
    step_along(model, optimizer, 0.0)
    wanted = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    torch.testing.assert_close(model[0].weight.detach(), wanted, atol=1e-6, rtol=0.0)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4", "fan_in"])
@pytest.mark.parametrize(("step", "plain"), [("proximal", SoftL1), ("subgradient", L1)])
def test_over_single_weights_group_lasso_is_l1(pattern, step, plain):
    models = [small_model(), small_model()]
    methods = [GroupLasso(0.1, step=step), plain(0.1)]
    runs = [
        attached(m, k, lr=0.05, steps=9, pattern=pattern)
        for m, k in zip(models, methods, strict=True)
    ]
    for number in range(9):
        for model, (optimizer, _) in zip(models, runs, strict=True):
            train_step(model, [optimizer], number)
    for a, b in zip(*(m.parameters() for m in models), strict=True):
        assert torch.equal(a, b)


def test_group_lasso_gathers_length_in_few_channels():
    def shortest(method):
        model = small_model()
        optimizer, sparse = attached(model, method, lr=0.05, steps=200, pattern="channel")
        for number in range(149):
            train_step(model, [optimizer], number % 8)
        assert all(layer.is_full for layer in sparse.layers)
        return model[0].weight.norm(dim=1).sort().values[:16].mean().item()

    assert shortest(GroupLasso(0.02)) < 0.5 * shortest(GroupLasso(0.0))


@pytest.mark.parametrize("pattern", ["channel", "block:4x4"])
def test_units_of_packed_weights_have_the_same_lengths(pattern):
    model = small_model()
    sw.prune(model, 0.5, pattern, allocate="uniform_all")
    packed = sw.pack(model)
    optimizer = torch.optim.SGD(packed.parameters(), 0.1)
    sparse = sw.attach(packed, optimizer, method="static", pattern=pattern)
    plain = small_model()
    masked = sw.attach(
        plain,
        torch.optim.SGD(plain.parameters(), 0.1),
        method=sw.Static(initial="magnitude"),
        sparsity=0.5,
        pattern=pattern,
        allocate="uniform_all",
    )
    for a, b in zip(sparse.layers, masked.layers, strict=True):
        norms = unit_norms(b)
        torch.testing.assert_close(unit_norms(a), norms[b.mask])


# the cut, in one layer or over all


@pytest.mark.parametrize(("scope", "counts"), [("layer", [4, 4]), ("global", [7, 1])])
def test_a_global_cut_goes_where_weights_are_large(scope, counts):
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[5.0, 6.0, 7.0, 8.0], [9.0, 10.0, 11.0, 0.05]]))
        model[1].weight.copy_(torch.tensor([[0.1, 0.2], [9.0, 0.3], [0.4, 0.5], [0.6, 0.7]]))
    optimizer, sparse = attached(model, SoftL1(0.0, end=1, scope=scope))
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.zeros(1, 4)).sum().backward()
        optimizer.step()
    assert [layer.present for layer in sparse.layers] == counts
    assert [layer.keep for layer in sparse.layers] == counts


def test_shares_are_those_of_one_plain_threshold():
    model = small_model()
    with torch.no_grad():
        model[2].weight.mul_(1.7)
    _, sparse = attached(model, L1(), sparsity=0.9)
    share_by_rank(sparse.layers, "magnitude")
    sizes = [layer.weight.detach().abs() for layer in sparse.layers]
    least = torch.cat([size.reshape(-1) for size in sizes]).sort().values[-410]  # of 4096 * 0.1
    counts = [int((size >= least).sum()) for size in sizes]
    assert [layer.keep for layer in sparse.layers] == counts
    assert counts[1] > 1.5 * counts[0]


def test_no_layer_is_emptied_by_a_global_cut():
    model = small_model()
    with torch.no_grad():
        model[2].weight.mul_(1e-6)
    optimizer, sparse = attached(model, L1(end=1, scope="global"), lr=1e-4)
    total = sum(layer.keep for layer in sparse.layers)
    for number in range(2):
        train_step(model, [optimizer], number)
    assert [layer.keep for layer in sparse.layers] == [2047, 1]
    assert sum(layer.keep for layer in sparse.layers) == total
    assert_masked(sparse)


# slimming


def normed():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, bias=False),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 2),
    )


def slimmed(method, *, steps=8, run=8, sparsity=0.5, **options):
    model = normed()
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([0.9, -0.8, 0.7, 0.15]))
        model[4].weight.copy_(torch.tensor([0.1, 0.5, 0.2, 0.3]))
        model[1].bias.fill_(0.25)
    optimizer = torch.optim.SGD(model.parameters(), 0.0, **options)
    sparse = sw.attach(
        model,
        optimizer,
        method=method,
        sparsity=sparsity,
        pattern="channel",
        allocate="uniform_all",
        skip=["7"],
        steps=steps,
    )
    for number in range(run):
        optimizer.zero_grad()
        generator = torch.Generator().manual_seed(number)
        model(torch.randn(8, 4, 4, 4, generator=generator)).square().mean().backward()
        optimizer.step()
    return model, sparse


def test_slimming_cuts_by_one_threshold_on_the_scales():
    # Four channels of eight, all of 36 weights: .9 .8 .7 of the first layer, .5 of the second.
    _, sparse = slimmed(Slimming())
    kept = [layer.table[0].tolist() for layer in sparse.layers]
    assert kept == [[True, True, True, False], [False, True, False, False]]


def test_every_layer_keeps_its_part_of_channels_whatever_the_threshold():
    # Half of four: .5 and .3 of the second layer stay; then .9 and .8 of the first.
    _, sparse = slimmed(Slimming(least=0.5))
    kept = [layer.table[0].tolist() for layer in sparse.layers]
    assert kept == [[True, True, False, False], [False, True, False, True]]


def test_slimming_pulls_the_scales_by_their_signs():
    model, sparse = slimmed(Slimming(0.125), run=0)
    optimizer = sparse._optimizers[0]
    optimizer.zero_grad()
    model(torch.randn(8, 4, 4, 4)).square().mean().backward()
    plain = model[1].weight.grad.clone()
    rows = model[0].weight.grad.clone()
    optimizer.step()
    signs = torch.tensor([1.0, -1.0, 1.0, 1.0])
    torch.testing.assert_close(model[1].weight.grad, plain + 0.125 * signs)
    assert torch.equal(model[0].weight.grad, rows), "where a norm follows, the rows are free"


def test_the_shift_of_a_cut_channel_stays():
    """The trap of slimming: without its weights the channel still gives relu(beta)."""
    model, sparse = slimmed(Slimming(scope="layer"))
    gone = sparse.layers[0].table[0].logical_not().nonzero().squeeze(1)
    assert gone.tolist() == [2, 3]
    model.eval()
    hidden = model[:3](torch.randn(2, 4, 4, 4))[:, gone]
    shift = model[1].bias[gone] - model[1].running_mean[gone] * model[1].weight[gone] / torch.sqrt(
        model[1].running_var[gone] + model[1].eps
    )
    torch.testing.assert_close(hidden, torch.relu(shift)[None, :, None, None].expand_as(hidden))
    assert hidden.std(dim=(0, 2, 3)).max() == 0


def test_slimming_says_where_no_norm_follows():
    model = normed()
    kinds = {"sparsity": 0.5, "pattern": "channel", "steps": 8}
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(sw.ConfigError, match=r"no norm with a scale .* follows layer '7' \(1 of 3"):
        sw.attach(model, optimizer, method=Slimming(without="error"), **kinds)
    with pytest.raises(sw.ConfigError, match=r"layer '7': its norm '4' must be .* 2 outputs"):
        sw.attach(model, optimizer, method=Slimming(norms={"7": "4"}), **kinds)
    with pytest.raises(sw.UnknownNameError, match="no sparse layer is called '9'"):
        sw.attach(model, optimizer, method=Slimming(norms={"9": "4"}), **kinds)
    sparse = sw.attach(model, optimizer, method=Slimming(), **kinds)
    assert sorted(sparse.method.scales) == ["0", "3"]
    assert sparse.method.scales["3"] is model[4].weight
    assert all(len(layer.storage.weight._backward_hooks) == 1 for layer in sparse.layers)


def test_the_norm_may_be_named():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    method = Slimming(norms={"1": "0"}, without="error")
    sparse = sw.attach(model, optimizer, method=method, sparsity=0.5, steps=8, allocate="erk")
    assert sparse.method.scales["1"] is model[0].weight


# admm


def test_one_round_of_admm_by_hand():
    # Z is the best of 4, 3, 2, 1: (4, 3, 0, 0). Rate 0.5 * rho 1: w falls by half of w - z + u.
    model = linear([[4.0, 3.0, 2.0, 1.0]])
    optimizer, sparse = attached(model, ADMM(rho=1.0, every=1))
    memory = sparse.layers[0].memory
    assert memory["target"].tolist() == [[4.0, 3.0, 0.0, 0.0]]
    step_along(model, optimizer, 0.0)
    assert model[0].weight.tolist() == [[4.0, 3.0, 1.0, 0.5]]
    assert memory["target"].tolist() == [[4.0, 3.0, 0.0, 0.0]]
    assert memory["dual"].tolist() == [[0.0, 0.0, 1.0, 0.5]]  # what z missed
    step_along(model, optimizer, [[0.0, 4.0, 0.0, 0.0]])
    # w - z + u = (0, 0, 2, 1); w = (4, 3 - 2, 1 - 1, 0.5 - 0.5); w + u = (4, 1, 1, 0.5)
    assert model[0].weight.tolist() == [[4.0, 1.0, 0.0, 0.0]]
    assert memory["target"].tolist() == [[4.0, 1.0, 0.0, 0.0]]
    assert memory["dual"].tolist() == [[0.0, 0.0, 1.0, 0.5]]


def test_admm_projects_after_the_first_values_are_set():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    kinds = {"sparsity": 0.5, "steps": 9, "init": "fan_in", "pattern": "2:4"}
    sparse = sw.attach(model, optimizer, method=ADMM(), **kinds | {"sparsity": None})
    for layer in sparse.layers:
        target = layer.memory["target"]
        best = sw.keep_best(layer.pattern.fold(layer.weight.detach().square()), 2)
        kept = layer.pattern.unfold(best, layer.shape)
        assert torch.equal(target, layer.weight.detach() * kept)


def test_admm_brings_weights_to_their_projection_before_the_cut():
    """The point of it: what the cut removes is small by then."""

    def removed(rho):
        model = small_model()
        optimizer, sparse = attached(model, ADMM(rho, every=10), lr=0.1, steps=400)
        for number in range(299):
            train_step(model, [optimizer], number % 8)
        layer = sparse.layers[0]
        squares = layer.weight.detach().square().reshape(-1).sort().values
        return float(squares[: layer.keep].sum() / squares.sum())

    assert removed(0.1) < 0.2 * removed(0.0)


def test_admm_forgets_what_it_no_longer_needs():
    model = linear([[4.0, 3.0, 2.0, 1.0]])
    optimizer, sparse = attached(model, ADMM(end=1))
    for _ in range(2):
        step_along(model, optimizer, 0.0)
    assert [len(kept) for kept in sparse.layers[0].memory.values()] == [0, 0]


# iht


def test_iht_is_the_plain_loop_and_recovers_a_sparse_vector():
    generator = torch.Generator().manual_seed(1)
    rows, size, k = 60, 100, 5
    a = torch.randn(rows, size, generator=generator) / math.sqrt(rows)
    truth = torch.zeros(size)
    places = torch.randperm(size, generator=generator)[:k]
    truth[places] = torch.randn(k, generator=generator).sign() * 2 + 0.5
    b = a @ truth
    rate = 0.5
    model = linear([[0.0] * size])
    optimizer, sparse = attached(model, IHT(), lr=rate, sparsity=1 - k / size)
    x = torch.zeros(size)
    for _ in range(300):
        optimizer.zero_grad()
        (0.5 * (model(a).squeeze(1) - b).square().sum()).backward()
        optimizer.step()
        x = x - rate * a.T @ (a @ x - b)
        x = x * (x.abs() >= x.abs().sort().values[-k])
    assert sparse.layers[0].present == k
    torch.testing.assert_close(model[0].weight[0].detach(), x, atol=1e-5, rtol=0.0)
    # linear convergence: 300 steps end at float32's own error
    torch.testing.assert_close(model[0].weight[0].detach(), truth, atol=1e-5, rtol=0.0)
    assert sparse.changes, "moves are told"


def test_absent_weights_of_iht_restart_from_zero_and_may_return():
    model = linear([[3.0, 2.0, 1.0, 0.5]])
    optimizer, sparse = attached(model, IHT(), lr=1.0)
    step_along(model, optimizer, 0.0)
    assert model[0].weight.tolist() == [[3.0, 2.0, 0.0, 0.0]]
    step_along(model, optimizer, [[0.0, 0.0, 0.0, -1.5]])  # 1.5 from 0, not 2 from 0.5
    assert model[0].weight.tolist() == [[3.0, 2.0, 0.0, 0.0]]
    step_along(model, optimizer, [[0.0, 0.0, 0.0, -2.5]])  # not 4, nothing was saved up
    assert model[0].weight.tolist() == [[3.0, 0.0, 0.0, 2.5]]
    moves = [(change.step, change.dropped, change.grown) for change in sparse.changes]
    assert moves == [(0, 2, 0), (2, 1, 1)]


# acdc and dsd


def test_phases_of_the_published_recipe():
    """Epochs of 100: prune at 10, 20, ... 70 and 85, dense at 15, 25, ... 75."""
    bound = ACDC().bind(steps=100)
    sparse = [epoch for epoch in range(100) if bound.is_sparse(epoch)]
    wanted = [e for first in range(10, 80, 10) for e in range(first, first + 5)]
    assert sparse == wanted + list(range(85, 100))
    assert ACDC().bind(steps=1000).turns == tuple(10 * turn for turn in bound.turns)


def test_acdc_masks_are_fixed_inside_a_phase_and_weights_return_from_zero():
    model = linear([[4.0, 3.0, 2.0, 1.0]])
    method = ACDC(phases=(0.2, 0.5, 0.8))
    optimizer, sparse = attached(model, method, lr=1.0, steps=10, momentum=0.5)
    counts, layer = [], sparse.layers[0]
    for number in range(10):
        step_along(model, optimizer, [[0.0, 0.0, 0.0, -0.25]])
        counts.append(layer.present)
        if number == 3:
            assert not model[0].weight[0, 2:].any()
        if number == 5:  # absent until now, without gradient or momentum in the step of its return
            assert model[0].weight[0, 3] == 0.0
        if number == 6:
            assert model[0].weight[0, 3] == 0.25
    assert counts == [4, 4, 2, 2, 2, 4, 4, 4, 2, 2]
    assert [change.step for change in sparse.changes] == [2, 5, 8]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize("reset", [False, True])
def test_acdc_may_forget_the_momentum_of_weights_that_stayed(pack, reset):
    model = linear([[4.0, 3.0, 2.0, 1.0]])
    model = sw.pack(model) if pack else model
    method = ACDC(phases=(0.2, 0.5, 0.8), reset_momentum=reset)
    optimizer, _ = attached(model, method, lr=1.0, steps=10, momentum=0.5)
    for number in range(6):
        optimizer.zero_grad()
        slope = -8.0 if number == 4 else 0.0
        (model[0].weight.sum() * slope).backward()
        optimizer.step()
    flat = model[0].weight.detach().reshape(-1)
    # one step of 8, which momentum carries on by 4, unless it is forgotten
    stayed = [12.0, 11.0] if reset else [16.0, 15.0]
    assert flat.tolist() == [*stayed, 0.0, 0.0]


def test_acdc_shares_its_budget_over_all_layers():
    model = small_model()
    with torch.no_grad():
        model[2].weight.mul_(10.0)
    optimizer, sparse = attached(model, ACDC(), lr=1e-3, steps=20, sparsity=0.75)
    whole = sum(layer.keep for layer in sparse.layers)
    for number in range(20):
        train_step(model, [optimizer], number)
        assert_masked(sparse)
    assert sum(layer.present for layer in sparse.layers) == whole
    assert sparse.layers[1].present > 2 * sparse.layers[0].present


def test_dsd_goes_dense_again_and_ends_within_the_budget():
    model = small_model()
    method = DSD(middle=0.25)
    optimizer, sparse = attached(model, method, lr=0.05, steps=30, sparsity=0.75)
    counts = []
    for number in range(30):
        train_step(model, [optimizer], number)
        counts.append(sparse.layers[0].present)
    assert counts == [2048] * 10 + [1536] * 10 + [2048] * 7 + [512] * 3


def test_dsd_cuts_every_layer_by_itself_and_weights_return_from_zero():
    model = nn.Sequential(nn.Linear(4, 2, bias=False), nn.Linear(2, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.arange(80.0, 0.0, -10.0).view(2, 4))
        model[1].weight.copy_(torch.arange(8.0).view(4, 2))
    optimizer, sparse = attached(model, DSD(turns=(1, 3, 9)), lr=1.0, steps=10)
    seen = []
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.zeros(1, 4)).sum().backward()  # no gradient
        optimizer.step()
        seen.append([layer.present for layer in sparse.layers])
    assert seen == [[8, 8], [4, 4], [4, 4], [8, 8]]
    assert model[0].weight.tolist() == [[80.0, 70.0, 60.0, 50.0], [0.0] * 4]
    assert model[1].weight.flatten().tolist() == [0.0] * 4 + [4.0, 5.0, 6.0, 7.0]
    step_along(model, optimizer, [[0.0] * 4, [-2.0, 0.0, 0.0, 3.0]])
    assert model[0].weight.tolist() == [[80.0, 70.0, 60.0, 50.0], [2.0, 0.0, 0.0, -3.0]]


def test_the_sparse_phase_of_dsd_is_never_sparser_than_what_was_asked():
    model = small_model()
    optimizer, sparse = attached(model, DSD(middle=0.9), lr=0.05, steps=30, sparsity=0.5)
    for number in range(12):
        train_step(model, [optimizer], number)
    assert [layer.present for layer in sparse.layers] == [1024, 1024]


def test_dsd_as_published_ends_dense():
    model = small_model()
    optimizer, sparse = attached(model, DSD(last=None), lr=0.05, steps=30)
    for number in range(30):
        train_step(model, [optimizer], number)
    assert all(layer.is_full for layer in sparse.layers)
    assert [change.step for change in sparse.changes] == [10, 10, 20, 20]


# gradual with scores that need gradients


def test_gradual_by_a_score_that_needs_gradients():
    model = small_model()
    method = sw.Gradual(every=2, end=6, score="weight_gradient")
    optimizer, sparse = attached(model, method, lr=0.05, steps=9, sparsity=0.75)
    counts = []
    for number in range(9):
        train_step(model, [optimizer], number)
        counts.append(sparse.layers[0].present)
    assert counts[0] == 2048
    assert counts[-1] == 512
    assert counts == sorted(counts, reverse=True)


# what makes no sense


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SoftL1(-1.0), r"method SoftL1: strength must be 0 or more, and finite; got -1.0"),
        (lambda: L1(float("nan")), r"method L1: strength must be 0 or more, and finite; got nan"),
        (lambda: ADMM(rho=-1.0), r"method ADMM: rho must be 0 or more"),
        (lambda: Slimming(least=2.0), r"method Slimming: least must be in \[0, 1\]; got 2.0"),
        (lambda: ADMM(every=0), r"method ADMM: every .* must be 1 or more; got 0"),
        (lambda: L1().bind(None), r"method L1 must know when to stop: give attach\(steps="),
        (lambda: L1(end=40).bind(40), r"cut must fall within the run, before step 40; got end=40"),
        (lambda: IHT(end=0), r"method IHT: end must not come before start=1; got 0"),
        (lambda: ACDC(phases=(0.2, 0.5)), r"method ACDC: phases must be an odd number .* got 2"),
        (lambda: ACDC(phases=(0.5, 0.2, 0.9)), r"ACDC: phases must be ascending parts .* got \("),
        (lambda: ACDC(turns=(-1,)), r"method ACDC: turns must be ascending steps; got \(-1,\)"),
        (lambda: ACDC().bind(None), r"method ACDC must know the run's length: give attach\(steps="),
        (lambda: DSD(dense=1.0), r"method DSD: phases must be ascending parts of the run"),
        (lambda: DSD(middle=1.0), r"method DSD: middle must be in \[0, 1\); got 1.0"),
    ],
)
def test_what_makes_no_sense_is_refused(make, message):
    with pytest.raises(sw.ConfigError, match=message):
        make()


def test_a_mistyped_option_is_refused():
    with pytest.raises(sw.UnknownNameError, match="no value of SoftL1's scope is called 'all'"):
        SoftL1(scope="all")
    with pytest.raises(sw.UnknownNameError, match="no value of GroupLasso's step"):
        GroupLasso(step="prox")
    with pytest.raises(sw.UnknownNameError, match="no value of Slimming's without"):
        Slimming(without="warn")
