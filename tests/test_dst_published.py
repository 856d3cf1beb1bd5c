"""What papers and public code fix of dynamic sparse training: defaults, schedules, counts, and the
traps in which implementations part."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from test_methods import O, X, layer_of, table_of
from torch import nn
from training import OPTIMIZERS, loss_of, small_model, train_step

import sparsewright as sw
from sparsewright.allocate import ER
from sparsewright.budget import Budgeted, solve_budget
from sparsewright.exchange import exchange_of, units_after
from sparsewright.methods import METHODS
from sparsewright.methods._drop_grow import drop_and_grow, drop_only
from sparsewright.methods.chts import sigmoid_ramp
from sparsewright.methods.deep_r import BORN, RATE_NOISE
from sparsewright.methods.dsr import DSR
from sparsewright.methods.granet import RAMP, GraNet
from sparsewright.methods.mest import MEST
from sparsewright.methods.rigl_itop import RigLITOP
from sparsewright.methods.set_itop import SETITOP
from sparsewright.methods.snfs import SNFS
from sparsewright.patterns import as_pattern
from sparsewright.scores import as_score

# Defaults of the papers, or of the public code where the paper gives none.
PUBLISHED = {
    "set": {"fraction": 0.3, "drop": "signed_rank", "grow": "random", "step_on_update": True},
    "deep_r": {"l1": 1e-5, "noise": "temperature"},
    "snfs": {"fraction": 0.5, "final_fraction": 0.005, "beta": 0.9},
    "rigl": {
        "every": 100,
        "fraction": 0.3,
        "start": 0,
        "drop": "magnitude",
        "grow": "gradient",
        "exclude_dropped": False,
        "regrown": "keep",
        "grown": "zero",
        "step_on_update": False,
    },
    "rigl_itop": {"fraction": 0.5, "final_fraction": 0.005, "drop": "magnitude"},
    "set_itop": {"fraction": 0.5, "final_fraction": 0.005, "drop": "magnitude"},
    "granet": {"initial_sparsity": 0.5, "fraction": 0.5},
    "srigl": {"every": 100, "fraction": 0.3, "saliency": 0.3, "ablate": True, "steep": "absent"},
    "mest": {"fraction": 0.2, "soft": 0.0},
    "chts": {"softness": (0.5, 0.75), "links": "CH2-L3n", "initial_sparsity": None},
    "chtss": {"softness": (0.5, 0.75), "initial_sparsity": 0.5},
    "top_kast": {"every": 100},
    "sr_ste": {"penalty": 2e-4, "start": 0},
    "slimming": {"strength": 1e-4, "scope": "global"},
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_defaults_are_the_published_ones(name):
    method = METHODS[name]()
    assert {option: getattr(method, option) for option in PUBLISHED[name]} == PUBLISHED[name]


def test_constants_are_the_published_ones():
    assert (BORN, RATE_NOISE) == (1e-12, 1e-5)  # DEEP R's code
    assert RAMP == 30 / 100  # GraNet: epochs
    assert (RigLITOP.published, SETITOP.published) == (4000, 1500)
    # CHTss: curvature 6 over the ramp; at its quarter the logistic of -1.5, both ends stretched
    low, quarter = 1 / (1 + math.exp(3)), 1 / (1 + math.exp(1.5))
    assert sigmoid_ramp(0.25) == pytest.approx((quarter - low) / (1 - 2 * low))


# what all share


@pytest.mark.parametrize(
    ("fraction", "count", "moved"),
    # floor, and a product that is 29 but for binary fractions (0.29 * 100 < 29) is 29
    [(0.3, 9, 2), (0.29, 100, 29), (0.5, 5, 2), (0.7, 10, 7), (0.1, 9, 0)],
)
def test_what_moves_is_the_floor_of_the_fraction(fraction, count, moved):
    assert 0.29 * 100 < 29
    weight = [[float(i + 1) for i in range(count)] + [0.0] * 100]
    layer = layer_of(weight, [[O] * count + [X] * 100])
    wish = drop_and_grow(layer, fraction, drop="magnitude", grow="random", exclude_dropped=True)
    assert (0 if wish is None else int(wish.leaves.sum())) == moved
    assert int(drop_only(layer, fraction, "magnitude").leaves.sum()) == moved


def after_one_update(method, build):
    """State of a momentum optimizer, and values, before and after the update of step 3."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8, bias=False))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    sparse = sw.attach(model, optimizer, method=build(method), sparsity=0.5, steps=40)
    x = torch.randn(16, 8)
    for step in range(4):
        if step == 3:
            weight = model[0].weight.detach().clone()
            momentum = optimizer.state[model[0].weight]["momentum_buffer"].clone()
            mask = sparse.layers[0].mask.clone()
            smallest = weight.abs().masked_fill(~mask, torch.inf).flatten().argsort()[:16]
            optimizer.param_groups[0] |= {"lr": 0.0, "momentum": 1.0}
        optimizer.zero_grad()
        scale = 0.0 if step == 3 and not method.startswith("rigl") else 1.0
        ((model(x) - x.roll(1, 1)) ** 2).mean().mul(scale).backward()
        optimizer.step()
    dropped = torch.zeros(64, dtype=torch.bool)
    dropped[smallest] = True
    again = dropped.view(8, 8) & sparse.layers[0].mask
    stayed = mask & ~dropped.view(8, 8)
    now = model[0].weight.detach(), optimizer.state[model[0].weight]["momentum_buffer"]
    return (weight, momentum), now, again, stayed


def of_kind(name):
    kinds = {
        "rigl": sw.RigL(every=3, start=3, fraction=lambda step: 0.5),
        "rigl, reset": sw.RigL(every=3, start=3, fraction=lambda step: 0.5, regrown="reset"),
        "set": sw.SET(every=3, fraction=0.5, drop="magnitude"),
        "set, keep": sw.SET(every=3, fraction=0.5, drop="magnitude", regrown="keep"),
    }
    return kinds[name]


@pytest.mark.parametrize(
    ("method", "keeps"),
    [("rigl", True), ("rigl, reset", False), ("set", False), ("set, keep", True)],
)
def test_dropped_and_regrown_at_once(method, keeps):
    """RigL's code keeps value and momentum of what it drops and regrows in one update; in SET's
    that is new. What stays keeps both in either."""
    before, now, again, stayed = after_one_update(method, of_kind)
    assert again.any(), "some of the smallest are among the grown"
    assert not torch.equal(before[1], torch.zeros_like(before[1]))
    for old, new in zip(before, now, strict=True):
        assert torch.equal(new[stayed], old[stayed])
        assert torch.equal(new[again], old[again] if keeps else torch.zeros_like(old[again]))


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_rigl_is_its_algorithm(kind):
    """Masks of a run against Algorithm 1 in plain numbers: k = floor(alpha n), the n - k largest
    |w| are kept, and of all others the k steepest grow; no other step changes the mask."""
    torch.manual_seed(0)
    layers = nn.Linear(24, 20), nn.ReLU(), nn.Linear(20, 12)
    x, y = torch.randn(32, 24), torch.randn(32, 12)
    if kind == "conv":
        layers = nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 6, 2)
        x, y = torch.randn(4, 3, 5, 5), torch.randn(4, 6, 2, 2)
    model = nn.Sequential(*layers)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    sparse = sw.attach(model, optimizer, method=sw.RigL(every=4), sparsity=0.6, steps=40)
    for step in range(36):
        loss = ((model(x) - y) ** 2).mean()
        dense = torch.autograd.grad(loss, [layer.weight for layer in sparse.layers])
        wanted = []
        for layer, gradient in zip(sparse.layers, dense, strict=True):
            mask = layer.mask.flatten()
            alpha = 0.15 * (1 + math.cos(math.pi * step / 30))
            k = math.floor(alpha * int(mask.sum())) if step % 4 == 0 and step < 30 else 0
            size = layer.weight.detach().abs().flatten().masked_fill(~mask, -1.0)
            kept = size.argsort(descending=True)[: int(mask.sum()) - k]
            slope = gradient.abs().flatten()
            slope[kept] = -1.0
            after = torch.zeros_like(mask)
            after[kept] = True
            after[slope.argsort(descending=True)[:k]] = True
            wanted.append(after.view(layer.shape))
        optimizer.zero_grad()
        ((model(x) - y) ** 2).mean().backward()
        optimizer.step()
        for layer, mask in zip(sparse.layers, wanted, strict=True):
            assert torch.equal(layer.mask, mask), step
    assert sparse.changes


def test_norms_and_biases_are_dense_and_their_statistics_go_on():
    def net():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4))

    model = net()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    sparse = sw.attach(model, optimizer, method=sw.RigL(every=2), sparsity=0.5, steps=20)
    assert [layer.name for layer in sparse.layers] == ["0", "3"]
    twin = copy.deepcopy(model)
    for step in range(6):
        x = torch.randn(32, 16)
        twin.load_state_dict(model.state_dict())
        optimizer.zero_grad()
        model(x).square().mean().backward()
        twin(x)
        optimizer.step()
        for name, value in model[1].named_buffers():
            assert torch.equal(value, twin[1].get_buffer(name)), (step, name)
        assert all((model[i].bias != 0).all() for i in (0, 3))
        assert (model[1].weight != 0).all()


# SET


@pytest.mark.parametrize(
    ("sizes", "outputs", "total"),
    [
        ([784, 1000, 1000, 1000], 10, 125_680),  # MNIST
        ([3072, 4000, 1000, 4000], 10, 381_440),  # CIFAR-10
        ([28, 1000, 1000, 1000], 2, 102_560),  # HIGGS
    ],
)
def test_er_gives_the_weights_of_sets_formula(sizes, outputs, total):
    """nnz = 20 * (n_in + n_out) in every layer, and a dense output layer."""
    hidden = {f"{i}": (b, a) for i, (a, b) in enumerate(itertools.pairwise(sizes))}
    wanted = {name: 20 * sum(shape) for name, shape in hidden.items()}
    layers = [Budgeted.of(n, shape, as_pattern("unstructured")) for n, shape in hidden.items()]
    sparsity = 1 - sum(wanted.values()) / sum(layer.numel for layer in layers)
    assert solve_budget(layers, sparsity, ER()) == wanted
    assert sum(wanted.values()) + sizes[-1] * outputs == total


def test_the_paper_of_set_removes_once_more_at_the_end():
    """Of every sign the same part goes, nothing comes, and survivors are what they were."""
    runs = {}
    for last in ("regrow", "remove"):
        model = small_model()
        optimizers = OPTIMIZERS["SGD-momentum"](model)
        method = sw.SET(every=10, last=last)
        settings = {"sparsity": 0.75, "allocate": "uniform_all", "steps": 40}
        sparse = sw.attach(model, optimizers, method=method, **settings)
        for step in range(40):
            train_step(model, optimizers, step)
        runs[last] = sparse
    for whole, cut in zip(runs["regrow"].layers, runs["remove"].layers, strict=True):
        assert whole.present == 512
        assert cut.present == 512 - math.floor(0.3 * 512)
        gone = whole.mask & ~cut.mask
        assert (cut.mask & ~whole.mask).sum() == 0
        for sign in (1, -1):
            of_sign = (whole.weight * sign > 0) & whole.mask
            part = float((gone & of_sign).sum() / of_sign.sum())
            # the last step moves a weight or two over zero, and parts are rounded
            assert part == pytest.approx(0.3, abs=0.02)
    assert {change.step for change in runs["regrow"].changes} == {10, 20, 30}
    assert {change.step for change in runs["remove"].changes} == {10, 20, 30, 39}


def test_zeros_go_with_the_smallest_positive_weights():
    """Two of four positives go, both zeros; of four negatives the two nearest to zero."""
    layer = layer_of([[0.0, 0.0, 3.0, 4.0, -1.0, -2.0, -3.0, -4.0]], [[O] * 8])
    scores = as_score("signed_rank")(layer)
    assert scores.tolist() == [[0.25, 0.5, 0.75, 1.0, 0.25, 0.5, 0.75, 1.0]]


# RigL's schedule


def test_the_cosine_counts_steps_of_the_run_and_not_since_the_start():
    rigl = sw.RigL(start=50, end=100)
    assert rigl.fraction_at(50) == pytest.approx(0.15)
    assert [t for t in (0, 49, 50, 99) if rigl.due(t)] == [50]


def test_longer_runs_scale_the_end_and_not_the_interval():
    # ImageNet 5x: 160k steps; the GRU moves masks to its end, by alpha 0.1
    once, five = sw.RigL().bind(32_000), sw.RigL().bind(160_000)
    assert (once.end, five.end, once.every, five.every) == (24_000, 120_000, 100, 100)
    assert once.fraction_at(6_000) == five.fraction_at(30_000)
    gru = sw.RigL(fraction=0.1, end=200_000).bind(200_000)
    assert gru.due(199_900)
    assert gru.fraction_at(100_000) == pytest.approx(0.05)


def test_an_update_without_a_move_takes_no_step_either():
    """RigL's "either, or" is of the schedule, whatever the update finds to move."""
    model = small_model()
    (optimizer,) = OPTIMIZERS["SGD"](model)
    method = sw.RigL(every=2, fraction=lambda step: 1e-9)
    sw.attach(model, optimizer, method=method, sparsity=0.75, steps=8)
    moved = []
    for step in range(4):
        bias = model[0].bias.detach().clone()
        train_step(model, [optimizer], step)
        moved.append(not torch.equal(bias, model[0].bias))
    assert moved == [False, True, False, True]


# ITOP, SNFS, DSR, MEST, GraNet: what of the table of choices each takes


@pytest.mark.parametrize(
    ("method", "steps"),
    [
        (sw.RigL(every=1), False),
        (sw.SET(every=1), True),
        (RigLITOP(every=1), True),
        (SETITOP(every=1), True),
        (SNFS(every=1), True),
        (DSR(every=1), True),
        (MEST(every=1), True),
        (GraNet(every=1), True),
        (METHODS["srigl"](every=1), True),
    ],
    ids=lambda one: type(one).__name__,
)
def test_which_methods_step_at_their_updates(method, steps):
    assert method.skips_step != steps


def test_set_itop_drops_over_both_signs():
    layer = layer_of([[0.1, 0.2, -1.0, -2.0, 0.0, 0.0]], [[O] * 4 + [X] * 2])
    wish = SETITOP(every=1, fraction=lambda step: 0.5).bind(9).update(layer, 1)
    units = units_after(layer, exchange_of(layer, wish)[0])
    assert {2, 3} <= set(units.tolist())


def test_sparse_momentum_of_one_layer_is_of_sizes_and_of_the_mean():
    """Shares: mean |m| of present weights, 2 and 1 although sums are 2 and 4, and signs cancel.

    One: 1 of 2 kept; two: 2 of 4 kept; 3 freed, by 2:1 -> 2 and 1: budgets 3 and 3. By sums it
    would be 2 and 4. Grown in one: of |m| 9, 8, 1 the two largest, whatever their signs.
    """
    one = layer_of([[1.0, 2.0, 0.0, 0.0, 0.0]], [[O, O, X, X, X]])
    two = layer_of([[1.0, 2.0, 3.0, 4.0, 0.0, 0.0]], [[O, O, O, O, X, X]])
    one.name, two.name = "one", "two"
    one.memory["momentum"] = torch.tensor([[2.0, -2.0, -9.0, 1.0, 8.0]])
    two.memory["momentum"] = torch.tensor([[1.0, -1.0, 1.0, -1.0, 9.0, 9.0]])
    for layer in (one, two):
        layer.weight.grad = torch.zeros(layer.shape)
    method = SNFS(every=1, fraction=lambda step: 0.5).bind(10)
    method.rebudget([one, two], 1)
    assert (one.keep, two.keep) == (3, 3)
    units = units_after(one, exchange_of(one, method.update(one, 1))[0])
    assert units.tolist() == [1, 2, 4]


def test_what_dsr_frees_goes_by_what_survived_and_not_by_what_was_there():
    """Both hold 6. Below the threshold: 5 of one, 1 of two. Survivors 1 and 5: 6 freed by 1:5.

    Budgets 1 + 1 and 5 + 5; by what was there before, alike, they would be 4 and 8.
    """
    one = layer_of([[9.0] + [0.1] * 5 + [0.0] * 6], [[O] * 6 + [X] * 6])
    two = layer_of([[0.1] + [9.0] * 5 + [0.0] * 6], [[O] * 6 + [X] * 6])
    one.name, two.name = "one", "two"
    method = DSR(every=1, threshold=0.5, fraction=0.5).bind(10)
    for layer in (one, two):
        method.begin(layer)
    method.rebudget([one, two], 1)
    assert (one.keep, two.keep) == (2, 10)
    # 6 of 12 were wanted over both layers, and 6 went: the threshold is right
    assert float(one.memory["threshold"]) == 0.5


def test_the_ratios_of_mests_scripts():
    """At 90 %: prune to .92, .91, .90 sparse before growing to .90 (EM); grow to .85, .875, .90
    after pruning to .90 (EM&S)."""
    em, soft = MEST().bind(160), MEST(soft=0.5).bind(160)
    pruned = [1 - 0.1 * (1 - em.fraction_at(epoch)) for epoch in (0, 90, 120)]
    assert pruned == pytest.approx([0.92, 0.91, 0.90])
    held = [1 - soft.bound(100, 1000, epoch) / 1000 for epoch in (0, 90, 120)]
    assert held == pytest.approx([0.85, 0.875, 0.90])


def test_soft_mest_drops_to_the_budget_before_it_grows():
    """6 held for a budget of 4: the two of least |w| + |g| go, and 2 come; unit 1 has 0.2 + 5."""
    weight = [[0.1, 0.2, 0.3, 0.4, 0.5, 0.6] + [0.0] * 6]
    layer = layer_of(weight, [[O] * 6 + [X] * 6], gradient=[[0.0, -5.0] + [0.0] * 10], keep=4)
    method = MEST(every=1, soft=0.5, gradient=1.0, exclude_dropped=True).bind(100)
    units = units_after(layer, exchange_of(layer, method.update(layer, 1))[0]).tolist()
    assert len(units) == 6
    assert {1, 3, 4, 5} <= set(units)
    assert not {0, 2} & set(units)


@pytest.mark.parametrize(
    "method", [MEST(every=1, fraction=0.34), DSR(every=1, threshold=0.15, fraction=1 / 3)]
)
def test_what_is_dropped_and_regrown_starts_at_zero(method):
    """They prune, then grow, each for itself: what comes back was zeroed (MEST's code)."""
    layer = layer_of([[0.1, 0.2, 0.3, 0.4]], [[O, O, O, X]])
    bound, seen = method.bind(100), set()
    bound.begin(layer)
    for _ in range(20):
        if isinstance(method, DSR):
            bound.rebudget([layer], 1)
        wish = bound.update(layer, 1)
        assert wish.leaves.tolist() == [True, False, False]
        seen |= set(wish.comes.tolist())
    assert seen == {0, 3}, "0 among them, as new"


def test_granet_regenerates_a_part_of_what_the_ramp_leaves():
    """10 present, 4 are left by the ramp, half of those 4 are regenerated: 2 stay. Half of the 10
    would leave none."""
    weight = [[float(i) for i in range(1, 11)] + [0.0] * 2]
    gradient = [[0.0] * 10 + [5.0, 6.0]]
    layer = layer_of(weight, [[O] * 10 + [X] * 2], gradient=gradient, keep=4)
    method = GraNet(every=1, fraction=lambda step: 0.5, end=1).bind(10)
    units = units_after(layer, exchange_of(layer, method.update(layer, 1))[0])
    assert table_of(layer, units)[0] == [X] * 8 + [O] * 4


def test_growth_ties_go_to_the_first_unit():
    layer = layer_of(
        [[1.0, 0.5, 0, 0, 0]], [[O, O, X, X, X]], gradient=[[9.0, 0.0, 2.0, -2.0, 2.0]]
    )
    wish = sw.RigL(fraction=lambda step: 0.5, end=9).update(layer, 0)
    assert units_after(layer, exchange_of(layer, wish)[0]).tolist() == [0, 2]


def test_replicas_that_see_one_gradient_move_alike():
    """Same seed, same gradients: the same random growth, whatever was drawn elsewhere."""
    tables = []
    for drawn in (0, 7):
        model = small_model()
        optimizers = OPTIMIZERS["SGD"](model)
        torch.manual_seed(drawn)
        sparse = sw.attach(model, optimizers, method=sw.SET(every=2), sparsity=0.75, steps=10)
        for step in range(6):
            torch.randn(drawn)  # dropout, or data order, of this replica
            for optimizer in optimizers:
                optimizer.zero_grad()
            loss_of(model, step).backward()
            for optimizer in optimizers:
                optimizer.step()
        tables.append([layer.present_units for layer in sparse.layers])
    assert all(torch.equal(a, b) for a, b in zip(*tables, strict=True))
