"""Sparse-to-sparse methods by hand: what they drop, grow and share out, worked out on paper."""

from __future__ import annotations

import copy

import pytest
import torch
from test_methods import O, X, layer_of, table_of
from training import OPTIMIZERS, assert_masked, loss_of, small_model, through_a_file, train_step

import sparsewright as sw
from sparsewright.exchange import exchange_of, units_after
from sparsewright.exploration import Exploration
from sparsewright.methods._redistribute import redistribute, shared_out
from sparsewright.methods._refill import refill
from sparsewright.methods.deep_r import BORN, DeepR
from sparsewright.methods.dsr import DSR
from sparsewright.methods.granet import GraNet
from sparsewright.methods.mest import MEST
from sparsewright.methods.rigl_itop import RigLITOP
from sparsewright.methods.set_itop import SETITOP
from sparsewright.methods.snfs import SNFS, mean_momentum
from sparsewright.patterns import as_pattern

#                  0    1    2   3   4   5   6   7
WEIGHT = [[0.1, -0.5, 0.3, 0.0, 0.0, 0.2, 0.0, 0.0]]
TABLE = [[O, O, O, X, X, O, X, X]]
GRADIENT = [[9.0, 9.0, 9.0, 4.0, 1.0, -8.0, -5.0, 2.0]]


def attached(method, optimizer="SGD-momentum", steps=40, model=None, **settings):
    model = small_model() if model is None else model
    optimizers = OPTIMIZERS[optimizer](model)
    settings = {"sparsity": 0.75, "allocate": "uniform_all", "steps": steps} | settings
    return model, optimizers, sw.attach(model, optimizers, method=method, **settings)


def units(layer):
    return layer.present_units.tolist()


def after(layer, wish):
    """The units that a wish of a layer leads to."""
    return units_after(layer, exchange_of(layer, wish)[0])


# dropping and filling up where the number of units changes


def test_refill_drops_the_least_and_fills_up_to_another_count():
    # 0 (0.1) goes; of those not kept, 0 (9), 5 is kept; the steepest: 0 (9), 6 (5).
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    more = refill(layer, 1, 5, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, more)) == [[O, O, O, X, X, O, O, X]]
    assert layer.keep == 4, "the layer's own budget is not touched"
    fewer = refill(layer, 1, 2, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, fewer)) == [[X, O, O, X, X, X, X, X]]
    assert refill(layer, 0, 4, drop="magnitude", grow="gradient") is None


def test_refill_without_the_just_dropped_and_with_a_reset():
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    wish = refill(layer, 2, 4, drop="magnitude", grow="gradient", exclude_dropped=True)
    assert table_of(layer, after(layer, wish)) == [[X, O, O, O, X, X, O, X]]
    wish = refill(layer, 2, 4, drop="magnitude", grow="gradient", regrown="reset")
    assert table_of(layer, after(layer, wish)) == TABLE
    assert wish.comes.tolist() == [0, 5]


def test_refill_leaves_no_group_above_the_count():
    # fan_in, two rows of 2: by magnitude over both 0.1 goes; then row 0 still holds 2 where 1 is
    # asked, and loses its 0.8.
    layer = layer_of(
        [[0.9, 0.8, 0.0], [0.7, 0.1, 0.0]],
        [[O, O, X], [O, O, X]],
        "fan_in",
        gradient=[[1.0] * 3] * 2,
    )
    wish = refill(layer, 1, 1, drop="magnitude", grow="gradient")
    assert table_of(layer, after(layer, wish)) == [[O, X, X], [O, X, X]]


def test_freed_weights_go_by_shares_and_overflow_to_the_others():
    # 12 by 2:1:1 is 6, 3, 3; the first takes 3 only, and its other 3 go 1:1 to the others.
    got = shared_out(12.0, {"a": 2.0, "b": 1.0, "c": 1.0}, {"a": 3.0, "b": 9.0, "c": 9.0})
    assert got == {"a": 3.0, "b": 4.5, "c": 4.5}
    assert shared_out(4.0, {"a": 0.0, "b": 0.0}, {"a": 9.0, "b": 9.0}) == {"a": 2.0, "b": 2.0}
    assert shared_out(9.0, {"a": 1.0, "b": 1.0}, {"a": 2.0, "b": 3.0}) == {"a": 2.0, "b": 3.0}


# SNFS


def two_layers(first, second):
    """Two layers of other names."""
    first.name, second.name = "first", "second"
    return [first, second]


def test_sparse_momentum_by_hand():
    # Layer one: 8 present of 16, |m| of the present 3: mean 3. Layer two: 4 present of 8, mean 1.
    # Half of each is dropped: 4 and 2 kept, 6 freed, shared 3:1: 4.5 and 1.5 -> 8.5 and 3.5,
    # which come to 12 as 8 and 4 or as 9 and 3; of a tie both are right, the sum is met.
    one = layer_of(torch.arange(1.0, 17.0).reshape(1, 16).tolist(), [[O] * 8 + [X] * 8])
    two = layer_of(torch.arange(1.0, 9.0).reshape(1, 8).tolist(), [[O] * 4 + [X] * 4])
    layers = two_layers(one, two)
    method = SNFS(every=1, fraction=lambda step: 0.5).bind(10)
    one.memory["momentum"] = torch.tensor([[3.0] * 8 + [0.0] * 4 + [-9.0, 8.0, -7.0, 6.0]])
    two.memory["momentum"] = torch.tensor([[1.0, -1.0, 1.0, -1.0, 90.0, 0.0, 80.0, 0.0]])
    for layer in layers:
        layer.weight.grad = torch.zeros(layer.shape)
    assert [mean_momentum(layer) for layer in layers] == [3.0, 1.0], "absent ones do not count"
    method.rebudget(layers, 1)
    assert one.keep + two.keep == 12
    assert one.keep in (8, 9)
    one.keep, two.keep = 9, 3
    wish = method.update(one, 1)
    # 1 to 4 (units 0 to 3) are the smallest; grown: units 12 to 15 (9, 8, 7, 6), then the first 3.
    assert after(one, wish).tolist() == [0, 4, 5, 6, 7, 12, 13, 14, 15]
    # units 0 and 1 go; of 90 at unit 4 and 80 at 6 one is wanted.
    assert after(two, method.update(two, 1)).tolist() == [2, 3, 4]


def test_budget_by_hand_that_has_no_tie():
    # kept 4 and 2 of 8 and 4, 6 freed, by 2:1 -> 4 and 2: as before; by 1:2 -> 2 and 4.
    def layers():
        return two_layers(
            layer_of(torch.ones(1, 16).tolist(), [[O] * 8 + [X] * 8]),
            layer_of(torch.ones(1, 8).tolist(), [[O] * 4 + [X] * 4]),
        )

    same, moved = layers(), layers()
    redistribute(same, {"first": 4, "second": 2}, {"first": 2.0, "second": 1.0})
    assert [layer.keep for layer in same] == [8, 4]
    redistribute(moved, {"first": 4, "second": 2}, {"first": 1.0, "second": 2.0})
    assert [layer.keep for layer in moved] == [6, 6]


def test_momentum_is_dense_and_of_every_step():
    method = SNFS(every=100, beta=0.9)
    model, optimizers, sparse = attached(method, "SGD", steps=200)
    twin = small_model()  # without masks
    wanted = [torch.zeros(layer.shape) for layer in sparse.layers]
    for step in range(3):
        twin.load_state_dict(model.state_dict())
        twin.zero_grad()
        loss_of(twin, step).backward()
        for total, module in zip(wanted, (twin[0], twin[2]), strict=True):
            total.mul_(0.9).add_(module.weight.grad, alpha=0.1)
        train_step(model, optimizers, step)
        for layer, total in zip(sparse.layers, wanted, strict=True):
            assert torch.allclose(layer.memory["momentum"], total, atol=1e-7)
            assert layer.memory["momentum"][layer.absent].any()
            assert not layer.weight.grad[layer.absent].any(), "the optimizer sees none of it"


def test_sparse_momentum_moves_budget_and_keeps_the_total():
    model, optimizers, sparse = attached(SNFS(every=4), "AdamW")
    before = [layer.present for layer in sparse.layers]
    for step in range(20):
        train_step(model, optimizers, step)
        assert_masked(sparse)
        assert sparse.report().present == sum(before)
    assert [layer.present for layer in sparse.layers] != before


def test_a_layer_without_a_gradient_keeps_its_budget():
    model = small_model()
    model[0].weight.requires_grad_(False)
    model, optimizers, sparse = attached(SNFS(every=2), "SGD", model=model)
    first = sparse.layers[0].table
    for step in range(8):
        train_step(model, optimizers, step)
    assert torch.equal(sparse.layers[0].table, first)
    assert sparse.layers[1].present == 512
    assert sparse.changes


# DSR


def test_one_threshold_for_all_layers_by_hand():
    # Below 0.25: two of the first layer's four, none of the second's. Kept 2 and 4: the freed 2
    # go 2:4, that is 2/3 and 4/3: 2.67 and 5.33, rounded to 3 and 5.
    one = layer_of([[0.1, -0.2, 0.3, 0.4, 0, 0, 0, 0]], [[O] * 4 + [X] * 4])
    two = layer_of([[1.0, 2.0, -3.0, 4.0, 0, 0, 0, 0]], [[O] * 4 + [X] * 4])
    layers = two_layers(one, two)
    method = DSR(every=1, threshold=0.25, fraction=0.25).bind(10)
    for layer in layers:
        method.begin(layer)
    method.rebudget(layers, 1)
    assert [layer.keep for layer in layers] == [3, 5]
    assert {2, 3} <= set(after(one, method.update(one, 1)).tolist())
    wish = method.update(two, 1)
    assert set(after(two, wish).tolist()) >= {0, 1, 2, 3}
    assert len(after(two, wish)) == 5
    # 2 of 8 were dropped and 2 were wanted: the threshold stays
    assert [float(layer.memory["threshold"]) for layer in layers] == [0.25, 0.25]


def test_the_threshold_is_doubled_and_halved():
    method = DSR(fraction=0.1, tolerance=0.1)
    assert [method.adapted(1.0, n, 100) for n in (89, 90, 110, 111)] == [2.0, 1.0, 1.0, 0.5]
    model, optimizers, sparse = attached(DSR(every=1, threshold=1e-4), steps=40)
    sizes = []
    for step in range(30):
        train_step(model, optimizers, step)
        assert sparse.report().present == 1024
        sizes.append(sum(int(layer.memory["dropped"]) for layer in sparse.layers))
    # From 1e-4 it is doubled until about a tenth of 1024 is dropped.
    assert sizes[1] < 20
    assert 40 < sum(sizes[15:]) / 15 < 250


def test_a_layer_all_below_the_threshold_keeps_one_unit():
    layer = layer_of([[0.1, 0.2, 0.3, 0, 0, 0]], [[O] * 3 + [X] * 3])
    method = DSR(every=1, threshold=9.0).bind(10)
    method.begin(layer)
    method.rebudget([layer], 1)
    assert int(layer.memory["dropped"]) == 2
    assert 2 in after(layer, method.update(layer, 1)).tolist()
    assert layer.keep == 3


def test_dsr_judges_blocks_by_their_mean():
    # 1x2 blocks of means 0.15 and 0.5, whose sums are 0.3 and 1: at 0.25 the first goes.
    layer = layer_of(
        [[0.1, -0.2, 0.0, 0.0, 0.5, 0.5, 0.0, 0.0]], [[O, X, O, X]], pattern="block:1x2"
    )
    method = DSR(every=1, threshold=0.25).bind(10)
    method.begin(layer)
    method.rebudget([layer], 1)
    assert int(layer.memory["dropped"]) == 1


# ITOP


def test_itop_moves_rarely_and_much_to_the_end_of_the_run():
    rigl, set_ = RigLITOP().bind(100_000), SETITOP().bind(100_000)
    assert (rigl.every, set_.every) == (4000, 1500)
    assert not rigl.due(0), "RigL's first update is at 0; here grown weights wait first"
    assert rigl.due(96_000), "to the end, not to three quarters"
    found = [rigl.fraction_at(t) for t in (0, 50_000, 100_000)]
    assert found == pytest.approx([0.5, 0.2525, 0.005])
    assert rigl.needs_gradient
    assert not set_.needs_gradient
    assert RigLITOP().bind(250).every == 10
    assert RigLITOP(every=3).bind(250).every == 3
    assert not rigl.skips_step


def test_rigl_itop_by_hand():
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT)
    method = RigLITOP(every=1, fraction=lambda step: 0.5, exclude_dropped=True).bind(9)
    assert table_of(layer, after(layer, method.update(layer, 1))) == [[X, O, O, O, X, X, O, X]]
    method = SETITOP(every=1, fraction=lambda step: 0.5).bind(9)
    assert {1, 2} <= set(after(layer, method.update(layer, 1)).tolist())


def test_exploration_is_what_was_ever_present():
    model, optimizers, sparse = attached(SETITOP(every=2), "SGD", steps=20)
    seen = [layer.mask.clone() for layer in sparse.layers]
    explored = Exploration(sparse)
    assert explored.rate() == 0.25
    for step in range(20):
        train_step(model, optimizers, step)
        explored.look()
        for mask, layer in zip(seen, sparse.layers, strict=True):
            mask |= layer.mask
        if step == 9:
            state = through_a_file(explored.state_dict())
            again = Exploration(sparse)
            again.load_state_dict(state)
            assert again.rate() == explored.rate()
    ever = sum(int(mask.sum()) for mask in seen)
    assert explored.rate() == ever / (2 * 32 * 64) > 0.5
    assert explored.rates() == {
        layer.name: float(mask.float().mean())
        for layer, mask in zip(sparse.layers, seen, strict=True)
    }


# MEST


def test_mest_drops_by_magnitude_and_gradient_of_what_is_present():
    # |w| + 0.1 |g|: 0.1+0.9=1, 0.5+0=0.5, 0.3+0.1=0.4, 0.2+0.8=1: by magnitude 0 and 5 would go,
    # here 2 and 1 do. What grows is random, absent gradients play no part.
    gradient = [[9.0, 0.0, 1.0, 99.0, 99.0, -8.0, 99.0, 99.0]]
    layer = layer_of(WEIGHT, TABLE, gradient=gradient)
    method = MEST(every=1, fraction=0.5, gradient=0.1, exclude_dropped=True).bind(100)
    assert not method.needs_gradient
    seen = set()
    for _ in range(30):
        wish = method.update(layer, 1)
        assert {0, 5} <= set(after(layer, wish).tolist())
        assert len(after(layer, wish)) == 4
        seen |= set(after(layer, wish).tolist()) - {0, 5}
    assert seen == {3, 4, 6, 7}
    layer.weight.grad = None
    assert {1, 2} <= set(after(layer, method.update(layer, 1)).tolist()), "then by magnitude"


def test_mutation_shrinks_in_steps():
    mest = MEST().bind(160)  # the script: every 5 epochs, changes at 90 and 120 of 160
    found = [mest.fraction_at(t) for t in (0, 89, 90, 119, 120, 159)]
    assert found == [0.2, 0.2, 0.1, 0.1, 0.0, 0.0]
    assert [t for t in range(160) if mest.due(t)] == list(range(5, 120, 5))


def test_the_soft_bound_tightens_to_the_budget():
    # The script's EM&S at 90 %: .85, .875, .90 sparse, that is 1.5, 1.25 and 1 times the budget.
    model, optimizers, sparse = attached(MEST(soft=0.5), "AdamW", steps=160, sparsity=0.9)
    keep = [layer.keep for layer in sparse.layers]
    held = []
    for step in range(125):
        held.append([layer.present for layer in sparse.layers])
        train_step(model, optimizers, step)
    assert held[0] == held[89] == [int(k * 1.5) for k in keep]
    assert held[91] == held[119] == [int(k * 1.25) for k in keep]
    assert held[121] == keep == [layer.present for layer in sparse.layers]
    assert sparse.changes[-1].grown == 0
    dropped = [c for c in sparse.changes if c.step == 5]
    assert [c.dropped for c in dropped] <= [int(k * 0.5) + 1 for k in keep]
    with pytest.raises(sw.ConfigError, match="within the run, before step 10; got end=10"):
        MEST(soft=0.5, end=10).bind(10)


def test_soft_mest_on_packed_weights():
    model = sw.pack(small_model())
    model, optimizers, sparse = attached(MEST(soft=0.5), "AdamW", model=model)
    assert len(sparse.layers[0].weight) == 768
    for step in range(40):
        train_step(model, optimizers, step)
    assert len(sparse.layers[0].weight) == 512


# GraNet


def test_granet_prunes_on_the_ramp_and_regenerates():
    # 4 present, 3 to be kept, a third of those regenerated: 0 (0.1) goes for good, 5 (0.2) for
    # regrowth; the steepest of the rest is 0 (9) with the just dropped, and 6 (5) without.
    layer = layer_of(WEIGHT, TABLE, gradient=GRADIENT, keep=3)
    method = GraNet(every=1, fraction=lambda step: 1 / 3, end=1).bind(10)
    assert table_of(layer, after(layer, method.update(layer, 1))) == [[O, O, O, X, X, X, X, X]]
    method = GraNet(every=1, fraction=lambda step: 1 / 3, end=1, exclude_dropped=True).bind(10)
    assert table_of(layer, after(layer, method.update(layer, 1))) == [[X, O, O, X, X, X, O, X]]


def test_granet_follows_the_ramp_of_gradual_pruning_and_goes_on_regenerating():
    ours, theirs = GraNet(end=100).bind(400), sw.Gradual(end=100, initial_sparsity=0.5).bind(400)
    steps = range(0, 101, 10)
    assert [ours.kept(1000, 100, t) for t in steps] == [theirs.kept(1000, 100, t) for t in steps]
    model, optimizers, sparse = attached(GraNet(every=2), "AdamW", sparsity=0.9)
    counts = []
    for step in range(40):
        counts.append(sparse.layers[0].present)
        train_step(model, optimizers, step)
    assert counts[0] == 1024
    assert sorted(counts, reverse=True) == counts
    assert counts[13] == sparse.layers[0].keep, "at 3/10 of the run"
    late = [change for change in sparse.changes if change.step > 20]
    assert any(change.grown for change in late)
    assert all(change.grown == change.dropped for change in late)
    with pytest.raises(sw.ConfigError, match="before step 9; got end=9"):
        GraNet(end=9).bind(9)


def test_granet_from_dense():
    _, _, sparse = attached(GraNet(initial_sparsity=0.0))
    assert all(layer.present == layer.numel for layer in sparse.layers)


# DEEP R


def deep_layer(values, table, sign=None, **options):
    layer = layer_of(values, table)
    method = DeepR(**options)
    layer.memory["sign"] = torch.ones(layer.keep, 1, dtype=torch.int8)
    layer.memory["born"] = torch.zeros(layer.keep, dtype=torch.bool)
    method.after_step(layer, -1)
    return layer, method


def test_a_weight_that_crosses_zero_goes_dormant_and_another_joins():
    layer, method = deep_layer([[0.5, -0.5, 0.5, 0.0, 0.0, 0.0]], [[O, O, O, X, X, X]])
    assert layer.memory["sign"].flatten().tolist() == [1, -1, 1]
    assert method.update(layer, 0) is None
    with torch.no_grad():  # the optimizer's step: unit 1 crosses, unit 2 nearly
        layer.weight[0, 1], layer.weight[0, 2] = 0.01, 0.01
    layer.weight.grad = torch.zeros(1, 6)
    layer.rate = 0.1
    method.after_step(layer, 0)
    assert layer.weight[0, 1] == 0, "dormant: the network computes without it"
    assert layer.weight[0, 2] > 0
    seen, signs = set(), set()
    before = layer.memory["sign"].clone()
    for _ in range(60):
        layer.memory["sign"] = before.clone()
        wish = method.update(layer, 1)
        (new,) = wish.comes.tolist()
        assert sorted({*after(layer, wish).tolist()} - {new}) == [0, 2]
        place = after(layer, wish).tolist().index(new)
        assert layer.memory["born"].tolist() == [i == place for i in range(3)]
        sign = layer.memory["sign"].flatten().tolist()
        assert wish.values.item() == pytest.approx(sign[place] * BORN)
        assert [s for i, s in enumerate(sign) if i != place] == [1, 1]
        seen.add(new)
        signs.add(sign[place])
    assert seen == {1, 3, 4, 5}, "any dormant one, the last too"
    assert signs == {-1, 1}


def test_drift_and_noise_of_paper_and_code():
    many = 4000
    layer, method = deep_layer([[2.0, -2.0] * (many // 2)], [[O] * many], temperature=0.02, l1=0.5)
    layer.weight.grad = torch.zeros(1, many)
    layer.rate = 0.01
    before = layer.weight.detach().clone()
    method.after_step(layer, 0)
    change = (layer.weight.detach() - before) * before.sign()
    # drift 0.01 * 0.5; noise sqrt(2 * 0.01 * 0.02) = 0.02, its mean known to 0.02 / sqrt(4000)
    assert change.mean().item() == pytest.approx(-0.005, abs=4 * 0.02 / many**0.5)
    assert change.std().item() == pytest.approx(0.02, rel=0.05)
    assert DeepR(noise="rate").noise_of(0.5) == 0.5e-5
    assert DeepR(l1=0.3).noise_of(0.1) == pytest.approx(0.01), "a third of the drift"


def test_a_new_weight_is_spared_until_it_has_had_a_gradient():
    """Else the drift alone would send every new weight back at once: it is born at zero."""
    layer, method = deep_layer([[0.5, 0.5, 0.0]], [[O, O, X]], l1=1.0, temperature=0.0)
    with torch.no_grad():
        layer.weight[0, 1] = BORN
    layer.memory["born"] = torch.tensor([False, True])
    layer.weight.grad = torch.zeros(1, 3)
    layer.rate = 0.1
    method.after_step(layer, 0)
    assert layer.weight[0].tolist() == pytest.approx([0.4, BORN, 0.0])
    method.after_step(layer, 1)
    assert layer.weight[0].tolist() == pytest.approx([0.3, 0.0, 0.0])


def test_no_drift_without_a_gradient():
    layer, method = deep_layer([[0.5, 0.5, 0.0]], [[O, O, X]], l1=1.0)
    layer.rate = 0.1
    method.after_step(layer, 0)
    assert layer.weight[0].tolist() == [0.5, 0.5, 0.0]


def test_a_unit_is_dormant_once_most_of_its_weights_are():
    layer = layer_of(
        [[0.5, -0.5, 0.5], [0.5, 0.5, 0.5], [0.0] * 3, [0.0] * 3], [[O, O, X, X]], "channel"
    )
    method = DeepR()
    layer.memory["born"] = torch.zeros(2, dtype=torch.bool)
    method.after_step(layer, -1)
    assert layer.memory["sign"].tolist() == [[1, -1, 1], [1, 1, 1]]
    with torch.no_grad():
        layer.weight[0, 0] = -0.1
    assert method.update(layer, 0) is None
    with torch.no_grad():
        layer.weight[0, 1] = 0.1
    wish = method.update(layer, 0)
    assert 1 in after(layer, wish).tolist()
    assert len(after(layer, wish)) == 2
    assert layer.memory["sign"].shape == (2, 3)


@pytest.mark.parametrize("pattern", ["unstructured", "2:4"])
def test_signs_follow_the_weights_in_both_storages(pattern):
    masked = small_model()
    packed = sw.pack(copy.deepcopy(masked))
    sparsity = None if pattern == "2:4" else 0.75
    runs = [
        attached(DeepR(l1=0.2), "SGD", model=model, pattern=pattern, sparsity=sparsity)
        for model in (masked, packed)
    ]
    for step in range(25):
        for model, optimizers, sparse in runs:
            train_step(model, optimizers, step)
            for layer in sparse.layers:
                values = layer.weight.detach()
                values = values[layer.mask] if values.dim() == 2 else values
                assert not (values * layer.memory["sign"].flatten() < 0).any()
        for a, b in zip(runs[0][2].layers, runs[1][2].layers, strict=True):
            assert torch.equal(a.present_units, b.present_units)
            assert torch.equal(a.memory["sign"], b.memory["sign"])
    assert runs[0][2].changes


def test_deep_r_moves_at_every_step_and_keeps_the_count():
    model, optimizers, sparse = attached(DeepR(l1=0.2), "SGD", steps=None)
    for step in range(30):
        train_step(model, optimizers, step)
        assert sparse.report().present == 1024
        assert_masked(sparse)
    assert {change.step for change in sparse.changes} >= set(range(5, 30))


# what all of them keep

EACH = [
    RigLITOP(every=2),
    SETITOP(every=2),
    DSR(every=2, threshold=0.02),
    SNFS(every=2),
    MEST(every=2),
    GraNet(every=2),
    DeepR(l1=0.5),
]


@pytest.mark.parametrize("method", EACH, ids=lambda method: type(method).__name__)
def test_new_weights_start_with_the_state_of_a_first_step(method):
    model, optimizers, sparse = attached(method, "SGD-momentum")
    (optimizer,) = optimizers
    new = 0
    for step in range(12):
        before = {layer.name: layer.mask.clone() for layer in sparse.layers}
        train_step(model, optimizers, step)
        for layer in sparse.layers:
            grown = layer.mask & ~before[layer.name]
            momentum = optimizer.state[layer.weight]["momentum_buffer"]
            assert not momentum[layer.absent].any()
            if grown.any():  # born at 0, no momentum, a masked gradient: both are 0 still
                assert float(momentum[grown].abs().max()) <= 1e-12
                assert float(layer.weight.detach()[grown].abs().max()) <= 1e-11
                new += int(grown.sum())
    assert new > 0


@pytest.mark.parametrize("method", EACH, ids=lambda method: type(method).__name__)
def test_facts_are_complete(method):
    for name in ("source", "when", "memory", "flops", "published", "departs"):
        assert len(getattr(method.facts, name)) > 4


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DSR(threshold=0), "method DSR: threshold .* above 0; got 0"),
        (lambda: DSR(tolerance=1.0), r"method DSR: tolerance must be in \[0, 1\); got 1.0"),
        (lambda: SNFS(beta=1.0), r"method SNFS: beta .* in \[0, 1\); got 1.0"),
        (lambda: SNFS().bind(None), "method SNFS must know when to stop"),
        (lambda: SNFS(fraction=2.0), r"method SNFS: fraction .* got 2.0"),
        (lambda: MEST(soft=-1.0), "method MEST: soft must be 0 or more; got -1.0"),
        (lambda: GraNet(initial_sparsity=1.0), "initial_sparsity must be in .* got 1.0"),
        (lambda: GraNet(regrown="no"), "no value of GraNet's regrown is called 'no'"),
        (lambda: DeepR(temperature=-1.0), "method DeepR: temperature must be 0 or more; got -1.0"),
        (lambda: DeepR(noise="rate", temperature=1.0), "temperature is for noise 'temperature'"),
        (lambda: RigLITOP(every=0), "method RigLITOP: every .* got 0"),
        (lambda: SETITOP(final_fraction=1.5), "SETITOP: final_fraction.* got 1.5"),
    ],
)
def test_options_are_checked(make, message):
    with pytest.raises(sw.SparsewrightError, match=message):
        make()


# structured dynamic training: patterns and methods that exist already, together


def test_a_dropped_neuron_returns_by_the_gradient_of_its_row():
    # Rows of |w| 0.3, 2, -, -: the first goes; of rows 0, 2 and 3 the gradients' sums are 3, 4
    # and 5 (the largest single one, 4, is in row 2): the fourth neuron is grown, at 0.
    layer = layer_of(
        [[0.1, -0.2], [1.0, 1.0], [0.0, 0.0], [0.0, 0.0]],
        [[O, O, X, X]],
        pattern="channel",
        gradient=[[3.0, 0.0], [9.0, 9.0], [4.0, 0.0], [-2.5, 2.5]],
    )
    wish = sw.RigL(fraction=0.5).bind(100).update(layer, 0)
    assert after(layer, wish).tolist() == [1, 3]
    assert wish.comes.tolist() == [3]


@pytest.mark.parametrize("storage", ["masked", "packed"])
@pytest.mark.parametrize("method", ["rigl", "set", "rigl_itop"])
@pytest.mark.parametrize("pattern", ["2:4", "3:32", "block:4x4", "channel"])
def test_structured_patterns_really_move(pattern, method, storage):
    """An update moves about what the fraction says, and other units are tried than at first."""
    model = small_model() if storage == "masked" else sw.pack(small_model())
    made = sw.methods.METHODS[method](every=5, fraction=0.3)
    sparsity = as_pattern(pattern).sparsity or 0.75
    model, optimizers, sparse = attached(
        made, "AdamW", model=model, pattern=pattern, sparsity=sparsity, steps=60
    )
    explored = Exploration(sparse)
    density = explored.rate()
    for step in range(60):
        train_step(model, optimizers, step)
        explored.look()
        for layer in sparse.layers:
            assert (layer.table.sum(dim=1) == layer.keep).all()
    for layer in sparse.layers:
        first, *_ = moves = [change for change in sparse.changes if change.layer == layer.name]
        assert all(change.grown == change.dropped for change in moves)
        # What is dropped may be grown again at once: of two channels one, in 2:4 every third.
        most = 0.3 * layer.present
        assert 0.4 * most < first.grown <= most
        assert all(change.grown <= most for change in moves)
        assert explored.rates()[layer.name] > 1.3 * density
